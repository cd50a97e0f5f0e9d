"""Network maps for tests."""

from dataclasses import replace
from typing import Any

from tsnetpy.base.keys import DiscoPublic, NodePublic
from tsnetpy.tailcfg import FilterRule, NetMap, NetPortRange, Node, PortRange, UserProfile

ALL_PORTS = PortRange(first=0, last=65535)


def key(n: int) -> NodePublic:
    return NodePublic(bytes([n]) * 32)


def node(n: int, name: str, **fields: Any) -> Node:
    values: dict[str, Any] = {
        "id": n,
        "stable_id": f"n{n}",
        "name": f"{name}.tail.example.",
        "user": 1,
        "key": key(n),
        "disco_key": DiscoPublic(bytes([n + 100]) * 32),
        "addresses": (f"100.64.0.{n}/32", f"fd7a:115c:a1e0::{n}/128"),
        "machine_authorized": True,
    }
    return Node(**(values | fields))


def netmap(*peers: Node, **fields: Any) -> NetMap:
    base = NetMap(
        self_node=node(1, "self"),
        peers={peer.id: peer for peer in peers},
        user_profiles={1: UserProfile(id=1, login_name="alice@example.com", display_name="Alice", profile_pic_url="p")},
    )
    return replace(base, **fields)


def rule(*sources: str, to: str = "*", ports: PortRange = ALL_PORTS, **fields: Any) -> FilterRule:
    return FilterRule(src_ips=sources, dst_ports=(NetPortRange(ip=to, ports=ports),), **fields)
