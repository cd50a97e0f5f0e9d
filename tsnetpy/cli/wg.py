"""``wg``: a plain WireGuard peer from a ``wg-quick`` file, with ports handed through the tunnel."""

import argparse
import base64
import os
import stat

import anyio

from tsnetpy.node.program import Progress, configure_logging, run_program
from tsnetpy.wireguard import (
    WireGuardNode,
    forward_tcp,
    forward_udp,
    load_quick,
    parse_forward,
    reverse_tcp,
    reverse_udp,
)

from ._command import Subparsers

_HELP = "be a plain WireGuard peer from a wg-quick file, without a coordination server"
_FORM = "[ADDRESS:]PORT:HOST:PORT"
_KINDS = {
    "forward": (forward_tcp, "TCP port of this host (loopback unless ADDRESS says otherwise) to HOST in the tunnel"),
    "reverse": (reverse_tcp, "TCP port of the tunnel to HOST in this host's network"),
    "udp_forward": (forward_udp, "as --forward, for UDP"),
    "udp_reverse": (reverse_udp, "as --reverse, for UDP"),
}


def register(commands: Subparsers) -> None:
    """Add the command."""
    parser: argparse.ArgumentParser = commands.add_parser("wg", help=_HELP, description=_HELP)
    parser.add_argument("file", help="wg-quick file ([Interface] and [Peer]); hooks and routing settings are ignored")
    for name, (_, text) in _KINDS.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", action="append", default=[], metavar=_FORM, help=f"{text}; repeatable"
        )
    parser.add_argument("--json", action="store_true", help="one JSON object a line on standard output")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="log to standard error; twice for more")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    configure_logging(args.verbose)
    progress = Progress(as_json=args.json)

    async def main() -> None:
        await _serve(args, progress)

    return run_program(main, progress)


async def _serve(args: argparse.Namespace, progress: Progress) -> None:
    forwards = [(kind, parse_forward(text)) for kind in _KINDS for text in getattr(args, kind)]
    config = load_quick(args.file)
    if os.path.isfile(args.file) and stat.S_IMODE(os.stat(args.file).st_mode) & 0o077:  # noqa: ASYNC240 - before any work
        message = f"other users may read {args.file}, which holds a private key"
        progress.say("warning", f"warning: {message}", message=message, file=args.file)
    for setting in config.ignored:
        progress.say("ignored", f"{args.file}, {setting}: has no meaning here, ignored", setting=setting)
    async with WireGuardNode(config) as node, anyio.create_task_group() as tasks:
        for kind, forward in forwards:
            where = await tasks.start(lambda f=forward, k=kind, **kw: _KINDS[k][0](node, f, **kw))
            word = kind.replace("_", "-")
            text = f"{word}: {where.host or 'tunnel'}:{where.port} -> {forward.target}"
            progress.say(word, text, listen=str(where), target=str(forward.target))
        status = node.status()
        key = base64.b64encode(status.public_key).decode()
        progress.say(
            "running",
            f"{' '.join(status.addresses)} is up on UDP port {status.listen_port}, public key {key}",
            addresses=list(status.addresses),
            port=status.listen_port,
            public_key=key,
        )
        await anyio.sleep_forever()
