"""Map responses applied: a recorded stream, then rule by rule."""

import pytest

from tests.tailcfg.kit import load, names, raw
from tsnetpy.base.addr import parse_ip
from tsnetpy.base.errors import RemoteProtocolError
from tsnetpy.base.keys import DiscoPublic, NodePublic
from tsnetpy.tailcfg import (
    DERPMap,
    DERPRegion,
    DNSConfig,
    FilterRule,
    MapResponse,
    NetMap,
    NetPortRange,
    Node,
    PeerChange,
    PingRequest,
    SSHPolicy,
    SSHRule,
    UserProfile,
    decode,
)
from tsnetpy.tailcfg.derpmap import DERPHomeParams
from tsnetpy.tailcfg.mapping import Debug, DisplayMessage, TKAInfo
from tsnetpy.tailcfg.times import GO_ZERO, from_wall_ns, to_wall_ns
from tsnetpy.ts2021.netmap import MapSession

NOW = 1_800_000_000 * 10**9
SELF = Node(id=1, name="self.lab.test.", addresses=("100.64.0.1/32",))
PEERS = tuple(
    Node(id=n, name=f"p{n}.lab.test.", addresses=(f"100.64.0.{n}/32",), key=NodePublic(bytes([n]) * 32)) for n in (2, 3)
)
RULE = FilterRule(src_ips=("*",), dst_ports=(NetPortRange(ip="*"),))
OTHER_RULE = FilterRule(src_ips=("100.64.0.2",), dst_ports=(NetPortRange(ip="*"),))


def started(first: MapResponse | None = None) -> MapSession:
    session = MapSession()
    session.apply(first or MapResponse(node=SELF, peers=PEERS), NOW)
    return session


def after(session: MapSession, response: MapResponse) -> NetMap:
    netmap = session.apply(response, NOW).netmap
    assert netmap is not None
    return netmap


def peer(netmap: NetMap, number: int) -> Node:
    return netmap.peers[number]


# -- the recorded stream ---


def recorded_stream() -> list[tuple[str, MapResponse]]:
    return [(name[3:], decode(raw(load(name)), MapResponse)) for name in names() if "21" <= name[:2] <= "39"]


def test_the_recorded_stream_gives_the_expected_maps() -> None:
    session = MapSession()
    maps: dict[str, NetMap] = {}
    changed: dict[str, bool] = {}
    latest: NetMap | None = None
    for name, response in recorded_stream():
        applied = session.apply(response, NOW)
        changed[name] = applied.netmap is not None
        latest = applied.netmap or latest
        assert latest is not None
        maps[name] = latest

    assert [name for name, did in changed.items() if not did] == ["map-empty", "map-keepalive", "map-ping-request"]

    first = maps["map-first"]
    assert first.self_node.name == "alpha.lab.test."
    assert first.magic_dns_suffix == "lab.test"
    assert list(first.peers) == [1]
    assert peer(first, 1).online is False
    assert first.domain == "192.0.2.1"
    assert first.derp_map is not None
    assert list(first.derp_map.known_regions) == [900]
    assert len(first.packet_filter) == 1
    assert first.ssh_policy is not None

    registered = maps["map-peer-registered"]
    assert peer(registered, 3).disco_key is None
    assert peer(registered, 3).online is False
    assert peer(maps["map-peer-online"], 3).online is True
    assert peer(maps["map-peer-online"], 3).disco_key is None
    assert peer(maps["map-peer-netinfo"], 3).disco_key is not None
    assert peer(maps["map-peer-netinfo"], 3).home_derp == 900
    assert "10.20.0.0/24" in (peer(maps["map-routes-approved"], 3).allowed_ips or ())
    assert peer(maps["map-peer-ssh"], 3).name == "beta.lab.test."
    assert len(peer(maps["map-peer-ssh"], 3).hostinfo.ssh_host_keys) == 3

    policy = maps["map-policy"]
    assert policy.self_node.cap_map["magicdns-aaaa"] is None
    assert len(policy.packet_filter) == 7
    assert policy.peer_capabilities(parse_ip("100.64.0.3")) == {
        "example.test/cap/demo": [{"role": "admin", "n": 1}],
        "tailscale.com/cap/drive": [{"shares": ["*"], "access": "rw"}],
    }

    hidden = maps["map-policy-hides-peers"]
    assert hidden.peers == {}
    assert hidden.packet_filter == ()
    assert hidden.ssh_policy == policy.ssh_policy, "an absent policy keeps the old one"
    assert hidden.user_profiles == policy.user_profiles, "profiles are never deleted"

    tagged = maps["map-peer-tagged"]
    assert peer(tagged, 3).tags == ("tag:web",)
    profile = tagged.user_of(peer(tagged, 3))
    assert profile is not None
    assert profile.login_name == "tagged-devices"

    deleted = maps["map-peer-deleted"]
    assert sorted(deleted.peers) == [3, 4, 5, 6, 8, 9]
    assert not peer(deleted, 5).is_expired(NOW - 10**18)
    assert peer(deleted, 5).is_expired(to_wall_ns(from_wall_ns(NOW)))  # its KeyExpiry is before NOW

    assert peer(maps["map-peer-offline"], 3).online is False
    assert "10.20.0.0/24" not in (peer(maps["map-peer-offline-node"], 3).allowed_ips or ())
    assert "0.0.0.0/0" in (peer(maps["map-peer-offline-node"], 3).allowed_ips or ())
    assert any(node.expired for node in maps["map-peer-expired"].peers.values())
    assert maps["map-self-expired"].self_node.is_expired(NOW)
    assert not maps["map-ping-request"].self_node.expired
    assert first.peers.keys() == {1}, "a published map never changes"


