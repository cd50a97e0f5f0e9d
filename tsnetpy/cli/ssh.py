"""``ssh-server``: SSH on the tailnet, as this process's own user."""

import argparse

import anyio

from tsnetpy.base.errors import ConfigError
from tsnetpy.node.node import Node
from tsnetpy.node.program import Progress

from ._command import Subparsers, add_command

_HELP = "serve SSH on the tailnet, as this process's own user; the tailnet's SSH policy says who may enter"


def register(commands: Subparsers) -> None:
    """Add the command."""
    parser = add_command(commands, "ssh-server", _HELP, _serve)
    parser.add_argument("--port", type=int, default=22, help="tailnet port (default 22)")


async def _serve(node: Node, args: argparse.Namespace, progress: Progress) -> None:
    try:
        from tsnetpy import ssh
    except ImportError as error:
        raise ConfigError(f"the SSH server needs {error.name}", hint="pip install 'tsnetpy[ssh]'") from None
    async with anyio.create_task_group() as tasks:
        await tasks.start(ssh.serve, node, ssh.SshConfig(port=args.port, state_dir=args.state))
        status = node.status()
        progress.say(
            "running",
            f"SSH on {status.name} port {args.port}: {' '.join(status.addresses)}",
            name=status.name,
            addresses=list(status.addresses),
        )
