"""Two devices on a virtual clock: sessions, timers, loss, roaming, and what must not get through."""

from itertools import pairwise

import pytest

from tests.wg.kit import START, Net, SeededEntropy, ipv4, peer_id
from tsnetpy.base.addr import parse_ip, parse_prefix
from tsnetpy.base.errors import ConfigError
from tsnetpy.base.instant import MILLISECOND, SECOND
from tsnetpy.crypto import dh
from tsnetpy.wg import Device, EndpointSeen, PeerHandshake, UnknownPeerInitiation, UnknownSession
from tsnetpy.wg.constants import MAX_STAGED_PACKETS

INITIATION, RESPONSE, COOKIE_REPLY, TRANSPORT = 1, 2, 3, 4


def test_first_packet_brings_up_a_session_and_arrives() -> None:
    net = Net()
    packet = net.data(net.a)
    net.run(100 * MILLISECOND)
    assert net.b.received == [packet]
    assert [len(d) for _, d in net.sent("a")] == [148, 32 + 64]  # the data itself confirms the session
    assert [len(d) for _, d in net.sent("b")] == [92]
    assert PeerHandshake(peer=peer_id(net.b), initiator=True) in net.a.events
    assert PeerHandshake(peer=peer_id(net.a), initiator=False) in net.b.events
    assert EndpointSeen(peer=peer_id(net.a), path=net.a.path) in net.b.events
    answer = net.data(net.b)
    net.run(20 * MILLISECOND)
    assert net.a.received == [answer]
    info = net.a.device.peer_info(peer_id(net.b), net.now)
    assert info is not None
    assert info.established
    assert info.last_handshake == START + 20 * MILLISECOND
    assert info.rx_bytes == sum(len(d) for _, d in net.sent("b"))
    assert info.tx_bytes == sum(len(d) for _, d in net.sent("a"))


def test_both_sides_beginning_at_once_meet_without_a_retry() -> None:
    net = Net()
    one, two = net.data(net.a), net.data(net.b)
    net.run(100 * MILLISECOND)
    assert net.b.received == [one]
    assert net.a.received == [two]
    three, four = net.data(net.a), net.data(net.b)
    net.run(100 * MILLISECOND)
    assert net.b.received == [one, three]
    assert net.a.received == [two, four]


def test_without_an_answer_there_are_20_initiations_in_about_100_seconds_and_the_packets_go() -> None:
    net = Net()
    net.keep = lambda sender, datagram: False
    net.data(net.a)
    net.run(300 * SECOND)
    times = [when for when, _ in net.sent("a")]
    assert len(times) == 20
    gaps = [b - a for a, b in pairwise(times)]
    assert all(5 * SECOND <= gap < 5334 * MILLISECOND for gap in gaps)
    assert len(set(gaps)) > 10  # jitter
    info = net.a.device.peer_info(peer_id(net.b), net.now)
    assert info is not None
    assert info.staged == 0
    assert net.a.device.drops.snapshot() == {"handshake_gave_up": 1}
    stamps = {d[88:116] for _, d in net.sent("a")}
    assert len(stamps) == 20

    net.keep = lambda sender, datagram: True
    packet = net.data(net.a)
    net.run(SECOND)
    assert net.b.received == [packet]


@pytest.mark.parametrize("lost_kind", [INITIATION, RESPONSE])
def test_a_lost_handshake_message_costs_one_retry(lost_kind: int) -> None:
    net = Net()
    lost: list[bytes] = []

    def keep(sender: str, datagram: bytes) -> bool:
        if datagram[0] == lost_kind and not lost:
            lost.append(datagram)
            return False
        return True

    net.keep = keep
    packet = net.data(net.a)
    net.run(4900 * MILLISECOND)
    assert net.b.received == []
    net.run(SECOND)
    assert net.b.received == [packet]
    assert len(net.sent("a", INITIATION)) == 2


def test_a_lost_confirmation_is_made_good_by_the_next_message() -> None:
    net = Net()
    net.keep = lambda sender, datagram: datagram[0] != TRANSPORT
    net.data(net.a)
    net.run(SECOND)
    held = net.data(net.b)  # b has no confirmed session: it begins its own
    net.run(SECOND)
    net.keep = lambda sender, datagram: True
    net.data(net.a)
    net.run(SECOND)
    net.run(10 * SECOND)
    assert held in net.a.received


