"""Two whole data planes: data through loss, policy, TSMP, configuration changes, and hostile packets."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dataplane.kit import A4, A6, ALLOW_ALL, B4, B6, START, World, hosts, transfer
from tests.wg.kit import WALL, SeededEntropy, ipv4
from tsnetpy.base.addr import Endpoint, IpBytes, parse_ip
from tsnetpy.base.errors import ConfigError, LocalProtocolError
from tsnetpy.base.instant import MILLISECOND, SECOND
from tsnetpy.base.packet import PROTO_TCP, PROTO_TSMP
from tsnetpy.crypto import dh
from tsnetpy.dataplane import (
    DataPlane,
    DataPlaneConfig,
    EndpointSeen,
    FlowRejected,
    PeerHandshake,
    PeerSpec,
    TsmpPong,
    UnknownPeerInitiation,
)
from tsnetpy.ipstack.filter import DstRange, FilterRule, IpRange
from tsnetpy.wg import Device
from tsnetpy.wire import tsmp


@pytest.mark.parametrize("to", [B4, B6], ids=["v4", "v6"])
def test_tcp_through_a_clean_link_uses_super_segments(to: IpBytes) -> None:
    world = World()
    client, server = world.connect(to)
    data = world.random.randbytes(2_000_000)
    assert transfer(world, client, server, data) == data
    stats = world.b.plane.stats()
    assert stats.drops == {}
    assert stats.rx_packets > 10 * stats.rx_units
    assert world.a.plane.stats().tx_packets == stats.rx_packets == stats.filter_accepted
    assert stats.rx_bytes == world.a.plane.stats().tx_bytes


@pytest.mark.parametrize("to", [B4, B6], ids=["v4", "v6"])
@pytest.mark.parametrize("seed", [1, 2])
def test_tcp_survives_loss_reordering_and_duplication_both_ways(to: IpBytes, seed: int) -> None:
    world = World(seed, jitter_ns=3 * MILLISECOND, loss=0.03, duplicate=0.02)
    client, server = world.connect(to)
    up, down = world.random.randbytes(300_000), world.random.randbytes(200_000)
    assert transfer(world, client, server, up) == up
    assert transfer(world, server, client, down) == down
    assert world.lost > 10
    assert world.b.plane.stats().drops.get("wg.replay", 0) > 0
    assert not any(reason.startswith(("nic.", "wg.not_authentic")) for reason in world.b.plane.stats().drops)


def test_a_long_stream_crosses_rekeys_without_a_hole() -> None:
    world = World()
    client, server = world.connect(B4)
    for i in range(300):
        payload = bytes([i % 256]) * 100
        assert client.send(payload, world.now) == 100
        world.run(SECOND)
        assert server.read(1000, world.now) == payload
    handshakes = [e for e in world.b.events if isinstance(e, PeerHandshake)]
    assert len(handshakes) == 3
    assert client.connection.info().retransmits == 0


def test_events_of_a_first_contact() -> None:
    world = World()
    world.connect(B4)
    assert PeerHandshake(peer=world.b.public, initiator=True) in world.a.events
    assert PeerHandshake(peer=world.a.public, initiator=False) in world.b.events
    assert EndpointSeen(peer=world.a.public, path=("udp", world.a.path)) in world.b.events
    info = world.b.plane.peer_info(world.a.public, world.now)
    assert info is not None
    assert info.established


def test_udp_answers_come_back_through_a_filter_that_allows_nothing() -> None:
    world = World()
    world.a.configure(world.b, world.now, ())
    server = world.b.plane.stack.udp_bind(53)
    client = world.a.plane.stack.udp_bind()
    client.send_to(b"query", Endpoint(B4, 53), world.now)
    world.run(SECOND)
    received = server.recv_from()
    assert received is not None
    assert received[0] == b"query"
    server.send_to(b"answer" * 500, received[1], world.now)  # 3,000 bytes: fragments
    world.run(SECOND)
    answer = client.recv_from()
    assert answer is not None
    assert answer[0] == b"answer" * 500
    server.send_to(b"unasked", Endpoint(A4, 9999), world.now)
    world.run(SECOND)
    assert client.recv_from() is None
    assert world.a.plane.stats().drops["filter.rule"] == 1


@pytest.mark.parametrize("to", [B4, B6], ids=["v4", "v6"])
def test_ping(to: IpBytes) -> None:
    world = World()
    echo = world.a.plane.stack.icmp_bind()
    echo.send_echo(to, 7, b"payload", world.now)
    world.run(SECOND)
    reply = echo.recv()
    assert reply is not None
    assert to in tuple(reply)
    assert b"payload" in tuple(reply)


def test_default_is_deny_and_tsmp_turns_it_into_refused() -> None:
    world = World(rules_b=())
    world.b.plane.stack.tcp_listen(80, world.now)
    client = world.a.plane.stack.tcp_connect(Endpoint(B4, 80), world.now)
    world.run(200 * MILLISECOND)
    assert client.connection.error == "refused"
    assert world.b.plane.stats().drops == {"filter.rule": 1}
    (event,) = [e for e in world.a.events if isinstance(e, FlowRejected)]
    assert event == FlowRejected(
        peer=world.b.public, proto=PROTO_TCP, local=client.local, remote=client.remote, reason=ord("A")
    )


def test_shields_up_refuses_at_once_and_says_why_over_ipv4() -> None:
    world = World()
    config = world.b.configure(world.a, world.now)
    world.b.plane.configure(dataclasses.replace(config, shields_up=True), world.now)
    world.b.plane.stack.tcp_listen(80, world.now)
    v4 = world.a.plane.stack.tcp_connect(Endpoint(B4, 80), world.now)
    v6 = world.a.plane.stack.tcp_connect(Endpoint(B6, 80), world.now)
    world.run(500 * MILLISECOND)
    assert v4.connection.error == "refused"
    assert v6.connection.error == "refused"
    assert [e.reason for e in world.a.events if isinstance(e, FlowRejected)] == [ord("S")]


def test_a_rule_opens_one_port_for_one_source_and_exempt_ports_pass() -> None:
    rule = FilterRule((IpRange(A4, A4),), (DstRange(IpRange(B4, B4), 80, 80),), frozenset({PROTO_TCP}))
    world = World(rules_b=(rule,))
    config = world.b.configure(world.a, world.now, (rule,))
    world.b.plane.configure(dataclasses.replace(config, exempt_tcp_ports=frozenset({3000})), world.now)
    for port in (80, 81, 3000):
        world.b.plane.stack.tcp_listen(port, world.now)
    stack = world.a.plane.stack
    sockets = {port: stack.tcp_connect(Endpoint(B4, port), world.now) for port in (80, 81, 3000)}
    world.run(SECOND)
    assert {port: s.connection.error for port, s in sockets.items()} == {80: None, 81: "refused", 3000: None}


def test_a_new_filter_applies_to_new_connections_only() -> None:
    world = World()
    client, server = world.connect(B4)
    world.b.configure(world.a, world.now, ())
    client.send(b"still here", world.now)
    second = world.a.plane.stack.tcp_connect(Endpoint(B4, 80), world.now)
    world.run(SECOND)
    assert server.read(100, world.now) == b"still here"
    assert second.connection.error == "refused"


def test_configuring_the_same_again_changes_nothing_and_more_peers_disturb_nobody() -> None:
    world = World()
    client, server = world.connect(B4)
    before = world.a.plane.stats().tx_datagrams
    config = world.a.configure(world.b, world.now)
    stranger = PeerSpec(b"\x09" * 32, hosts(parse_ip("100.64.0.9")))
    world.a.plane.configure(dataclasses.replace(config, peers=(*config.peers, stranger)), world.now)
    world.flush()
    assert world.a.plane.stats().tx_datagrams == before  # no new handshake
    assert world.a.plane.peer_for_ip(parse_ip("100.64.0.9")) == b"\x09" * 32
    world.a.configure(world.b, world.now)
    assert world.a.plane.peer_for_ip(parse_ip("100.64.0.9")) is None
    client.send(b"on", world.now)
    world.run(SECOND)
    assert server.read(100, world.now) == b"on"
    assert len([e for e in world.b.events if isinstance(e, PeerHandshake)]) == 1


def test_a_removed_peer_is_cut_off_at_once() -> None:
    world = World()
    client, server = world.connect(B4)
    config = world.b.configure(world.a, world.now)
    world.b.plane.configure(dataclasses.replace(config, peers=()), world.now)
    client.send(b"x", world.now)
    world.run(20 * SECOND)
    assert server.read(100, world.now) == b""
    drops = world.b.plane.stats().drops
    assert drops["wg.unknown_index"] >= 1
    assert UnknownPeerInitiation(peer=world.a.public, path=("udp", world.a.path)) in world.b.events
    server.send(b"y", world.now)
    world.run(SECOND)
    assert world.b.plane.stats().drops["plane.no_route"] >= 1


def test_a_new_node_key_is_taken_up_by_the_next_handshake() -> None:
    world = World()
    client, server = world.connect(B4)
    old = world.a.public
    world.a.private = dh.generate(SeededEntropy(50))
    world.a.public = dh.public_key(world.a.private)
    assert world.a.public != old
    world.b.configure(world.a, world.now)
    world.a.configure(world.b, world.now)
    client.send(b"same connection, new key", world.now)
    world.run(3 * SECOND)
    assert server.read(100, world.now) == b"same connection, new key"


def _attacker(world: World) -> Device:
    """A WireGuard device with b's key for a: it can seal anything."""
    device = Device(world.b.private, SeededEntropy(321))
    device.wall_offset_ns = WALL - START
    device.add_peer(world.a.public, hosts(*world.a.addresses), world.now)
    device.initiate(world.a.public, world.now)
    (initiation,) = [bytes(b.data) for _, b in device.take_outgoing()]
    world.a.plane.from_underlay([initiation], "evil", world.now)
    (response,) = [bytes(b.data) for _, b in world.a.plane.to_underlay(world.now)]
    device.receive([response], "a", world.now)
    return device


