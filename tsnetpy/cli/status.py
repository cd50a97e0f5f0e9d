"""``status``: this node, its peers, and the paths to them."""

import argparse
import sys

from tsnetpy.node.node import Node
from tsnetpy.node.program import Progress
from tsnetpy.node.status import NodeStatus, PeerStatus

from ._command import Subparsers, add_command


def register(commands: Subparsers) -> None:
    """Add the command."""
    parser = add_command(commands, "status", "show this node and its peers", _status)
    parser.add_argument("--no-peers", action="store_true", help="this node only")


async def _status(node: Node, args: argparse.Namespace, progress: Progress) -> None:
    status = node.status()
    peers = () if args.no_peers else status.peers
    if args.json:
        progress.say("status", "", **as_fields(status), peers=[peer_fields(peer) for peer in peers])
        return
    rows = [(status.addresses[0] if status.addresses else "-", status.name, "(this node)", "-")]
    rows += [(peer.addresses[0], peer.name, peer.login_name, describe(peer)) for peer in peers if peer.addresses]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)]
        sys.stdout.write("  ".join([*cells, row[3]]).rstrip() + "\n")
    for line in status.health:
        sys.stdout.write(f"# {line}\n")


def describe(peer: PeerStatus) -> str:
    """Return a peer's state in a few words, as ``tailscale status`` puts it."""
    if peer.expired:
        return "expired"
    if peer.online is False:
        return "offline"
    if peer.path is None or peer.handshake_age_s is None:
        return "-"
    if peer.path.cur_addr is not None:
        return f"active; direct {peer.path.cur_addr}"
    return f"active; relay {peer.path.relay}"


def as_fields(status: NodeStatus) -> dict[str, object]:
    """Return what ``--json`` says of the node itself."""
    return {
        "backend_state": status.backend_state,
        "name": status.name,
        "addresses": list(status.addresses),
        "tailnet": status.tailnet,
        "magic_dns_suffix": status.magic_dns_suffix,
        "control_url": status.control_url,
        "health": list(status.health),
        "counters": dict(status.counters),
        "drops": dict(status.drops),
        "accel": status.accel,
        "compiled": status.compiled,
    }


def peer_fields(peer: PeerStatus) -> dict[str, object]:
    """Return what ``--json`` says of a peer."""
    return {
        "name": peer.name,
        "addresses": list(peer.addresses),
        "login_name": peer.login_name,
        "online": peer.online,
        "expired": peer.expired,
        "state": describe(peer),
    }