def test_initiations_are_5_seconds_apart_whatever_is_sent() -> None:
    net = Net()
    net.keep = lambda sender, datagram: False
    for _ in range(100):
        net.data(net.a)
        net.run(100 * MILLISECOND)
    assert len(net.sent("a", INITIATION)) == 2  # at 0 and 5.x of 10 seconds


def test_staged_packets_are_bounded_and_the_oldest_go() -> None:
    net = Net()
    sent = [net.data(net.a, i.to_bytes(4, "big")) for i in range(MAX_STAGED_PACKETS + 50)]
    net.run(SECOND)
    assert net.b.received == sent[50:]
    assert net.a.device.drops.snapshot() == {"staged_overflow": 50}


def test_the_initiator_rekeys_after_120_seconds_and_nothing_is_lost() -> None:
    net = Net()
    sent = []
    for _ in range(400):
        sent.append(net.data(net.a))
        net.run(SECOND)
        net.data(net.b)
    net.run(SECOND)
    assert net.b.received == sent
    assert len(net.a.received) == 400
    times = [when // SECOND for when, _ in net.sent("a", INITIATION)]
    assert times == [0, 121, 242, 363]
    assert net.sent("b", INITIATION) == []  # only the original initiator rekeys on age


def test_the_initiator_rekeys_at_165_seconds_when_it_only_receives() -> None:
    net = Net()
    net.data(net.a)
    net.run(SECOND)
    while net.elapsed < 200 * SECOND:
        net.data(net.b)
        net.run(500 * MILLISECOND)
    times = [when // MILLISECOND for when, _ in net.sent("a", INITIATION)]
    # Its own passive keepalives go out every 10 s, so the rule for sending comes first: at the first one after 120 s.
    assert len(times) == 2
    assert 120_000 < times[1] < 131_000


def test_a_session_is_dead_after_180_seconds_and_its_keys_go_after_540() -> None:
    net = Net()
    net.data(net.a)
    net.run(SECOND)
    net.keep = lambda sender, datagram: False
    # Sent before a session expires but received after.
    net.data(net.b, b"late")
    late = net.sent("b", TRANSPORT)[-1][1]
    net.run(180 * SECOND)
    net.inject(net.a, late, net.b.path)
    assert net.a.device.drops.snapshot()["expired_session"] == 1
    assert len(net.a.received) == 0
    net.data(net.a)  # no session to send on: an initiation instead of a transport message
    assert net.sent("a")[-1][1][0] == INITIATION
    net.run(600 * SECOND)
    net.inject(net.a, late, net.b.path)
    assert net.a.device.drops.snapshot()["unknown_index"] == 1
    assert net.a.device.next_deadline() is None
    assert net.b.device.next_deadline() is None


def test_passive_keepalive_10_seconds_after_data_was_received_and_none_after_that() -> None:
    net = Net()
    net.data(net.a)
    net.run(60 * SECOND)
    keepalives = [(when, name) for when, name, d in net.log if d[0] == TRANSPORT and len(d) == 32]
    assert [name for _, name in keepalives] == ["b"]
    assert keepalives[0][0] == 10 * SECOND + 30 * MILLISECOND
    assert len(net.sent("a", INITIATION)) == 1  # the keepalive kept a from thinking b dead


def test_an_unanswered_session_is_renewed_after_15_seconds() -> None:
    net = Net()
    net.data(net.a)
    net.run(SECOND)
    net.keep = lambda sender, datagram: sender == "a" and datagram[0] == INITIATION
    net.data(net.a)
    net.run(17 * SECOND)
    second = net.sent("a", INITIATION)[1][0]
    # Counted from the first data that was not answered: the very first packet, which b had no reason to answer before.
    assert 15 * SECOND <= second - 20 * MILLISECOND < 15334 * MILLISECOND


def test_a_peer_that_lost_its_keys_is_found_again() -> None:
    net = Net()
    net.data(net.a)
    net.run(SECOND)
    # b restarts: a new device with the same key.
    old = net.b.device
    private_b = dh.generate(SeededEntropy(99))
    net.b.device = Device(private_b, SeededEntropy(5))
    assert old.public_key != net.b.device.public_key
    net.b.device.set_private_key(_second_key(), net.now)
    assert net.b.device.public_key == old.public_key
    net.b.device.add_peer(peer_id(net.a), [parse_prefix("10.9.0.1")], net.now)
    net.b.device.wall_offset_ns = old.wall_offset_ns
    net.data(net.a)
    net.run(100 * MILLISECOND)
    assert UnknownSession(path=net.a.path) in net.b.events
    net.b.device.initiate(peer_id(net.a), net.now)
    net.run(100 * MILLISECOND)
    packet = net.data(net.a)
    net.run(100 * MILLISECOND)
    assert net.b.received[-1] == packet


def _second_key() -> bytes:
    entropy = SeededEntropy(1)
    dh.generate(entropy)
    return dh.generate(entropy)


def test_persistent_keepalive() -> None:
    net = Net(persistent_a_s=25)
    net.run(101 * SECOND)
    keepalives = [when for when, d in net.sent("a", TRANSPORT)]
    assert len(keepalives) == 5  # the confirmation and one every 25 s
    gaps = [b - a for a, b in pairwise(keepalives)]
    assert gaps == [25 * SECOND] * 4
    net.a.device.add_peer(peer_id(net.b), [parse_prefix("10.9.0.2")], net.now)
    before = len(net.sent("a"))
    net.run(60 * SECOND)
    assert len(net.sent("a")) == before


def test_roaming_follows_authentic_messages_only() -> None:
    net = Net()
    net.data(net.a)
    net.run(SECOND)
    net.b.events.clear()
    net.a.path = ("udp", b"\x01\x02\x03\x04", 5)
    net.data(net.a)
    captured = net.sent("a")[-1][1]
    net.run(SECOND)
    assert net.b.events == [EndpointSeen(peer=peer_id(net.a), path=net.a.path)]
    net.inject(net.b, captured, ("udp", b"\x06\x06\x06\x06", 6))
    net.inject(net.b, captured[:-1] + b"\0", ("udp", b"\x06\x06\x06\x06", 6))
    assert len(net.b.events) == 1
    info = net.b.device.peer_info(peer_id(net.a), net.now)
    assert info is not None
    assert info.path == net.a.path
    assert net.b.device.drops.snapshot() == {"replay": 1, "not_authentic": 1}


def test_inner_sources_must_belong_to_the_peer() -> None:
    net = Net()
    net.data(net.a)
    net.run(SECOND)
    net.b.received.clear()
    net.send(net.a, ipv4("10.9.0.7", "10.9.0.2"), ipv4("10.9.0.2", "10.9.0.2"), b"\x60" + bytes(39))
    net.run(SECOND)
    assert net.b.received == []
    assert net.b.device.drops.snapshot() == {"allowed_ips": 3}
    good = ipv4("10.9.0.1", "10.9.0.2")
    net.send(net.a, ipv4("10.9.0.7", "10.9.0.2"), good, ipv4("10.9.0.7", "10.9.0.2"))
    net.run(SECOND)
    assert net.b.received == [good]


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (b"\x45" + bytes(15), "inner_header"),
        (b"\x55" + bytes(40), "inner_header"),
        (b"\x60" + bytes(30), "inner_header"),
        (b"\x45\0\xff\xff" + bytes(30), "inner_length"),
        (b"\x45\0\0\x13" + bytes(30), "inner_length"),
        (b"\x60\0\0\0\xff\xff" + bytes(60), "inner_length"),
    ],
)
def test_inner_packets_without_a_sound_header_are_dropped(packet: bytes, reason: str) -> None:
    net = Net()
    net.send(net.a, packet)
    net.run(SECOND)
    assert net.b.received == []
    assert net.b.device.drops.snapshot() == {reason: 1}