def _inject(world: World, device: Device, packets: list[bytes]) -> None:
    device.send(world.a.public, packets, world.now)
    for _, batch in device.take_outgoing():
        world.a.plane.from_underlay(batch.datagrams(), "evil", world.now)


def test_spoofed_inner_sources_never_reach_the_stack() -> None:
    world = World()
    evil = _attacker(world)
    socket = world.a.plane.stack.udp_bind(1000)
    udp = (999).to_bytes(2, "big") + (1000).to_bytes(2, "big") + (12).to_bytes(2, "big") + bytes(2) + b"data"
    good = _checksummed(ipv4("100.64.0.2", "100.64.0.1", udp))
    spoofed = _checksummed(ipv4("100.64.0.3", "100.64.0.1", udp))
    own = _checksummed(ipv4("100.64.0.1", "100.64.0.1", udp))
    _inject(world, evil, [spoofed, own])
    assert socket.recv_from() is None
    assert world.a.plane.stats().drops == {"wg.allowed_ips": 2}
    _inject(world, evil, [good])
    received = socket.recv_from()
    assert received is not None
    assert received[0] == b"data"


@pytest.mark.parametrize("dst", ["100.64.0.7", "100.100.100.100", "192.0.2.1", "224.0.0.1", "127.0.0.1"])
def test_inner_destinations_other_than_ours_are_dropped_silently(dst: str) -> None:
    world = World()
    evil = _attacker(world)
    world.a.plane.stack.udp_bind(1000)
    udp = (999).to_bytes(2, "big") + (1000).to_bytes(2, "big") + (8).to_bytes(2, "big") + bytes(2)
    _inject(world, evil, [_checksummed(ipv4("100.64.0.2", dst, udp))])
    assert sum(world.a.plane.stats().drops.values()) == 1
    assert world.a.plane.to_underlay(world.now) == []


