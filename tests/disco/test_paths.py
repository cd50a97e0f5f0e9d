"""The path state machine on a virtual clock, against the times of the reference."""

import pytest

from tests.disco.kit import REGION, CountingEntropy, Side, World, ep
from tsnetpy.base.addr import Endpoint
from tsnetpy.base.instant import MILLISECOND, SECOND, ms
from tsnetpy.disco.messages import CallMeMaybe, Ping, Pong, derp_endpoint
from tsnetpy.disco.paths import PathPeer, Paths
from tsnetpy.disco.peer import MAX_CANDIDATES, TRUST_DURATION
from tsnetpy.disco.quality import AddrQuality, better_addr


def make_world(**options: int) -> World:
    world = World(Side(b"a", ep("192.0.2.10:41641")), Side(b"b", ep("192.0.2.11:41641")), **options)
    world.configure()
    return world


def send_steadily(world: World, duration: int, interval: int = 50 * MILLISECOND) -> list[tuple[Endpoint | None, int]]:
    routes = []
    for _ in range(duration // interval):
        routes.append(world.send(world.a))
        world.send(world.b)
        world.run(interval)
    return routes


def test_first_packet_goes_by_derp_while_paths_are_probed() -> None:
    world = make_world()
    assert world.send(world.a) == (None, REGION)
    kinds = [(who, kind) for _, who, kind, _ in world.log]
    assert kinds == [("a", "Ping"), ("a", "CallMeMaybe")]
    world.run(5 * MILLISECOND)
    assert world.send(world.a) == (world.b.address, 0)
    state = world.a.paths.peers[world.b.key]
    assert state.best is not None
    assert state.best.latency_ns == 4 * MILLISECOND


def test_call_me_maybe_makes_the_other_side_ping_without_asking_back() -> None:
    world = make_world()
    world.send(world.a)
    world.run(30 * MILLISECOND)
    from_b = [kind for _, who, kind, _ in world.log if who == "b"]
    assert "Ping" in from_b
    assert "CallMeMaybe" not in from_b
    assert world.b.paths.peers[world.a.key].best is not None


def test_trust_ends_then_derp_carries_copies_until_the_ping_times_out() -> None:
    world = make_world()
    world.send(world.a)
    world.run(SECOND)
    send_steadily(world, 10 * SECOND)
    world.udp_open = lambda sender, to: False
    blocked_at = world.now
    first_derp = first_derp_only = 0
    while not first_derp_only:
        endpoint, region = world.send(world.a)
        world.send(world.b)
        if region and not first_derp:
            first_derp = world.now
            assert endpoint == world.b.address  # a copy still goes to the old address
        if region and endpoint is None:
            first_derp_only = world.now
        world.run(50 * MILLISECOND)
    assert first_derp - blocked_at <= TRUST_DURATION + 50 * MILLISECOND
    assert first_derp - blocked_at >= TRUST_DURATION - 3 * SECOND - ms(10)
    assert 0 < first_derp_only - first_derp <= 5 * SECOND
    world.log.clear()
    send_steadily(world, 20 * SECOND)
    pings = [at for at, who, kind, _ in world.log if who == "a" and kind == "Ping"]
    asks = [at for at, who, kind, _ in world.log if who == "a" and kind == "CallMeMaybe"]
    assert 3 <= len(pings) <= 9
    assert len(asks) >= 3
    world.udp_open = lambda sender, to: True
    routes = send_steadily(world, 6 * SECOND)
    assert routes[-1] == (world.b.address, 0)


def test_heartbeat_keeps_trust_and_stops_45_s_after_the_last_packet() -> None:
    world = make_world()
    world.send(world.a)
    world.run(SECOND)
    world.send(world.a)
    last_send = world.now
    world.log.clear()
    world.run(44 * SECOND)
    assert world.a.paths.peers[world.b.key].is_trusted(world.now)
    world.run(60 * SECOND)
    beats = [at for at, who, kind, _ in world.log if who == "a" and kind == "Ping"]
    assert 14 <= len(beats) <= 17
    assert 42 * SECOND <= max(beats) - last_send <= 45 * SECOND
    assert world.a.paths.next_deadline() is None
    assert not world.a.paths.peers[world.b.key].is_trusted(world.now)


def test_fast_path_is_not_reprobed_but_a_slow_one_is_each_minute() -> None:
    for delay, expected in ((MILLISECOND, 0), (20 * MILLISECOND, 1)):
        world = make_world(udp_delay=delay)
        extra = ep("198.51.100.1:5")
        world.a.paths.configure([PathPeer(world.b.key, world.b.disco, (world.b.address, extra), REGION)], 0)
        send_steadily(world, 30 * SECOND, 500 * MILLISECOND)
        world.log.clear()
        send_steadily(world, 61 * SECOND, 500 * MILLISECOND)
        assert sum(to == extra for _, who, _, to in world.log if who == "a") == expected


def test_a_peer_without_candidates_is_not_asked() -> None:
    world = World(Side(b"a", ep("192.0.2.10:1")), Side(b"b", ep("192.0.2.11:1"), advertise=()))
    world.configure()
    assert world.send(world.a) == (None, REGION)
    assert world.log == []


def test_call_me_maybe_waits_for_fresh_endpoints() -> None:
    side = Side(b"a", ep("192.0.2.10:1"))
    other = Side(b"b", ep("192.0.2.11:1"))
    paths = side.paths
    paths.configure([other.peer()], 0)
    paths.set_local_endpoints([side.address, side.address], 0)
    paths.route(other.key, 1, 30 * SECOND)
    assert [type(out.message) for out in paths.take_outgoing()] == [Ping]
    assert paths.take_restun_request()
    assert not paths.take_restun_request()
    paths.set_local_endpoints([side.address, side.address], 31 * SECOND)
    (asked,) = paths.take_outgoing()
    assert asked.message == CallMeMaybe((side.address,))
    assert (asked.to, asked.region) == (None, REGION)


def test_ping_is_answered_once_to_its_source() -> None:
    world = make_world()
    source = ep("203.0.113.5:1234")
    ping = Ping(bytes(12), world.b.key)
    world.a.paths.receive_udp(world.b.disco, ping, source, 0)
    world.a.paths.receive_udp(world.b.disco, ping, source, 1)
    (pong,) = world.a.paths.take_outgoing()
    assert pong.message == Pong(bytes(12), source)
    assert pong.to == source
    assert source in world.a.paths.peers[world.b.key].candidates
    # A ping over DERP is answered over DERP, and makes no candidate.
    world.a.paths.receive_derp(world.b.key, world.b.disco, Ping(b"x" * 12, b""), REGION, 2)
    (pong,) = world.a.paths.take_outgoing()
    assert pong.message == Pong(b"x" * 12, derp_endpoint(REGION))
    assert (pong.to, pong.region) == (None, REGION)


def test_learned_candidates_fade_after_45_s_and_configured_ones_stay() -> None:
    world = make_world()
    learned = ep("203.0.113.5:1234")
    world.a.paths.receive_udp(world.b.disco, Ping(bytes(12), b""), learned, 0)
    state = world.a.paths.peers[world.b.key]
    world.now = 46 * SECOND
    world.send(world.a)
    assert set(state.candidates) == {world.b.address}


def test_messages_must_come_from_the_right_node() -> None:
    world = make_world()
    cmm = CallMeMaybe((ep("203.0.113.5:1"),))
    world.a.paths.receive_derp(b"x" * 32, world.b.disco, cmm, REGION, 0)
    world.a.paths.receive_derp(world.b.key, b"y" * 32, cmm, REGION, 0)
    world.a.paths.receive_udp(world.b.disco, cmm, world.b.address, 0)
    world.a.paths.receive_udp(world.b.disco, Pong(b"never sent!!", world.a.address), world.b.address, 0)
    assert world.a.paths.take_outgoing() == []
    assert world.a.paths.drops.counts == {"disco_wrong_sender": 2, "disco_not_by_udp": 1, "disco_unknown_pong": 1}


def test_call_me_maybe_replaces_the_previous_set() -> None:
    world = make_world()
    first, second = ep("203.0.113.5:1"), ep("203.0.113.6:1")
    link_local = ep("[fe80::1]:1")
    receive = world.a.paths.receive_derp
    receive(world.b.key, world.b.disco, CallMeMaybe((first, link_local)), REGION, 0)
    assert {out.to for out in world.a.paths.take_outgoing()} == {first, world.b.address}
    receive(world.b.key, world.b.disco, CallMeMaybe((second,)), REGION, 1)
    # Spacing does not hold it back: a CallMeMaybe says that now is the moment.
    assert {out.to for out in world.a.paths.take_outgoing()} == {second, world.b.address}
    assert set(world.a.paths.peers[world.b.key].candidates) == {second, world.b.address}


def test_candidates_are_capped() -> None:
    world = make_world()
    for i in range(300):
        world.a.paths.receive_udp(world.b.disco, Ping(i.to_bytes(12, "big"), b""), ep(f"203.0.113.5:{i + 1}"), i)
    candidates = world.a.paths.peers[world.b.key].candidates
    assert len(candidates) == MAX_CANDIDATES
    assert world.b.address in candidates
    assert ep("203.0.113.5:300") in candidates


def test_host_error_moves_to_derp_at_once() -> None:
    world = make_world()
    world.send(world.a)
    world.run(SECOND)
    assert world.send(world.a) == (world.b.address, 0)
    world.a.paths.note_unreachable(world.b.key, world.b.address)
    assert world.send(world.a) == (None, REGION)


def test_new_disco_key_voids_what_was_proven() -> None:
    world = make_world()
    world.send(world.a)
    world.run(SECOND)
    old = world.b.disco
    world.b.disco = b"new".ljust(32, b"d")
    assert world.a.paths.configure([world.b.peer()], world.now) == [old]
    assert world.a.paths.peers[world.b.key].best is None
    assert not world.a.paths.knows_disco(old)
    assert world.send(world.a) == (None, REGION)


def test_network_change_voids_all_paths() -> None:
    world = make_world()
    world.send(world.a)
    world.run(SECOND)
    world.a.paths.network_changed(world.now)
    assert world.send(world.a) == (None, REGION)
    world.run(SECOND)
    assert world.send(world.a) == (world.b.address, 0)


def test_removed_peer_is_forgotten() -> None:
    world = make_world()
    world.send(world.a)
    world.a.paths.configure([], world.now)
    assert world.a.paths.route(world.b.key, 1, world.now) is None
    world.run(10 * SECOND)
    assert world.a.paths.next_deadline() is None


def test_peer_is_answered_where_it_was_heard() -> None:
    paths = Paths(b"a" * 32, CountingEntropy())
    peer = b"b" * 32
    paths.configure([PathPeer(peer, b"d" * 32, (), 0)], 0)
    assert paths.route(peer, 1, 0) == (None, 0)
    paths.note_received_derp(peer, 7, 100, 1)
    assert paths.route(peer, 1, 2) == (None, 7)
    paths.derp_closed(7)
    assert paths.route(peer, 1, 3) == (None, 0)


def test_user_ping_uses_every_path_until_one_is_trusted() -> None:
    world = make_world()
    txids = world.a.paths.ping(world.b.key, world.now)
    assert len(txids) == 2  # the candidate and DERP
    world.run(100 * MILLISECOND)
    events = []
    while (event := world.a.paths.next_event()) is not None:
        events.append(event)
    assert [(e.endpoint, e.region, e.latency_ns) for e in events] == [
        (world.b.address, 0, 4 * MILLISECOND),
        (None, REGION, 20 * MILLISECOND),
    ]
    assert all(event.txid in txids for event in events)
    assert len(world.a.paths.ping(world.b.key, world.now)) == 1
    assert world.a.paths.ping(b"?" * 32, world.now) == []


def test_first_packets_after_a_ping_go_by_derp_so_that_the_peer_can_answer() -> None:
    world = make_world()
    paths, peer = world.a.paths, world.b.key
    paths.derp_opened(REGION)
    paths.ping(peer, world.now)
    world.run(100 * MILLISECOND)
    assert paths.peers[peer].is_trusted(world.now)
    assert world.send(world.a) == (None, REGION)
    world.run(SECOND)
    assert world.send(world.a) == (world.b.address, REGION)  # still no answer: try both
    paths.note_received(world.b.address, 92, world.now)
    assert world.send(world.a) == (world.b.address, 0)
    # Without a relay connection there is nothing to wait for.
    lonely = make_world()
    lonely.a.paths.ping(peer, 0)
    lonely.run(100 * MILLISECOND)
    assert lonely.send(lonely.a) == (lonely.b.address, 0)


def test_wireguard_only_peer_goes_to_its_address() -> None:
    paths = Paths(b"a" * 32, CountingEntropy())
    paths.configure([PathPeer(b"b" * 32, b"", (ep("192.0.2.1:51820"),), 0)], 0)
    assert paths.route(b"b" * 32, 1, 0) == (ep("192.0.2.1:51820"), 0)
    assert paths.take_outgoing() == []


def test_thousand_idle_peers_cost_nothing() -> None:
    paths = Paths(b"a" * 32, CountingEntropy())
    paths.configure([PathPeer(i.to_bytes(32, "big"), b"d" + i.to_bytes(31, "big")) for i in range(1000)], 0)
    assert paths.next_deadline() is None


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (("192.0.2.1:1", 10), None, True),
        (("192.0.2.1:1", 10), ("192.0.2.1:1", 900), False),  # the same address
        (("198.51.100.1:1", 90), ("198.51.100.2:1", 100), True),
        (("198.51.100.1:1", 100), ("198.51.100.2:1", 90), False),
        (("198.51.100.1:1", 99), ("198.51.100.2:1", 100), False),  # one percent is not worth a move
        (("198.51.100.1:1", 98), ("198.51.100.2:1", 100), True),
        (("198.51.100.1:1", 100), ("198.51.100.2:1", 100), False),
        (("[2001:db8::1]:1", 100), ("198.51.100.2:1", 100), True),  # IPv6 +10
        (("[2001:db8::1]:1", 100), ("198.51.100.2:1", 89), False),
        (("10.0.0.1:1", 100), ("198.51.100.2:1", 85), True),  # private +20
        (("10.0.0.1:1", 100), ("198.51.100.2:1", 75), False),
        (("169.254.0.1:1", 100), ("10.0.0.1:1", 100), True),  # link-local +30
        (("127.0.0.1:1", 100), ("169.254.0.1:1", 100), True),  # loopback +50
        (("[fd00::1]:1", 100), ("10.0.0.1:1", 100), True),  # private both, IPv6 +10
    ],
)
def test_better_addr(a: tuple[str, int], b: tuple[str, int] | None, expected: bool) -> None:
    quality_a = AddrQuality(ep(a[0]), ms(a[1]))
    quality_b = AddrQuality(ep(b[0]), ms(b[1])) if b is not None else None
    assert better_addr(quality_a, quality_b) is expected
