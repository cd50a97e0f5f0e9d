"""Network map to configurations: tables of what must come out."""

from datetime import UTC, datetime

import pytest

from tests.node.kit import key, netmap, node, rule
from tsnetpy.base.addr import Endpoint, IpPrefix, parse_ip, parse_prefix
from tsnetpy.base.packet import PROTO_TCP
from tsnetpy.dns import resolve_name
from tsnetpy.node import derive
from tsnetpy.tailcfg import DERPMap, DERPNode, DERPRegion, DNSConfig, DNSRecord, NetPortRange, PortRange
from tsnetpy.tailcfg import FilterRule as WireRule
from tsnetpy.tailcfg.derpmap import DERPHomeParams
from tsnetpy.tailcfg.times import to_wall_ns

PRIVATE = bytes(range(32))
NOW = to_wall_ns(datetime(2026, 1, 1, tzinfo=UTC))


def allowed(config: object, n: int) -> list[str]:
    specs = {spec.public_key: spec for spec in config.peers}  # type: ignore[attr-defined]  # a DataPlaneConfig
    return [str(prefix) for prefix in specs[key(n).raw].allowed_ips]


def test_addresses_and_peers() -> None:
    config = derive.dataplane_config(netmap(node(2, "b")), PRIVATE, NOW)
    assert config.addresses == (parse_ip("100.64.0.1"), parse_ip("fd7a:115c:a1e0::1"))
    assert config.private_key == PRIVATE
    assert allowed(config, 2) == ["100.64.0.2/32", "fd7a:115c:a1e0::2/128"]
    assert config == derive.dataplane_config(netmap(node(2, "b")), PRIVATE, NOW)


def test_routes_are_used_only_if_asked_for_and_default_routes_never() -> None:
    router = node(
        2, "router", allowed_ips=("100.64.0.2/32", "fd7a:115c:a1e0::2/128", "10.1.0.0/16", "0.0.0.0/0", "::/0")
    )
    own = ["100.64.0.2/32", "fd7a:115c:a1e0::2/128"]
    assert allowed(derive.dataplane_config(netmap(router), PRIVATE, NOW), 2) == own
    accepting = derive.dataplane_config(netmap(router), PRIVATE, NOW, accept_routes=True)
    assert allowed(accepting, 2) == [*own, "10.1.0.0/16"]
    table = derive.route_table(netmap(router), accept_routes=True, accept_exit_routes=False)
    assert table.lookup(parse_ip("10.1.2.3")) == key(2).raw
    assert table.lookup(parse_ip("8.8.8.8")) is None


@pytest.mark.parametrize(
    "peer",
    [
        node(2, "b", expired=True),
        node(2, "b", key_expiry=datetime(2025, 12, 31, tzinfo=UTC)),
        node(2, "b", key=key(0)),
        node(2, "b", key=key(1)),  # ourselves in the peer list
    ],
)
def test_unusable_peers_are_left_out(peer: object) -> None:
    usable = netmap(peer)  # type: ignore[arg-type]  # a Node
    if peer.key == key(1):  # type: ignore[attr-defined]  # as above
        usable = netmap(peer, self_node=node(1, "self"))  # type: ignore[arg-type]  # as above
    assert derive.dataplane_config(usable, PRIVATE, NOW).peers == ()
    assert derive.underlay_config(usable, PRIVATE, NOW).peers == ()


def test_tailnet_lock_leaves_unsigned_peers_out() -> None:
    peers = (node(2, "b"), node(3, "c", key_signature=b"sig"), node(4, "d", unsigned_peer_api_only=True))
    config = derive.dataplane_config(netmap(*peers, tailnet_lock_head="head"), PRIVATE, NOW)
    assert {spec.public_key for spec in config.peers} == {key(3).raw, key(4).raw}


def test_next_expiry_is_the_earliest_to_come() -> None:
    dates = [datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC), datetime(2025, 2, 1, tzinfo=UTC), None]
    peers = [node(n + 2, f"p{n}", key_expiry=date) for n, date in enumerate(dates)]
    assert derive.next_expiry(netmap(*peers), NOW) == to_wall_ns(datetime(2026, 2, 1, tzinfo=UTC))
    assert derive.next_expiry(netmap(peers[3]), NOW) is None


def test_underlay_peers() -> None:
    peers = (
        node(2, "b", endpoints=("192.0.2.1:41641", "bad", "[2001:db8::1]:1"), home_derp=7),
        node(3, "c", is_wireguard_only=True),
        node(4, "d", disco_key=None),
    )
    config = derive.underlay_config(netmap(*peers), PRIVATE, NOW)
    b, c, d = config.peers
    assert b.endpoints == (Endpoint(parse_ip("192.0.2.1"), 41641), Endpoint(parse_ip("2001:db8::1"), 1))
    assert (b.home_derp, b.disco_key) == (7, bytes([102]) * 32)
    assert c.disco_key is None
    assert d.disco_key is None
    assert PRIVATE.hex() not in repr(config)


def test_derp_map_defaults() -> None:
    source = DERPMap(
        regions={
            1: DERPRegion(region_id=1, region_code="a", nodes=(DERPNode(name="1a", region_id=1, host_name="h"),)),
            2: DERPRegion(region_id=2, avoid=True, nodes=(DERPNode(name="2a", stun_port=-1, derp_port=8443),)),
            3: None,
        },
        home_params=DERPHomeParams(region_score={1: 0.5}),
    )
    result = derive.derp_map(source)
    assert set(result.regions) == {1, 2}
    assert (result.regions[1].nodes[0].stun_port, result.regions[1].nodes[0].derp_port) == (3478, 443)
    assert (result.regions[2].nodes[0].stun_port, result.regions[2].nodes[0].derp_port) == (-1, 8443)
    assert result.regions[2].no_measure_no_home
    assert result.region_scores == {1: 0.5}
    assert not derive.derp_map(None).regions


