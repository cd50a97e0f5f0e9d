"""``up``: join and stay, until Ctrl-C. Pings and MagicDNS names work; nothing is served."""

import argparse

import anyio

from tsnetpy.node.node import Node
from tsnetpy.node.program import Progress

from ._command import Subparsers, add_command


def register(commands: Subparsers) -> None:
    """Add the command."""
    add_command(commands, "up", "join the tailnet and stay until Ctrl-C", _up)


async def _up(node: Node, args: argparse.Namespace, progress: Progress) -> None:
    status = node.status()
    progress.say(
        "running",
        f"{status.name} is up: {' '.join(status.addresses)}",
        name=status.name,
        addresses=list(status.addresses),
    )
    await anyio.sleep_forever()
