"""``ping``: how a peer answers, and over which path."""

import argparse
import errno
import sys

import anyio

from tsnetpy.base.errors import DialError
from tsnetpy.node.node import Node, PingReply
from tsnetpy.node.program import Exit, Progress

from ._command import Subparsers, add_command


def register(commands: Subparsers) -> None:
    """Add the command."""
    parser = add_command(commands, "ping", "ping a peer and show the path", _ping)
    parser.add_argument("peer", help="name or address")
    parser.add_argument("-c", dest="count", type=int, default=10, help="pings to send (default 10)")
    parser.add_argument("--wait", type=float, default=5.0, metavar="S", help="seconds to wait for each answer")
    parser.add_argument("--interval", type=float, default=1.0, metavar="S", help="seconds between pings")
    parser.add_argument(
        "--icmp", dest="kind", action="store_const", const="icmp", help="through the tunnel to the peer's IP stack"
    )
    parser.add_argument(
        "--until-direct", action=argparse.BooleanOptionalAction, default=True, help="stop once the path is direct"
    )
    parser.set_defaults(kind="disco")


async def _ping(node: Node, args: argparse.Namespace, progress: Progress) -> int:
    answered = 0
    for number in range(args.count):
        if number:
            await anyio.sleep(args.interval)
        try:
            reply = await node.ping(args.peer, kind=args.kind, timeout_s=args.wait)
        except DialError as error:
            if error.errno != errno.ETIMEDOUT:
                raise
            progress.say("timeout", "", peer=args.peer, message=str(error))
            if not args.json:
                sys.stdout.write(f"{error}\n")
            continue
        answered += 1
        milliseconds = reply.latency_ns / 1e6
        progress.say("pong", "", peer=reply.name, ip=reply.address, ms=round(milliseconds, 3), via=via(reply))
        if not args.json:
            sys.stdout.write(f"pong from {reply.name} ({reply.address}) via {via(reply)} in {milliseconds:.1f} ms\n")
            sys.stdout.flush()
        if args.until_direct and reply.via == "direct":
            break
    return Exit.OK if answered else Exit.DIAL


def via(reply: PingReply) -> str:
    """Return the path of a reply in words: an address, a DERP region, or the tunnel."""
    if reply.endpoint is not None:
        return str(reply.endpoint)
    return f"DERP({reply.region})" if reply.via == "derp" else "the tunnel"
