"""SYN cookies: handshakes beyond the cap of half-open ones (RFC 4987)."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.ipstack.kit import A4, A6, B4, B6, Dice, Net, drain, feed, make_stack
from tests.nic.kit import tcp_packet, timestamps
from tsnetpy.base.addr import Endpoint
from tsnetpy.base.instant import SECOND
from tsnetpy.ipstack import Stack, StackLimits, TcpListenerSocket
from tsnetpy.tcp import SynCookies, TcpConfig
from tsnetpy.tcp.cookies import LIFETIME, MSS_TABLE, SLOT
from tsnetpy.tcp.options import parse_syn
from tsnetpy.wire import tcp

NO_EMBRYOS = StackLimits(embryos=0)
MSS = b"\x02\x04\x04\xd8"
ALL = MSS + b"\x04\x02\x08\x0a" + (777).to_bytes(4, "big") + bytes(4) + b"\x01\x03\x03\x07"


def cookie_stack(limits: StackLimits = NO_EMBRYOS, backlog: int = 128) -> tuple[Stack, TcpListenerSocket]:
    stack = make_stack(limits=limits)
    return stack, stack.tcp_listen(2000, 0, backlog=backlog)


def syn_ack(stack: Stack, options: bytes = MSS, now: int = 0, sport: int = 1000, seq: int = 41) -> tcp.TcpHeader:
    """Send a SYN; return the SYN-ACK."""
    syn = tcp_packet(seq, src=B4, dst=A4, sport=sport, flags=tcp.SYN, ack=0, options=options)
    (packet,) = feed(stack, syn, now)
    head = tcp.decode(packet[20:])
    assert head.flags == tcp.SYN | tcp.ACK
    assert head.ack == seq + 1
    return head


def ack_of(head: tcp.TcpHeader, payload: bytes = b"", *, options: bytes = b"", change: int = 0) -> bytes:
    """Return the segment that ends the handshake; *change* spoils the acknowledgement."""
    ack = (head.seq + 1) ^ change
    return tcp_packet(
        head.ack, payload, src=B4, dst=A4, sport=head.dst_port, ack=ack, options=options, flags=tcp.ACK, wnd=500
    )


@pytest.mark.checklist(34)
@pytest.mark.attack(27)
def test_beyond_the_cap_the_peer_remembers_the_handshake() -> None:
    stack, listener = cookie_stack(StackLimits(embryos_per_peer=2))
    heads = [syn_ack(stack, sport=port) for port in range(1, 30)]
    assert stack.syn_cookies.sent == 27
    assert stack.tcp_connections == 2  # nothing is kept of the others
    for head in heads:
        assert feed(stack, ack_of(head)) == []
    assert stack.syn_cookies.accepted == 27
    assert stack.tcp_connections == 29
    count = 0
    while (socket := listener.accept()) is not None:
        count += 1
        assert socket.connection.state.value == "ESTABLISHED"
    assert count == 29


@pytest.mark.checklist(34)
def test_with_timestamps_window_scale_and_sack_survive() -> None:
    stack, listener = cookie_stack()
    now = 7 * SECOND
    head = syn_ack(stack, ALL, now)
    offer = parse_syn(head.options)
    assert offer is not None
    assert (offer.mss, offer.wscale, offer.sack_permitted, offer.ts_ecr) == (1240, 8, True, 777)
    feed(stack, ack_of(head, b"hello", options=timestamps(790, offer.ts_val)), now + SECOND)
    socket = listener.accept()
    assert socket is not None
    assert socket.read(100, now + SECOND) == b"hello"
    info = socket.connection.info()
    assert (info.sack, info.timestamps, info.window_scaling, info.mss) == (True, True, True, 1228)
    assert info.snd_wnd == 500 << 7
    # Our timestamps never run backwards, although the first one carried other things in its low bits.
    socket.send(b"x", now + SECOND)
    first = tcp.decode(drain(stack, now + SECOND)[0][20:])
    later = int.from_bytes(first.options[4:8], "big")
    assert 0 < (later - offer.ts_val) & 0xFFFFFFFF < 1100
    assert first.options[8:12] == (790).to_bytes(4, "big")


@pytest.mark.checklist(34)
def test_without_timestamps_what_does_not_fit_is_not_offered() -> None:
    stack, listener = cookie_stack()
    head = syn_ack(stack, MSS + b"\x04\x02\x01\x03\x03\x07")
    assert head.options == MSS
    feed(stack, ack_of(head))
    socket = listener.accept()
    assert socket is not None
    info = socket.connection.info()
    assert (info.sack, info.timestamps, info.window_scaling, info.snd_wnd) == (False, False, False, 500)


@pytest.mark.checklist(35)
@pytest.mark.parametrize("change", [1, 1 << 10, 1 << 23, 1 << 24, 1 << 27, 1 << 31])
def test_a_bad_cookie_draws_a_reset(change: int) -> None:
    stack, listener = cookie_stack()
    head = syn_ack(stack)
    bad = ack_of(head, change=change)
    (rst,) = feed(stack, bad)
    assert tcp.decode(rst[20:]).flags == tcp.RST
    assert rst[24:28] == bad[28:32]
    assert stack.syn_cookies.refused == 1
    assert listener.accept() is None
    feed(stack, ack_of(head))  # and the good one still works
    assert listener.accept() is not None


@pytest.mark.checklist(35)
def test_a_cookie_of_another_flow_draws_a_reset() -> None:
    stack, listener = cookie_stack()
    head = syn_ack(stack)
    head.dst_port = 1001
    assert tcp.decode(feed(stack, ack_of(head))[0][20:]).flags == tcp.RST
    head.dst_port = 1000
    head.ack += 1  # another sequence number than that of the SYN
    assert tcp.decode(feed(stack, ack_of(head))[0][20:]).flags == tcp.RST
    assert listener.accept() is None


@pytest.mark.checklist(35)
@pytest.mark.parametrize(("wait", "good"), [(0, True), (SLOT, True), (LIFETIME - 1, True), (LIFETIME, False)])
def test_a_cookie_lives_until_the_end_of_the_next_slot(wait: int, good: bool) -> None:
    stack, listener = cookie_stack()
    now = 10 * SLOT
    head = syn_ack(stack, now=now)
    syn_ack(stack, now=now + wait, sport=9)  # so that cookies are looked at
    answers = feed(stack, ack_of(head), now + wait)
    assert (listener.accept() is not None) == good
    assert bool(answers) != good


@pytest.mark.checklist(35)
def test_a_late_cookie_works_after_an_ordinary_syn_ack() -> None:
    stack, listener = cookie_stack(StackLimits(embryos=1))
    blocker = syn_ack(stack, sport=5)
    cookie = syn_ack(stack)
    feed(stack, tcp_packet(42, src=B4, dst=A4, sport=5, flags=tcp.RST, ack=0))  # room for an embryo again
    ordinary = syn_ack(stack)
    assert ordinary.seq != cookie.seq
    assert (stack.syn_cookies.sent, blocker.dst_port) == (1, 5)
    assert feed(stack, ack_of(cookie, b"late")) == []  # and no reset
    socket = listener.accept()
    assert socket is not None
    assert socket.read(10, 0) == b"late"
    # The embryo has made way and is no longer counted.
    syn_ack(stack, sport=6)
    assert stack.syn_cookies.sent == 1
    assert listener.accept() is None


@pytest.mark.checklist(35)
def test_a_wrong_ack_for_an_embryo_is_no_cookie() -> None:
    stack, listener = cookie_stack(StackLimits(embryos=1))
    first = syn_ack(stack, sport=5)
    syn_ack(stack)
    (rst,) = feed(stack, ack_of(first, change=2))
    assert tcp.decode(rst[20:]).flags == tcp.RST
    feed(stack, ack_of(first))
    assert listener.accept() is not None


@pytest.mark.checklist(33)
def test_a_full_queue_gives_no_cookies_and_takes_none_back() -> None:
    stack, listener = cookie_stack(backlog=1)
    first, second = syn_ack(stack, sport=1), syn_ack(stack, sport=2)
    feed(stack, ack_of(first))
    assert feed(stack, ack_of(second)) == []  # silence: the peer sends again
    syn = tcp_packet(1, src=B4, dst=A4, sport=3, flags=tcp.SYN, ack=0)
    assert feed(stack, syn) == []
    assert listener.accept() is not None
    assert listener.accept() is None
    feed(stack, ack_of(second))
    assert listener.accept() is not None


@pytest.mark.attack(54)
@given(st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF), st.sampled_from([0, 1, SLOT - 1, SLOT, 40 * SLOT]))
@example(0, 0xF8000001, 0)  # a cookie of the slot before the clock began
def test_no_ack_number_of_a_stranger_is_a_cookie_or_raises(seq: int, ack: int, now: int) -> None:
    stack, listener = cookie_stack()
    head = syn_ack(stack, now=now)
    if (seq, ack) == (head.ack, head.seq + 1):
        return
    feed(stack, tcp_packet(seq, src=B4, dst=A4, sport=1000, ack=ack), now)
    assert stack.syn_cookies.refused == 1
    assert listener.accept() is None


@pytest.mark.checklist(35)
@pytest.mark.parametrize("full", [False, True])
def test_data_that_comes_before_the_handshake_draws_no_reset(full: bool) -> None:
    stack, listener = cookie_stack(backlog=1)
    head = syn_ack(stack)
    if full:  # the ACK and the first data find no room
        other = syn_ack(stack, sport=2)
        feed(stack, ack_of(other))
        assert feed(stack, ack_of(head)) == []
        assert feed(stack, ack_of(head, b"first ")) == []
    second = tcp_packet(48, b"second", src=B4, dst=A4, sport=1000, ack=head.seq + 1)
    assert feed(stack, second) == []
    fin = tcp_packet(54, src=B4, dst=A4, sport=1000, ack=head.seq + 1, flags=tcp.ACK | tcp.FIN)
    assert feed(stack, fin) == []
    assert stack.drops.counts["before_handshake"] == 2
    if full:
        assert listener.accept() is not None
    feed(stack, ack_of(head, b"first "))
    feed(stack, second)
    socket = listener.accept()
    assert socket is not None
    assert socket.read(100, 0) == b"first second"
    # What no cookie of ours can have led to, or not of late, is reset.
    old = tcp_packet(48, b"second", src=B4, dst=A4, sport=7, ack=head.seq + 1 ^ 1 << 30)
    assert tcp.decode(feed(stack, old)[0][20:]).flags == tcp.RST
    late = tcp_packet(48, b"second", src=B4, dst=A4, sport=7, ack=head.seq + 1)
    syn_ack(stack, now=LIFETIME, sport=9)
    assert tcp.decode(feed(stack, late, LIFETIME)[0][20:]).flags == tcp.RST


@pytest.mark.attack(27)
def test_cookies_are_limited_and_can_be_switched_off() -> None:
    stack, _ = cookie_stack(StackLimits(embryos=0, cookie_burst=3))
    packets = [tcp_packet(1, src=B4, dst=A4, sport=port, flags=tcp.SYN, ack=0) for port in range(1, 11)]
    assert sum(len(feed(stack, packet)) for packet in packets) == 3
    assert stack.drops.counts["syn_limit"] == 7
    off, _ = cookie_stack(StackLimits(embryos=0, syn_cookies=False))
    assert feed(off, packets[0]) == []
    assert off.drops.counts["syn_limit"] == 1


@pytest.mark.attack(45, 53)
def test_cookies_respect_the_cap_of_connections() -> None:
    stack, _ = cookie_stack(StackLimits(embryos=0, connections_per_peer=2))
    heads = [syn_ack(stack, sport=port) for port in range(1, 5)]
    for head in heads:
        assert feed(stack, ack_of(head)) == []
    assert stack.tcp_connections == 2
    assert stack.drops.counts["syn_limit"] == 2


def test_stray_acks_cost_no_hash_when_no_cookie_is_out() -> None:
    stack, _ = cookie_stack()
    feed(stack, tcp_packet(1, src=B4, dst=A4, ack=7))
    assert stack.syn_cookies.refused == 0
    syn_ack(stack)
    feed(stack, tcp_packet(1, src=B4, dst=A4, ack=7))
    assert stack.syn_cookies.refused == 1
    feed(stack, tcp_packet(1, src=B4, dst=A4, ack=7), LIFETIME)
    assert stack.syn_cookies.refused == 1


@pytest.mark.attack(7)
def test_a_malformed_syn_gets_no_cookie() -> None:
    stack, _ = cookie_stack()
    assert feed(stack, tcp_packet(1, src=B4, dst=A4, flags=tcp.SYN, ack=0, options=b"\x02\x00\x00\x00")) == []
    assert stack.drops.counts["syn_refused"] == 1


@pytest.mark.parametrize("v6", [False, True])
def test_our_own_stack_at_both_ends(v6: bool) -> None:
    net = Net(limits=StackLimits(embryos=0))
    listener = net.b.tcp_listen(80, 0)
    client, server = net.open(Endpoint(B6 if v6 else B4, 80), listener)
    assert server.connection.info().window_scaling
    data = bytes(range(256)) * 2000
    assert net.transfer(client, server, data) == data
    assert net.b.syn_cookies.accepted == 1
    assert server.remote.ip == (A6 if v6 else A4)


@given(
    st.integers(0, 0xFFFFFFFF), st.integers(0, 10**18), st.integers(0, 0xFFFF), st.integers(0, 255), st.booleans(),
    st.integers(0, 0xFFFFFFFF), st.binary(min_size=12, max_size=36),
)  # fmt: skip
def test_what_a_cookie_keeps(
    seq: int, now: int, mss: int, wscale: int, sack: bool, ts_offset: int, name: bytes
) -> None:
    cookies = SynCookies(Dice(1))
    options = b"\x02\x04" + mss.to_bytes(2, "big") + b"\x03\x03" + bytes((wscale, 1)) + timestamps(5, 0)
    options += b"\x04\x02\x01\x01" if sack else b""
    answer = cookies.answer(name, TcpConfig(), seq, options, now, ts_offset)
    assert answer is not None
    sent = parse_syn(answer.options)
    assert sent is not None
    echo = timestamps(6, sent.ts_val)
    offer = cookies.check(name, seq + 1 & 0xFFFFFFFF, answer.seq + 1 & 0xFFFFFFFF, echo, now + SLOT // 2)
    assert offer is not None
    assert (offer.wscale, offer.sack_permitted, offer.ts_val) == (min(wscale, 14), sack, 6)
    assert offer.mss in MSS_TABLE
    if mss >= MSS_TABLE[0]:
        assert offer.mss <= mss
    clock = now // 1_000_000 + ts_offset
    assert 0 <= (clock - sent.ts_val) & 0xFFFFFFFF < 64
    assert cookies.check(name + b"?", seq + 1 & 0xFFFFFFFF, answer.seq + 1 & 0xFFFFFFFF, echo, now) is None