def lets_in(netmap_: object, source: str, port: int, *, to: str = "100.64.0.1", proto: int = PROTO_TCP) -> bool:
    """Tell whether a rule covers a packet that opens a flow."""
    rules = derive.filter_rules(netmap_)  # type: ignore[arg-type]  # a NetMap
    src, dst = parse_ip(source), parse_ip(to)
    return any(
        proto in r.protos
        and any(lo <= src <= hi for lo, hi in r.srcs if len(lo) == len(src))
        and any(d.ips.lo <= dst <= d.ips.hi and d.first_port <= port <= d.last_port for d in r.dsts)
        for r in rules
    )


def test_filter_forms() -> None:
    ssh = PortRange(first=22, last=22)
    assert lets_in(netmap(packet_filter=(rule("*"),)), "100.64.0.9", 80)
    assert not lets_in(netmap(packet_filter=()), "100.64.0.9", 80)
    one = netmap(packet_filter=(rule("100.64.0.2", "100.64.0.4-100.64.0.6", "fd7a:115c:a1e0::/48", ports=ssh),))
    assert [lets_in(one, f"100.64.0.{n}", 22) for n in range(1, 8)] == [False, True, False, True, True, True, False]
    assert not lets_in(one, "100.64.0.2", 23)
    assert not lets_in(one, "100.64.0.2", 22, proto=17) or 17 in derive.filter_rules(one)[0].protos
    assert lets_in(one, "fd7a:115c:a1e0::77", 22, to="fd7a:115c:a1e0::1") is True
    odd = netmap(packet_filter=(rule("10.0.0.1/8", "nonsense", "100.64.0.2"), rule(), rule("*", to="10.0.0.1/8")))
    assert derive.filter_rules(odd)[0].srcs == ((parse_ip("100.64.0.2"), parse_ip("100.64.0.2")),)
    assert len(derive.filter_rules(odd)) == 1


def test_filter_obsolete_fields_close_everything() -> None:
    bad = WireRule(src_ips=("*",), dst_ports=(NetPortRange(ip="*", bits=8),))
    assert derive.filter_rules(netmap(packet_filter=(rule("*"), bad))) == ()


def test_filter_capability_sources() -> None:
    peers = (node(2, "b", cap_map={"example.com/cap/x": None}), node(3, "c"))
    rules = netmap(*peers, packet_filter=(rule("cap:example.com/cap/x"),))
    assert lets_in(rules, "100.64.0.2", 80)
    assert not lets_in(rules, "100.64.0.3", 80)


def test_filter_jailed_peer_opens_nothing() -> None:
    peers = (node(2, "b", is_jailed=True), node(3, "c"))
    rules = netmap(*peers, packet_filter=(rule("*"), rule("100.64.0.2"), rule("100.64.0.0-100.64.0.2")))
    assert [lets_in(rules, f"100.64.0.{n}", 80) for n in range(4)] == [True, True, False, True]
    assert not lets_in(rules, "fd7a:115c:a1e0::2", 80, to="fd7a:115c:a1e0::1")


def test_filter_with_an_unsigned_peer_as_source_is_not_trusted_at_all() -> None:
    peers = (node(2, "b", unsigned_peer_api_only=True), node(3, "c"))
    assert derive.filter_rules(netmap(*peers, packet_filter=(rule("100.64.0.3"), rule("*")))) == ()
    assert len(derive.filter_rules(netmap(*peers, packet_filter=(rule("100.64.0.3"),)))) == 1


def test_names() -> None:
    dns = DNSConfig(
        domains=("tail.example",),
        proxied=True,
        routes={"corp.example": ()},
        extra_records=(
            DNSRecord(name="db.tail.example", value="100.64.0.9"),
            DNSRecord(name="txt.tail.example", type="TXT", value="100.64.0.9"),
            DNSRecord(name="odd.tail.example", type="AAAA", value="100.64.0.9"),
            DNSRecord(name="bad.tail.example", value="nonsense"),
        ),
    )
    table = derive.magic_table(netmap(node(2, "b", cap_map={"dns-subdomain-resolve": None}), dns_config=dns))
    b = (parse_ip("100.64.0.2"), parse_ip("fd7a:115c:a1e0::2"))
    for name in ("b", "B.Tail.Example.", "b.tail.example", "x.b.tail.example"):
        assert resolve_name(table, name) == b, name
    assert resolve_name(table, "self")[0] == parse_ip("100.64.0.1")
    assert resolve_name(table, "db") == (parse_ip("100.64.0.9"),)
    for name in ("nobody", "txt", "odd", "bad", "b.example"):
        assert resolve_name(table, name) == (), name
    assert table.zone_of("x.corp.example") == "corp.example"
    # Only one family is shown to DNS clients, unless the policy says otherwise.
    assert table.answers_for("b.tail.example") == b[:1]
    shown = derive.magic_table(netmap(node(2, "b"), self_node=node(1, "self", cap_map={"magicdns-aaaa": None})))
    assert shown.answers_for("b.tail.example") == b


def test_prefixes_with_host_bits_are_no_routes() -> None:
    router = node(2, "router", allowed_ips=("100.64.0.2/32", "10.0.0.1/8", "10.1.0.0/16"))
    config = derive.dataplane_config(netmap(router), PRIVATE, NOW, accept_routes=True)
    assert config.peers[0].allowed_ips == (IpPrefix(parse_ip("100.64.0.2"), 32), parse_prefix("10.1.0.0/16"))