def test_the_recorded_ping_comes_once() -> None:
    session = started()
    ping = dict(recorded_stream())["map-ping-request"]
    applied = session.apply(ping, NOW)
    assert applied.ping is not None
    assert applied.ping.log
    assert session.apply(ping, NOW).ping is None


# -- rule by rule ---


def test_the_first_message_needs_a_node() -> None:
    session = MapSession()
    assert session.apply(MapResponse(keep_alive=True), NOW).netmap is None
    with pytest.raises(RemoteProtocolError):
        session.apply(MapResponse(peers=PEERS), NOW)


def test_an_empty_peer_list_changes_nothing() -> None:
    session = started()
    assert session.apply(MapResponse(peers=()), NOW).netmap is None
    assert after(session, MapResponse(peers_removed=(2, 3, 99))).peers == {}


def test_a_full_list_beats_every_delta_beside_it() -> None:
    netmap = after(
        started(), MapResponse(peers=PEERS[:1], peers_removed=(2,), online_change={2: True}, peers_changed=PEERS[1:])
    )
    assert list(netmap.peers) == [2]
    assert peer(netmap, 2).online is None


def test_deltas_apply_in_order() -> None:
    netmap = after(
        started(),
        MapResponse(
            peers_removed=(2,),
            peers_changed=(PEERS[0],),
            peer_seen_change={2: True, 77: True},
            online_change={2: False, 77: True},
            peers_changed_patch=(PeerChange(node_id=2, online=True), PeerChange(node_id=77, online=True)),
        ),
    )
    assert peer(netmap, 2).last_seen == from_wall_ns(NOW)
    assert peer(netmap, 2).online is True, "the patch comes last"
    assert 77 not in netmap.peers
    assert peer(after(started(), MapResponse(peer_seen_change={2: False})), 2).last_seen is None


def test_a_patch_applies_what_is_present() -> None:
    session = started()
    disco = DiscoPublic(bytes([9]) * 32)
    patched = peer(
        after(
            session,
            MapResponse(
                peers_changed_patch=(
                    PeerChange(
                        node_id=2,
                        derp_region=7,
                        cap=99,
                        cap_map={"a": None},
                        endpoints=("1.2.3.4:5",),
                        key=NodePublic(bytes([8]) * 32),
                        disco_key=disco,
                        key_expiry=from_wall_ns(NOW),
                        last_seen=from_wall_ns(NOW),
                    ),
                )
            ),
        ),
        2,
    )
    assert (patched.home_derp, patched.cap, patched.cap_map) == (7, 99, {"a": None})
    assert (patched.endpoints, patched.disco_key) == (("1.2.3.4:5",), disco)
    assert patched.key == NodePublic(bytes([8]) * 32)
    assert patched.name == PEERS[0].name
    same = peer(after(session, MapResponse(peers_changed_patch=(PeerChange(node_id=2),))), 2)
    assert same == patched
    cleared = peer(
        after(session, MapResponse(peers_changed_patch=(PeerChange(node_id=2, endpoints=(), key_expiry=GO_ZERO),))), 2
    )
    assert cleared.endpoints == ()
    assert cleared.key_expiry is None, "the zero time lifts the expiry"


def test_an_overtaken_disco_announcement_is_dropped() -> None:
    session = started()
    after(session, MapResponse(peers_changed_patch=(PeerChange(node_id=2, last_seen=from_wall_ns(NOW)),)))
    late = PeerChange(
        node_id=2, disco_key=DiscoPublic(bytes([9]) * 32), online=False, last_seen=from_wall_ns(NOW), derp_region=5
    )
    assert peer(after(session, MapResponse(peers_changed_patch=(late,))), 2).home_derp == 0
    newer = PeerChange(node_id=2, disco_key=late.disco_key, online=False, last_seen=from_wall_ns(NOW + 10**9))
    assert peer(after(session, MapResponse(peers_changed_patch=(newer,))), 2).disco_key == late.disco_key


def test_filter_chunks() -> None:
    session = started()
    assert after(session, MapResponse(packet_filter=(RULE,))).packet_filter == (RULE,)
    assert after(session, MapResponse(packet_filters={"x": (OTHER_RULE,)})).packet_filter == (RULE, OTHER_RULE)
    assert after(session, MapResponse(packet_filters={"base": None})).packet_filter == (OTHER_RULE,)
    assert after(session, MapResponse(packet_filters={"*": None, "y": (RULE,)})).packet_filter == (RULE,)
    assert after(session, MapResponse(packet_filters={"y": ()})).packet_filter == ()
    assert after(session, MapResponse(packet_filter=(RULE,))).packet_filter == (RULE,)
    assert after(session, MapResponse(packet_filter=())).packet_filter == (), "present and empty blocks all"