def test_padding_is_removed_in_both_families() -> None:
    net = Net()
    for side, ip in ((net.a, "fd7a::2"), (net.b, "fd7a::1")):
        other = net.other(side)
        v4 = "10.9.0.2" if side is net.a else "10.9.0.1"
        side.device.add_peer(peer_id(other), [parse_prefix(v4), parse_prefix(ip)], net.now)
    sent = [ipv4("10.9.0.1", "10.9.0.2", bytes(n)) for n in (0, 1, 15, 16, 17, 1260)]
    for n in (0, 1, 1239, 1240):
        head = b"\x60" + bytes(3) + n.to_bytes(2, "big") + b"\x11\x40"
        sent.append(head + parse_ip("fd7a::1") + parse_ip("fd7a::2") + bytes(n))
    for packet in sent:
        net.send(net.a, packet)
    net.run(SECOND)
    assert net.b.received == sent
    assert max(len(d) for _, d in net.sent("a")) == 1312
    assert all((len(d) - 32) % 16 == 0 for _, d in net.sent("a", TRANSPORT))


def test_a_batch_lies_in_one_buffer_of_equal_segments() -> None:
    net = Net()
    net.data(net.a)
    net.run(SECOND)
    packets = [ipv4("10.9.0.1", "10.9.0.2", bytes(1260))] * 100 + [ipv4("10.9.0.1", "10.9.0.2", bytes(100))] * 2
    net.a.device.send(peer_id(net.b), packets, net.now)
    batches = [batch for _, batch in net.a.device.take_outgoing()]
    assert [(b.segment_size, b.count, len(b.data)) for b in batches] == [
        (1312, 49, 49 * 1312),
        (1312, 49, 49 * 1312),
        (1312, 3, 2 * 1312 + 160),
        (160, 1, 160),
    ]
    datagrams = [d for b in batches for d in b.datagrams()]
    got = net.b.device.receive(datagrams, net.a.path, net.now)
    assert [key for key, _ in got] == [peer_id(net.a)]
    assert got[0][1] == packets


