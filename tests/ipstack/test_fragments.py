"""Reassembly: order, overlaps, limits, timeouts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP, fragment
from scapy.packet import Raw

from tests.ipstack.kit import A4, A6, B4, B6, feed, make_stack
from tests.nic.kit import ip_packet
from tsnetpy.base.instant import SECOND
from tsnetpy.base.stats import Drops
from tsnetpy.ipstack import StackLimits
from tsnetpy.ipstack.fragments import Reassembler
from tsnetpy.nic.parse import parse
from tsnetpy.wire import icmpv4, icmpv6, ipv4, ipv6, udp

PEER = b"\x0b" * 32
DATAGRAM = udp.encode_datagram(B4, A4, 7, 9, bytes(range(200)) + bytes(range(200)))


def frag4(start: int, end: int, *, more: bool | None = None, ident: int = 1, body: bytes = DATAGRAM) -> bytes:
    """Return bytes *start* to *end* of *body* as an IPv4 fragment."""
    piece = body[start:end]
    header = ipv4.Ipv4Header(B4, A4, 17, 20 + len(piece), ident=ident, fragment_offset=start)
    header.more_fragments = end < len(body) if more is None else more
    return header.encode() + piece


def frag6(start: int, end: int, body: bytes, ident: int = 1) -> bytes:
    """Return bytes *start* to *end* of *body* as an IPv6 fragment."""
    head = ipv6.FragmentHeader(17, start, end < len(body), ident)
    return ip_packet(B6, A6, 44, head.encode() + body[start:end])


def collect(*packets: bytes, now: int = 0) -> tuple[list[bytes], Drops, Reassembler]:
    """Feed fragments into a reassembler; return the datagrams' transport parts that came out."""
    drops = Drops()
    reassembler = Reassembler(StackLimits(), drops)
    whole = []
    for packet in packets:
        rx = parse(PEER, packet, drops)
        if rx is not None:
            raw = reassembler.add(rx, now)
            if raw is not None:
                done = parse(PEER, raw, drops)
                assert done is not None
                assert not done.fragment
                whole.append(done.transport())
    return whole, drops, reassembler


@pytest.mark.checklist(149)
@given(st.permutations([(0, 104), (104, 200), (200, 296), (296, 408)]))
def test_any_order(order: list[tuple[int, int]]) -> None:
    whole, drops, reassembler = collect(*[frag4(a, b) for a, b in order])
    assert whole == [DATAGRAM]
    assert drops.total == len(reassembler) == reassembler.held_bytes == 0
    body = udp.encode_datagram(B6, A6, 7, 9, DATAGRAM[8:])
    whole, drops, reassembler = collect(*[frag6(a, b, body) for a, b in order])
    assert whole == [body]
    assert drops.total == len(reassembler) == reassembler.held_bytes == 0


def test_scapy_fragments() -> None:
    packet = IP(src="100.64.0.2", dst="100.64.0.1", id=9) / UDP(sport=7, dport=9) / Raw(b"q" * 3000)
    parts = fragment(packet, 500)  # type: ignore[no-untyped-call]  # scapy has no types here
    whole, _, _ = collect(*[bytes(part) for part in reversed(parts)])
    assert whole[0][8:] == b"q" * 3000


@pytest.mark.checklist(149)
@pytest.mark.attack(15)
def test_exact_duplicates_are_ignored() -> None:
    whole, drops, _ = collect(frag4(0, 104), frag4(0, 104), frag4(104, 408))
    assert whole == [DATAGRAM]
    assert drops.snapshot() == {"fragment_duplicate": 1}


@pytest.mark.checklist(149)
@pytest.mark.attack(15)
@pytest.mark.parametrize(
    "packets",
    [
        [frag4(0, 104), frag4(96, 408)],  # the tail of the first
        [frag4(104, 408), frag4(0, 112)],  # the head of the second
        [frag4(0, 200), frag4(80, 120)],  # inside
        [frag4(80, 120), frag4(0, 200)],  # around
        [frag4(0, 104), frag4(0, 96)],  # same start, shorter
        [frag4(0, 104), frag4(0, 104, body=bytes(408))],  # same place, other content
        [frag4(80, 200, more=False), frag4(200, 408)],  # two ends
        [frag4(200, 408), frag4(80, 200, more=False)],
        [frag4(80, 120, more=True), frag4(80, 120, more=False)],  # same bytes, now the last
    ],
)
def test_overlap_discards_the_whole_datagram(packets: list[bytes]) -> None:
    rest = [frag4(0, 104), frag4(104, 200), frag4(200, 408)]
    whole, drops, reassembler = collect(*packets, *rest)
    assert whole == []
    assert drops.counts["fragment_overlap"] == len(packets) + len(rest)
    assert reassembler.held_bytes == 0
    assert len(reassembler) == 1  # remembered, so that the rest is discarded as well