def test_a_spoilt_filter_blocks_all() -> None:
    session = started()
    bits = FilterRule(src_ips=("*",), dst_ports=(NetPortRange(ip="1.2.3.4", bits=32),))
    assert after(session, MapResponse(packet_filter=(RULE, bits))).packet_filter == ()
    assert after(session, MapResponse(packet_filter=(FilterRule(src_ips=("*",), src_bits=(8,)),))).packet_filter == ()
    unsigned = Node(id=4, addresses=("100.64.0.4/32",), allowed_ips=("0.0.0.0/0",), unsigned_peer_api_only=True)
    netmap = after(session, MapResponse(peers_changed=(unsigned,), packet_filter=(RULE,)))
    assert netmap.packet_filter == (), "a rule would let an unsigned peer in"
    assert peer(netmap, 4).allowed_ips == ("100.64.0.4/32",)
    assert after(session, MapResponse(packet_filter=(OTHER_RULE,))).packet_filter == (OTHER_RULE,)


def test_legacy_forms_are_normalised() -> None:
    node = Node(id=9, derp="127.3.3.40:12", addresses=("100.64.0.9/32",))
    netmap = after(started(), MapResponse(peers_changed=(node, Node(id=10, allowed_ips=(), derp="127.3.3.40:x"))))
    assert peer(netmap, 9).home_derp == 12
    assert peer(netmap, 9).allowed_ips == ("100.64.0.9/32",)
    assert peer(netmap, 10).allowed_ips == ()
    assert peer(netmap, 10).home_derp == 0
    me = Node(id=1, capabilities=("old", "both"), cap_map={"both": [1]})
    assert after(started(), MapResponse(node=me)).self_node.cap_map == {"both": [1], "old": None}


def test_derp_map_updates() -> None:
    one, two = DERPRegion(region_id=1), DERPRegion(region_id=2)
    home = DERPHomeParams(region_score={1: 2.0})
    session = started()
    after(
        session, MapResponse(derp_map=DERPMap(regions={1: one, 5: None}, home_params=home, omit_default_regions=True))
    )
    kept = after(session, MapResponse(derp_map=DERPMap())).derp_map
    assert kept == DERPMap(regions={1: one}, home_params=home, omit_default_regions=True)
    replaced = after(session, MapResponse(derp_map=DERPMap(regions={2: two}))).derp_map
    assert replaced == DERPMap(regions={2: two}, home_params=home)
    reset = after(session, MapResponse(derp_map=DERPMap(home_params=DERPHomeParams(region_score={})))).derp_map
    assert reset is not None
    assert reset.home_params == DERPHomeParams(region_score={})


def test_what_is_absent_stays() -> None:
    dns, ssh = DNSConfig(domains=("a",)), SSHPolicy(rules=(SSHRule(),))
    session = started()
    after(
        session,
        MapResponse(
            dns_config=dns, ssh_policy=ssh, domain="d", health=("h",), tka_info=TKAInfo(head="x"), collect_services=True
        ),
    )
    netmap = after(session, MapResponse(user_profiles=(UserProfile(id=5, login_name="e"),)))
    assert (netmap.dns_config, netmap.ssh_policy, netmap.domain, netmap.health) == (dns, ssh, "d", ("h",))
    assert netmap.tailnet_lock_head == "x"
    assert netmap.collect_services
    cleared = after(session, MapResponse(health=(), ssh_policy=SSHPolicy(), tka_info=TKAInfo(head="x", disabled=True)))
    assert (cleared.health, cleared.ssh_policy, cleared.tailnet_lock_head) == ((), SSHPolicy(), "")


def test_display_messages() -> None:
    session = started()
    message = DisplayMessage(title="t")
    assert after(session, MapResponse(display_messages={"a": message, "b": message})).display_messages.keys() == {
        "a",
        "b",
    }
    assert after(session, MapResponse(display_messages={"a": None})).display_messages.keys() == {"b"}
    assert after(session, MapResponse(display_messages={"*": None, "c": message})).display_messages.keys() == {"c"}


def test_side_requests() -> None:
    session = started()
    applied = session.apply(
        MapResponse(keep_alive=True, pop_browser_url="https://x", ping_request=PingRequest(url="u1")), NOW
    )
    assert (applied.pop_browser_url, applied.netmap) == ("https://x", None)
    assert applied.ping == PingRequest(url="u1")
    again = session.apply(MapResponse(pop_browser_url="https://x", ping_request=PingRequest(url="u2")), NOW)
    assert again.pop_browser_url == ""
    assert again.ping == PingRequest(url="u2")
    assert session.apply(MapResponse(debug=Debug(sleep_seconds=2.5)), NOW).sleep_seconds == 2.5