def test_replay_across_a_batch_and_out_of_order_delivery() -> None:
    net = Net()
    net.data(net.a)
    net.run(SECOND)
    packets = [ipv4("10.9.0.1", "10.9.0.2", i.to_bytes(2, "big")) for i in range(50)]
    net.a.device.send(peer_id(net.b), packets, net.now)
    datagrams = [d for _, b in net.a.device.take_outgoing() for d in b.datagrams()]
    shuffled = datagrams[::-1] + datagrams
    ((_, got),) = net.b.device.receive(shuffled, net.a.path, net.now)
    assert got == packets[::-1]
    assert net.b.device.drops.snapshot() == {"replay": 50}


def test_unknown_initiators_are_reported_and_not_answered() -> None:
    net = Net()
    net.b.device.remove_peer(peer_id(net.a))
    net.data(net.a)
    net.run(SECOND)
    assert net.b.events == [UnknownPeerInitiation(peer=peer_id(net.a), path=net.a.path)]
    assert net.sent("b") == []
    net.b.device.add_peer(peer_id(net.a), [parse_prefix("10.9.0.1")], net.now)
    net.run(6 * SECOND)
    assert len(net.b.received) == 1


def test_removing_a_peer_ends_everything_of_it() -> None:
    net = Net()
    net.data(net.a)
    net.run(SECOND)
    net.a.device.remove_peer(peer_id(net.b))
    assert net.a.device.next_deadline() is None
    assert net.a.device.peer_for_ip(parse_ip("10.9.0.2")) is None
    assert net.a.device.peer_info(peer_id(net.b), net.now) is None
    net.data(net.b)
    net.run(SECOND)
    assert net.a.received == []
    net.data(net.a)
    assert net.a.device.drops.snapshot() == {"unknown_index": 1, "no_peer": 1}


def test_a_new_private_key_ends_sessions_and_staged_packets_go_out_under_it() -> None:
    net = Net()
    net.data(net.a)
    net.run(SECOND)
    old = peer_id(net.a)
    net.a.device.set_private_key(dh.generate(SeededEntropy(77)), net.now)
    assert peer_id(net.a) != old
    net.b.device.remove_peer(old)
    net.b.device.add_peer(peer_id(net.a), [parse_prefix("10.9.0.1")], net.now)
    packet = net.data(net.a)
    net.run(SECOND)
    assert net.b.received[-1] == packet
    assert len(net.sent("a", INITIATION)) == 2


