"""Cookies and rate limits under a flood, and garbage of every kind."""

from collections.abc import Hashable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wg.kit import START, WALL, Net, SeededEntropy, peer_id
from tsnetpy.base.addr import parse_ip, parse_prefix
from tsnetpy.base.instant import MILLISECOND, SECOND
from tsnetpy.crypto import dh
from tsnetpy.wg import Device
from tsnetpy.wg.cookies import CookieChecker, CookieGenerator
from tsnetpy.wg.handshake import source_host
from tsnetpy.wg.load import LoadMeter, SourceLimiter
from tsnetpy.wg.messages import CookieReply

COOKIE_REPLY = 3


def flood(target: Device, now: int, n: int = 600) -> int:
    """Send *n* initiations of a stranger who knows the target's key; return how many were answered with cookies."""
    stranger = Device(dh.generate(SeededEntropy(8)), SeededEntropy(9))
    stranger.wall_offset_ns = WALL - START
    stranger.add_peer(target.public_key, [], now)
    stranger.initiate(target.public_key, now)
    ((_, batch),) = stranger.take_outgoing()
    target.receive([bytes(batch.data)] * n, ("udp", b"\x08\x08\x08\x08", 8), now)
    return len(target.take_path_outgoing())


def test_under_load_a_cookie_is_demanded_and_then_serves() -> None:
    net = Net()
    assert flood(net.b.device, net.now) == 600 - 127
    while net.b.device.next_event() is not None:
        pass
    packet = net.data(net.a)
    net.run(100 * MILLISECOND)
    replies = net.sent("b", COOKIE_REPLY)
    assert [len(d) for _, d in replies] == [64]
    assert net.b.received == []
    net.run(4800 * MILLISECOND)
    flood(net.b.device, net.now)  # still under load when the retry with MAC2 comes
    net.run(SECOND)
    assert net.b.received == [packet]
    second = [d for _, d in net.sent("a", 1)][1]
    assert any(second[-16:])
    assert net.sent("b", COOKIE_REPLY) == replies


def test_cookie_replies_to_a_relayed_peer_go_to_the_peer() -> None:
    net = Net()
    flood(net.b.device, net.now)
    net.a.device.initiate(peer_id(net.b), net.now)
    ((_, batch),) = net.a.device.take_outgoing()
    net.b.device.receive([bytes(batch.data)], ("derp", 1, peer_id(net.a)), net.now)
    assert net.b.device.take_path_outgoing() == []
    replies = net.b.device.take_outgoing()
    assert [(peer, len(b.data), b.data[0]) for peer, b in replies] == [(peer_id(net.a), 64, COOKIE_REPLY)]


def test_load_ends_by_itself() -> None:
    net = Net()
    flood(net.b.device, net.now)
    net.run(1300 * MILLISECOND)
    net.data(net.a)
    net.run(100 * MILLISECOND)
    assert len(net.b.received) == 1
    assert net.sent("b", COOKIE_REPLY) == []


def test_a_replayed_cookie_reply_is_void() -> None:
    net = Net()
    flood(net.b.device, net.now)
    net.data(net.a)
    net.run(100 * MILLISECOND)
    (reply,) = net.sent("b", COOKIE_REPLY)
    net.inject(net.a, reply[1])
    net.inject(net.a, reply[1][:-1] + b"\0")
    assert net.a.device.drops.snapshot() == {"cookie_reply": 2}


def test_load_meter_tolerates_a_burst_and_a_steady_trickle() -> None:
    meter = LoadMeter()
    assert not any(meter.note(0) for _ in range(127))
    assert meter.note(0)
    meter = LoadMeter()
    assert not any(meter.note(i * 2 * MILLISECOND) for i in range(5000))


