"""``ip``: print the node's own or a peer's addresses."""

import argparse
import sys

from tsnetpy.base.errors import ConfigError
from tsnetpy.node.node import Node
from tsnetpy.node.program import Progress

from ._command import Subparsers, add_command


def register(commands: Subparsers) -> None:
    """Add the command."""
    parser = add_command(commands, "ip", "print this node's or a peer's tailnet addresses", _ip)
    parser.add_argument("peer", nargs="?", help="a peer's name")
    family = parser.add_mutually_exclusive_group()
    family.add_argument("-4", dest="only4", action="store_true", help="IPv4 only")
    family.add_argument("-6", dest="only6", action="store_true", help="IPv6 only")


async def _ip(node: Node, args: argparse.Namespace, progress: Progress) -> None:
    addresses = node.status().addresses
    if args.peer is not None:
        netmap = node.netmap.value
        peer = netmap.peer_by_name(args.peer) if netmap is not None else None
        if peer is None:
            raise ConfigError(f"no peer is called {args.peer!r}", hint="`status` lists the peers")
        addresses = tuple(str(prefix).partition("/")[0] for prefix in peer.addresses)
    shown = [ip for ip in addresses if not (args.only4 and ":" in ip) and not (args.only6 and ":" not in ip)]
    if args.json:
        progress.say("ip", "", addresses=shown)
    else:
        sys.stdout.write("".join(f"{ip}\n" for ip in shown))