def test_psk_must_agree_and_then_works() -> None:
    net = Net()
    net.a.device.add_peer(peer_id(net.b), [parse_prefix("10.9.0.2")], net.now, psk=b"p" * 32)
    packet = net.data(net.a)
    net.run(3 * SECOND)
    assert net.b.received == []
    assert net.a.device.drops.snapshot() == {"handshake": 1}
    net.b.device.add_peer(peer_id(net.a), [parse_prefix("10.9.0.1")], net.now, psk=b"p" * 32)
    net.run(10 * SECOND)
    assert net.b.received == [packet]


def test_bad_configuration_is_refused() -> None:
    net = Net()
    with pytest.raises(ConfigError):
        net.a.device.add_peer(b"short", [], net.now)
    with pytest.raises(ConfigError):
        net.a.device.add_peer(peer_id(net.a), [], net.now)
    with pytest.raises(ConfigError):
        net.a.device.add_peer(peer_id(net.b), [], net.now, psk=b"short")


def test_a_peer_with_a_degenerate_key_does_no_harm() -> None:
    net = Net()
    net.a.device.add_peer(bytes(32), [parse_prefix("10.9.0.3")], net.now)
    net.a.device.send(bytes(32), [ipv4("10.9.0.1", "10.9.0.3")], net.now)
    assert net.a.device.take_outgoing() == []
    assert net.a.device.drops.snapshot() == {"handshake": 1}


def test_allowed_ips_move_between_peers() -> None:
    device = Device(dh.generate(SeededEntropy(1)), SeededEntropy(2))
    one, two = b"1" * 32, b"2" * 32
    device.add_peer(one, [parse_prefix("10.0.0.0/8"), parse_prefix("fd00::/16")], START)
    device.add_peer(two, [parse_prefix("10.1.0.0/16"), parse_prefix("10.0.0.0/8")], START)
    assert device.peer_for_ip(parse_ip("10.2.0.1")) == two
    assert device.peer_for_ip(parse_ip("fd00::1")) == one
    device.add_peer(one, [parse_prefix("fd00::/16")], START)
    assert device.peer_for_ip(parse_ip("10.2.0.1")) == two  # not taken away by a peer that no longer had it
    device.add_peer(two, [parse_prefix("10.1.0.0/16")], START)
    assert device.peer_for_ip(parse_ip("10.2.0.1")) is None
    assert device.peer_for_ip(parse_ip("10.1.0.1")) == two


def test_secrets_do_not_print() -> None:
    net = Net()
    net.data(net.a)
    net.run(SECOND)
    peer = net.a.device._peers[peer_id(net.b)]
    shown = repr(peer) + repr(peer.current) + repr(peer.current and peer.current.send_key) + repr(peer.handshake)
    assert len(shown) < 300


def test_many_idle_peers_cost_nothing_per_packet() -> None:
    net = Net()
    for i in range(2000):
        net.a.device.add_peer(i.to_bytes(32, "big"), [], net.now)
    net.data(net.a)
    net.run(SECOND)
    for _ in range(2000):
        net.data(net.a)
        net.data(net.b)
        net.run(20 * MILLISECOND)
    # The timer heap must not grow with traffic.
    assert len(net.a.device._heap) < 20
    assert len(net.b.received) == 2001


def test_after_a_restart_a_relayed_sender_is_offered_new_keys_at_once() -> None:
    net = Net()
    net.data(net.a)
    net.run(SECOND)
    stale = net.sent("a", TRANSPORT)[-1][1]
    restarted = Device(_second_key(), SeededEntropy(6))
    restarted.add_peer(peer_id(net.a), [parse_prefix("10.9.0.1")], net.now)
    path = ("derp", 1, peer_id(net.a))
    restarted.receive([stale], path, net.now)
    assert [(peer, batch.data[0]) for peer, batch in restarted.take_outgoing()] == [(peer_id(net.a), INITIATION)]
    assert restarted.next_event() == UnknownSession(path=path)
    # Neither a flood of them nor somebody unknown brings more.
    restarted.receive([stale] * 50, path, net.now)
    restarted.receive([stale], ("derp", 1, b"?" * 32), net.now + 2 * SECOND)
    restarted.receive([stale], ("udp", b"\x01\x02\x03\x04", 5), net.now + 4 * SECOND)
    assert restarted.take_outgoing() == []