@pytest.mark.checklist(149)
def test_another_identification_is_another_datagram() -> None:
    whole, _, _ = collect(frag4(0, 104), frag4(0, 104, ident=2), frag4(104, 408, ident=2), frag4(104, 408))
    assert whole == [DATAGRAM, DATAGRAM]


@pytest.mark.checklist(149)
@pytest.mark.attack(18)
def test_caps() -> None:
    drops = Drops()
    limits = StackLimits(fragment_datagrams=8, fragment_datagrams_per_peer=4)
    reassembler = Reassembler(limits, drops)
    for ident in range(20):
        rx = parse(PEER, frag4(0, 104, ident=ident), drops)
        assert rx is not None
        reassembler.add(rx, 0)
    assert len(reassembler) == 4
    other = parse(b"\x0c" * 32, frag4(104, 408, ident=19), drops)
    assert other is not None
    assert reassembler.add(other, 0) is not None  # the youngest survived
    assert drops.counts["fragment_memory"] == 16


@pytest.mark.checklist(149)
@pytest.mark.attack(18)
def test_memory_is_bounded() -> None:
    drops = Drops()
    limits = StackLimits(fragment_bytes=20_000, fragment_datagrams_per_peer=1000, fragment_datagrams=1000)
    reassembler = Reassembler(limits, drops)
    for ident in range(200):
        rx = parse(PEER, frag4(0, 304, ident=ident), drops)
        assert rx is not None
        reassembler.add(rx, 0)
        assert reassembler.held_bytes <= 20_000
    assert drops.counts["fragment_memory"] > 100


@pytest.mark.checklist(149)
def test_timeout_tells_the_sender_if_the_first_fragment_came() -> None:
    stack = make_stack()
    assert feed(stack, frag4(0, 104)) == []
    assert feed(stack, frag4(104, 200, ident=2)) == []
    assert stack.next_deadline() == 30 * SECOND
    stack.handle_deadline(30 * SECOND - 1)
    assert stack.drops.total == 0
    stack.handle_deadline(30 * SECOND)
    (unit,) = stack.egress(30 * SECOND)
    message = icmpv4.decode(unit.header + bytes(unit.payload[0]))
    assert (message.type, message.code) == (icmpv4.TIME_EXCEEDED, icmpv4.CODE_REASSEMBLY)
    assert message.body == frag4(0, 104)
    assert stack.drops.counts["fragment_timeout"] == 2
    assert stack.next_deadline() is None


@pytest.mark.checklist(149)
def test_ipv6_timeout() -> None:
    stack = make_stack()
    body = udp.encode_datagram(B6, A6, 7, 9, bytes(400))
    feed(stack, frag6(0, 104, body))
    assert stack.next_deadline() == 60 * SECOND
    stack.handle_deadline(60 * SECOND)
    (unit,) = stack.egress(60 * SECOND)
    assert unit.header[:2] == bytes((icmpv6.TIME_EXCEEDED, icmpv6.CODE_REASSEMBLY))


@pytest.mark.checklist(149)
@pytest.mark.attack(15)
def test_no_timeout_report_for_overlaps() -> None:
    stack = make_stack()
    feed(stack, frag4(0, 104))
    feed(stack, frag4(80, 120))
    stack.handle_deadline(30 * SECOND)
    assert stack.egress(30 * SECOND) == []
    assert stack.next_deadline() is None


def test_reassembled_checksum_is_verified() -> None:
    stack = make_stack()
    socket = stack.udp_bind(9)
    bad = DATAGRAM[:-1] + b"?"
    feed(stack, frag4(0, 104, body=bad))
    feed(stack, frag4(104, 408, body=bad))
    assert socket.recv_from() is None
    assert stack.drops.snapshot() == {"udp_checksum": 1}


@pytest.mark.checklist(149)
@pytest.mark.attack(16)
def test_larger_than_a_packet() -> None:
    # 65,528 bytes of data fit the offset field, but not the total length of an IPv4 packet.
    body = bytes(65528)
    whole, drops, _ = collect(frag4(0, 32768, body=body), frag4(32768, 65528, body=body))
    assert whole == []
    assert drops.snapshot() == {"fragment_length": 1}