def _checksummed(packet: bytes) -> bytes:
    total = -int.from_bytes(packet[:20], "big") % 65535
    return packet[:10] + total.to_bytes(2, "big") + packet[12:]


_SESSION_WORLD = World(7)
_SESSION = _attacker(_SESSION_WORLD)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.builds(
            lambda version, proto, body, dst: (
                _checksummed(ipv4("100.64.0.2", dst, body, proto))
                if version == 4
                else b"\x60\0\0\0" + len(body).to_bytes(2, "big") + bytes((proto, 64)) + B6 + A6 + body
            ),
            st.sampled_from([4, 6]),
            st.sampled_from([0, 1, 6, 17, 44, 58, 99, 132, 255]),
            st.binary(max_size=120),
            st.sampled_from(["100.64.0.1", "100.64.0.9"]),
        )
        | st.binary(max_size=100),
        max_size=6,
    )
)
def test_authentic_garbage_never_raises(packets: list[bytes]) -> None:
    _inject(_SESSION_WORLD, _SESSION, packets)
    _SESSION_WORLD.now += 10 * MILLISECOND
    _SESSION_WORLD.a.plane.handle_deadline(_SESSION_WORLD.now)
    for _, batch in _SESSION_WORLD.a.plane.to_underlay(_SESSION_WORLD.now):
        _SESSION.receive(batch.datagrams(), "a", _SESSION_WORLD.now)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=5))
def test_garbage_from_the_network_never_raises(datagrams: list[bytes]) -> None:
    plane = _SESSION_WORLD.a.plane
    before = sum(plane.stats().drops.values())
    plane.from_underlay(datagrams, "nowhere", _SESSION_WORLD.now)
    assert sum(plane.stats().drops.values()) == before + len(datagrams)


