"""Whatever arrives, the stack neither raises nor grows without bound, and does not work long over it."""

import gc
import sys
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ipstack.kit import A4, A6, B4, B6, PEER_B, drain, make_stack
from tests.nic.kit import ip_packet, tcp_packet, timestamps
from tsnetpy.base.addr import Endpoint
from tsnetpy.base.stats import Drops
from tsnetpy.ipstack import PacketFilter, StackLimits
from tsnetpy.nic.gro import coalesce

PROTOS = st.sampled_from([0, 1, 6, 17, 44, 58, 59, 60, 99, 132, 255])
BODY = st.binary(max_size=100)
V4 = st.builds(
    lambda proto, body, frag, src: ip_packet(src, A4, proto, body, frag=frag),
    PROTOS, BODY, st.sampled_from([0, 0, 0x2000, 0x2005, 10, 0x200A, 0x1FFF]), st.sampled_from([B4, A4, bytes(4)]),
)  # fmt: skip
V6 = st.builds(lambda proto, body, src: ip_packet(src, A6, proto, body), PROTOS, BODY, st.sampled_from([B6, A6]))
SEGMENT = st.builds(
    lambda seq, ack, flags, body, options, port: tcp_packet(
        seq, body, src=B4, dst=A4, ack=ack, flags=flags, options=options, sport=80, dport=port
    ),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 255),
    st.binary(max_size=50),
    st.one_of(st.binary(max_size=40).map(lambda b: b[: len(b) & ~3]), st.just(timestamps(1, 1))),
    st.sampled_from([5000, 2000, 9]),
)


@pytest.mark.attack(54)
@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(V4, V6, SEGMENT, st.binary(max_size=100)), max_size=30), st.integers(0, 2**40))
def test_ingress_never_raises(packets: list[bytes], step: int) -> None:
    stack = make_stack(limits=StackLimits(connections=20, queue=50))
    stack.tcp_listen(2000, 0)
    stack.udp_bind(53)
    stack.icmp_bind()
    stack.tcp_connect(Endpoint(B4, 80), 0, Endpoint(A4, 5000))
    table = PacketFilter()
    table.configure([], (A4, A6))
    drain(stack)
    now = 0
    for packet in packets:
        units = coalesce([(PEER_B, packet)], Drops(), verify=False)
        table.filter_inbound(units)
        stack.ingress(units, now)
        assert len(drain(stack, now)) <= 80
        stack.take_ready()
        now += step // 30
        deadline = stack.next_deadline()
        if deadline is not None and deadline <= now:
            stack.handle_deadline(now)
    assert len(drain(stack, now)) <= 80  # a retransmitted SYN may be due


def fed(packets: list[bytes]) -> Callable[[], None]:
    """Return what feeds a stack with sockets of all kinds *packets* once."""
    stack = make_stack(limits=StackLimits(connections=20, queue=50, fragment_datagrams_per_peer=2))
    stack.tcp_listen(2000, 0)
    stack.udp_bind(53)
    stack.tcp_connect(Endpoint(B4, 80), 0, Endpoint(A4, 5000))
    drain(stack)
    drops = Drops()

    def once() -> None:
        for packet in packets:
            stack.ingress(coalesce([(PEER_B, packet)], drops, verify=False), 0)
            stack.egress(0)
            stack.take_ready()

    return once


ANY_PACKET = st.one_of(V4, V6, SEGMENT, st.binary(max_size=1400))


@pytest.mark.attack(54)
@given(ANY_PACKET)
def test_a_packet_costs_bounded_work(packet: bytes) -> None:
    """Counted in Python calls, which no other process can make more."""
    once = fed([packet])
    calls = 0

    def count(frame: object, event: str, arg: object) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    for _ in range(3):
        calls = 0
        sys.setprofile(count)
        try:
            once()
        finally:
            sys.setprofile(before)
        assert calls <= 400


@pytest.mark.attack(18, 41, 54)
@settings(max_examples=3)
@given(st.lists(ANY_PACKET, min_size=30, max_size=60))
def test_packets_leave_no_lasting_memory(packets: list[bytes]) -> None:
    once = fed(packets)
    for _ in range(5):
        once()
    gc.collect()
    tracemalloc.start()
    try:
        held = tracemalloc.get_traced_memory()[0]
        for _ in range(30):
            once()
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - held <= 32_768
    finally:
        tracemalloc.stop()
