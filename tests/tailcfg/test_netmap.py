"""Questions to a network map, and the address forms of filter rules."""

import pytest

from tsnetpy.base.addr import parse_ip
from tsnetpy.base.keys import NodePublic
from tsnetpy.tailcfg import CapGrant, FilterRule, NetMap, NetPortRange, Node, PortRange, UserProfile
from tsnetpy.tailcfg.filter import EVERYWHERE, ip_ranges, matches_any


def node(number: int, name: str) -> Node:
    return Node(
        id=number,
        name=f"{name}.lab.test.",
        user=1,
        key=NodePublic(bytes([number]) * 32),
        addresses=(f"100.64.0.{number}/32", f"fd7a:115c:a1e0::{number}/128"),
        allowed_ips=(f"100.64.0.{number}/32", "10.1.0.0/16", "10.1.2.3/8"),
    )


def make_map(rules: tuple[FilterRule, ...] = ()) -> NetMap:
    return NetMap(
        self_node=node(1, "self"),
        peers={2: node(2, "Web"), 3: node(3, "db")},
        user_profiles={1: UserProfile(id=1, login_name="a@b")},
        packet_filter=rules,
    )


def test_finding_nodes() -> None:
    netmap = make_map()
    web = netmap.peers[2]
    assert netmap.magic_dns_suffix == "lab.test"
    assert netmap.peer_by_ip(parse_ip("100.64.0.2")) is web
    assert netmap.peer_by_ip(parse_ip("::ffff:100.64.0.2")) is web
    assert netmap.peer_by_ip(parse_ip("fd7a:115c:a1e0::3")) is netmap.peers[3]
    assert netmap.peer_by_ip(parse_ip("10.1.0.1")) is None, "a subnet route does not make an identity"
    assert netmap.peer_by_key(bytes([2]) * 32) is web
    assert netmap.peer_by_name("web") is web
    assert netmap.peer_by_name("WEB.lab.test.") is web
    assert netmap.peer_by_name("web.other.test") is None
    assert netmap.peer_by_name("self") is netmap.self_node
    assert netmap.user_of(web) == UserProfile(id=1, login_name="a@b")


def test_prefixes_with_host_bits_are_left_out() -> None:
    assert [str(prefix) for prefix in node(2, "x").allowed_prefixes] == ["100.64.0.2/32", "10.1.0.0/16"]
    assert (
        Node(addresses=("100.64.0.9/32",)).allowed_prefixes
        == Node(addresses=("100.64.0.9/32",), allowed_ips=("100.64.0.9/32",)).allowed_prefixes
    )
    assert Node(addresses=("100.64.0.9/32",), allowed_ips=()).allowed_prefixes == ()


def test_capability_grants() -> None:
    grant = CapGrant(dsts=("100.64.0.1/32",), cap_map={"x/cap": [{"role": "admin"}], "y/cap": None})
    rules = (
        FilterRule(src_ips=("100.64.0.2-100.64.0.2",), cap_grant=(grant,)),
        FilterRule(src_ips=("100.64.0.0/24",), cap_grant=(CapGrant(dsts=("*",), cap_map={"x/cap": [7]}),)),
        FilterRule(src_ips=("cap:foo",), cap_grant=(CapGrant(dsts=("*",), cap_map={"z": None}),)),
        FilterRule(src_ips=(), cap_grant=(grant,)),
    )
    netmap = make_map(rules)
    assert netmap.peer_capabilities(parse_ip("100.64.0.2")) == {"x/cap": [{"role": "admin"}, 7], "y/cap": []}
    assert netmap.peer_capabilities(parse_ip("100.64.0.3")) == {"x/cap": [7]}
    assert netmap.peer_capabilities(parse_ip("fd7a:115c:a1e0::2")) == {}


@pytest.mark.parametrize(
    ("form", "first", "last"),
    [
        ("100.64.0.1", "100.64.0.1", "100.64.0.1"),
        ("10.0.0.0/8", "10.0.0.0", "10.255.255.255"),
        ("100.64.0.0-100.115.91.255", "100.64.0.0", "100.115.91.255"),
        ("fd7a:115c:a1e0::/48", "fd7a:115c:a1e0::", "fd7a:115c:a1e0:ffff:ffff:ffff:ffff:ffff"),
        ("fd7a::1-fd7a::3", "fd7a::1", "fd7a::3"),
    ],
)
def test_address_forms(form: str, first: str, last: str) -> None:
    assert ip_ranges(form) == ((parse_ip(first), parse_ip(last)),)


@pytest.mark.parametrize("form", ["", "x", "10.0.0.1/8", "1.1.1.2-1.1.1.1", "1.1.1.1-::1", "cap:x", "1.1.1.1-"])
def test_what_is_no_address_form(form: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        ip_ranges(form)
    assert not matches_any((form,), parse_ip("10.0.0.1"))


def test_star_is_both_families() -> None:
    assert ip_ranges("*") == EVERYWHERE
    assert matches_any(("*",), parse_ip("::1"))


def test_rule_protocols() -> None:
    assert FilterRule().protos == {6, 17, 1, 58}
    assert FilterRule(ip_proto=(47, -1, 300)).protos == {47}
    assert FilterRule(dst_ports=(NetPortRange(ip="*", bits=8, ports=PortRange(first=1, last=2)),)).is_obsolete_form