def test_tsmp_ping_is_answered_although_the_filter_allows_nothing() -> None:
    world = World(rules_b=())
    world.b.plane.peer_api_port = 46590
    world.a.plane.tsmp_ping(B4, b"12345678", world.now)
    world.a.plane.tsmp_ping(B6, b"abcdefgh", world.now)
    world.run(SECOND)
    pongs = [e for e in world.a.events if isinstance(e, TsmpPong)]
    assert pongs == [
        TsmpPong(peer=world.b.public, source=B4, data=b"12345678", peer_api_port=46590),
        TsmpPong(peer=world.b.public, source=B6, data=b"abcdefgh", peer_api_port=46590),
    ]
    with pytest.raises(LocalProtocolError):
        world.a.plane.tsmp_ping(B4, b"short", world.now)
    with pytest.raises(LocalProtocolError):
        DataPlane(SeededEntropy(1)).tsmp_ping(B4, b"12345678", world.now)


def test_a_pong_on_the_wire_is_what_official_nodes_send() -> None:
    world = World()
    evil = _attacker(world)
    _inject(world, evil, [_checksummed(ipv4("100.64.0.2", "100.64.0.1", b"p12345678", PROTO_TSMP))])
    ((_, (pong,)),) = [
        got
        for _, batch in world.a.plane.to_underlay(world.now)
        for got in evil.receive(batch.datagrams(), "a", world.now)
    ]
    pong = bytes(pong)
    assert pong[20:] == b"o12345678\0\0"
    assert pong[4:6] == b"\xff\xff"
    assert pong[8] == 64
    assert pong[9] == PROTO_TSMP


def test_tsmp_rejection_of_an_established_connection_is_not_believed() -> None:
    world = World()
    client, server = world.connect(B4)
    evil = _attacker(world)
    body = tsmp.Rejected(PROTO_TCP, tsmp.REASON_ACL, client.local.port, 80).encode()
    _inject(world, evil, [_checksummed(ipv4("100.64.0.2", "100.64.0.1", body, PROTO_TSMP))])
    world.run(100 * MILLISECOND)
    assert client.connection.error is None
    assert server.connection.error is None


def test_queues_stay_bounded_when_nobody_takes() -> None:
    world = World()
    evil = _attacker(world)
    ping = _checksummed(ipv4("100.64.0.2", "100.64.0.1", b"p12345678", PROTO_TSMP))
    for _ in range(20):
        _inject(world, evil, [ping] * 100)
    datagrams = sum(batch.count for _, batch in world.a.plane.to_underlay(world.now))
    assert datagrams <= 256


def test_before_configuration_everything_is_dropped_and_counted() -> None:
    plane = DataPlane(SeededEntropy(1))
    plane.from_underlay([bytes(100)] * 3, "path", START)
    assert plane.to_underlay(START) == []
    assert plane.next_event() is None
    assert plane.peer_info(b"x" * 32, START) is None
    assert plane.peer_for_ip(A4) is None
    assert plane.stats().drops == {"plane.not_configured": 3}


def test_bad_configuration_changes_nothing() -> None:
    world = World()
    config = world.a.configure(world.b, world.now)
    bad_peer = PeerSpec(b"short", ())
    for bad in (
        dataclasses.replace(config, private_key=b"short"),
        dataclasses.replace(config, mtu=100),
        dataclasses.replace(config, peers=(bad_peer,)),
    ):
        with pytest.raises(ConfigError):
            world.a.plane.configure(bad, world.now)
    assert world.a.plane.peer_for_ip(B4) == world.b.public
    # Our own key among the peers is skipped, not refused: a network map may list it.
    own = dataclasses.replace(config, peers=(*config.peers, PeerSpec(world.a.public, hosts(A4))))
    world.a.plane.configure(own, world.now)
    assert world.a.plane.peer_for_ip(B4) == world.b.public


def test_secrets_do_not_print() -> None:
    world = World()
    config = world.a.configure(world.b, world.now)
    shown = repr(config) + repr(dataclasses.replace(config.peers[0], psk=b"p" * 32))
    assert repr(world.a.private)[2:-1] not in shown
    assert "pppp" not in shown


def test_two_idle_planes_fall_silent() -> None:
    world = World()
    client, _ = world.connect(B4)
    client.close(world.now)
    world.run(30 * 60 * SECOND)
    count = world.a.plane.stats().tx_datagrams
    world.run(60 * 60 * SECOND)
    assert world.a.plane.stats().tx_datagrams == count


def test_config_in_the_constructor() -> None:
    world = World()
    config = DataPlaneConfig(world.a.private, (A4,), (PeerSpec(world.b.public, hosts(B4)),), filter_rules=ALLOW_ALL)
    plane = DataPlane(SeededEntropy(4), config, START)
    assert plane.peer_for_ip(B4) == world.b.public
    plane.initiate(world.b.public, START)
    assert [b.count for _, b in plane.to_underlay(START)] == [1]