def test_source_limiter() -> None:
    limiter = SourceLimiter()
    assert [limiter.allow("x", 0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert limiter.allow("y", 0)
    assert limiter.allow("x", 50 * MILLISECOND)
    assert not limiter.allow("x", 50 * MILLISECOND)
    assert [limiter.allow("x", SECOND) for _ in range(6)] == [True] * 5 + [False]
    for i in range(20_000):
        limiter.allow(i, SECOND)
    assert len(limiter._buckets) <= 8192


@pytest.mark.parametrize(
    "paths",
    [
        [("udp", parse_ip("5.5.5.5"), port) for port in range(8)],
        [("udp", parse_ip(f"2001:db8::{port}"), port) for port in range(8)],
    ],
    ids=["ports of one address", "addresses of one /64"],
)
def test_senders_that_prove_their_address_are_limited_per_host(paths: list[Hashable]) -> None:
    now = START
    target = Device(dh.generate(SeededEntropy(1)), SeededEntropy(2))
    verdicts = []
    for number, path in enumerate(paths):
        caller = Device(dh.generate(SeededEntropy(100 + number)), SeededEntropy(200 + number))
        caller.wall_offset_ns = WALL - START
        caller.add_peer(target.public_key, [], now)
        target.add_peer(caller.public_key, [], now)
        flood(target, now, 300)
        caller.initiate(target.public_key, now)
        target.receive([bytes(b.data) for _, b in caller.take_outgoing()], path, now)
        caller.receive([d for _, d in target.take_path_outgoing()], "x", now)
        later = now + 6 * SECOND
        caller.handle_deadline(later)
        flood(target, later, 300)
        target.receive([bytes(b.data) for _, b in caller.take_outgoing()], path, later)
        verdicts.append(len(target.take_outgoing()))
    assert verdicts == [1] * 5 + [0] * 3
    assert target.drops.snapshot()["rate_limited"] == 3


def test_other_hosts_have_buckets_of_their_own() -> None:
    hosts = ["5.5.5.5", "5.5.5.6", "2001:db8::1", "2001:db8:0:1::1", "2001:db9::1"]
    assert len({source_host(("udp", parse_ip(ip), 1)) for ip in hosts}) == len(hosts)
    assert source_host(("derp", 1, b"k" * 32)) == ("derp", 1, b"k" * 32)


def test_without_a_valid_mac1_there_is_no_cookie_under_load() -> None:
    net = Net()
    flood(net.b.device, net.now)
    net.a.device.initiate(peer_id(net.b), net.now)
    ((_, batch),) = net.a.device.take_outgoing()
    forged = bytearray(batch.data)
    forged[116] ^= 1
    net.inject(net.b, bytes(forged))
    assert net.b.device.take_path_outgoing() == []
    assert net.b.device.drops.counts["mac1"] == 1


def test_mac1_names_the_receiver() -> None:
    """What is meant for another key is dropped before any Diffie-Hellman."""
    net = Net()
    third = Device(dh.generate(SeededEntropy(3)), SeededEntropy(4))
    third.add_peer(peer_id(net.a), [], net.now)
    net.a.device.initiate(peer_id(net.b), net.now)
    ((_, batch),) = net.a.device.take_outgoing()
    third.receive([bytes(batch.data)], net.a.path, net.now)
    assert third.drops.snapshot() == {"mac1": 1}


def test_a_response_under_load_is_answered_with_a_cookie_and_the_next_handshake_serves() -> None:
    net = Net()
    net.keep = lambda sender, datagram: sender == "a" or datagram[0] != 2
    packet = net.data(net.a)
    net.run(20 * MILLISECOND)
    (response,) = net.sent("b", 2)
    flood(net.a.device, net.now)  # the initiator is the one under load
    net.inject(net.a, response[1], net.b.path)
    net.run(20 * MILLISECOND)
    (cookie,) = net.sent("a", COOKIE_REPLY)
    assert net.b.device.drops.total == 0
    net.keep = lambda sender, datagram: True
    net.run(5 * SECOND)
    flood(net.a.device, net.now)
    net.run(SECOND)
    assert net.b.received == [packet]
    assert any(net.sent("b", 2)[1][1][-16:])
    assert net.sent("a", COOKIE_REPLY) == [cookie]


def test_a_cookie_is_used_for_120_seconds() -> None:
    static = dh.public_key(dh.generate(SeededEntropy(1)))
    checker, generator = CookieChecker(static, SeededEntropy(2)), CookieGenerator(static)
    first = generator.add_macs(bytes(116), START)
    reply = CookieReply.decode(checker.reply(first, 7, b"place", START))
    assert generator.consume_reply(reply, START)
    for age, used in ((0, True), (120 * SECOND - 1, True), (120 * SECOND, False), (60 * SECOND, False)):
        message = generator.add_macs(bytes(116), START + age)
        assert any(message[-16:]) == used  # once too old it is gone, whatever a clock says later
        assert checker.check_mac2(message, b"place", START + age) == used


def test_the_secret_of_cookies_changes_after_120_seconds() -> None:
    static = dh.public_key(dh.generate(SeededEntropy(1)))
    checker = CookieChecker(static, SeededEntropy(2))

    def cookied(at: int) -> bytes:
        generator = CookieGenerator(static)
        message = generator.add_macs(bytes(116), at)
        assert generator.consume_reply(CookieReply.decode(checker.reply(message, 7, b"place", at)), at)
        return generator.add_macs(bytes(116), at)

    one, two = cookied(START), cookied(START + 120 * SECOND)
    assert one == two  # the same secret, so the same cookie
    assert checker.check_mac2(one, b"place", START + 120 * SECOND)
    assert not checker.check_mac2(one, b"place", START + 120 * SECOND + 1)
    three = cookied(START + 120 * SECOND + 1)
    assert three != one
    assert checker.check_mac2(three, b"place", START + 240 * SECOND)
    assert not checker.check_mac2(one, b"place", START + 120 * SECOND + 2)
    assert not checker.check_mac2(three, b"another place", START + 240 * SECOND)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=8), st.booleans())
def test_garbage_never_raises(datagrams: list[bytes], established: bool) -> None:
    device = _device(established)
    assert device.receive(datagrams, "somewhere", START + SECOND) == []
    assert device.drops.total == len(datagrams)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([1, 2, 3, 4]),
    st.integers(0, 147),
    st.integers(1, 255),
    st.integers(-3, 3),
)
def test_altered_real_messages_never_raise_and_never_deliver(kind: int, at: int, flip: int, grow: int) -> None:
    net = Net()
    flood(net.b.device, net.now, 200)
    net.data(net.a)
    net.run(7 * SECOND)
    message = bytearray(next(d for _, _, d in net.log if d[0] == kind))
    before = (len(net.a.received), len(net.b.received))
    message[at % len(message)] ^= flip
    if grow < 0:
        del message[grow:]
    else:
        message += bytes(grow)
    drops = net.a.device.drops.total, net.b.device.drops.total
    net.inject(net.a, bytes(message))
    net.inject(net.b, bytes(message))
    net.run(SECOND)
    assert (len(net.a.received), len(net.b.received)) == before
    assert net.a.device.drops.total > drops[0]
    assert net.b.device.drops.total > drops[1]


def _device(established: bool) -> Device:
    net = Net()
    if established:
        net.data(net.a)
        net.run(SECOND)
    else:
        net.a.device.add_peer(peer_id(net.b), [parse_prefix("0.0.0.0/0")], net.now)
    return net.b.device
