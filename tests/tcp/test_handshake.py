"""Opening: RFC 9293 §3.5, what is offered and agreed, and everything that can go wrong before ESTABLISHED."""

import pytest

from tests.tcp.kit import Pipe, Script, payload_of
from tsnetpy.base.errors import LocalProtocolError
from tsnetpy.base.instant import MILLISECOND, SECOND
from tsnetpy.tcp import Connection, Listener, State, TcpConfig, rst_for
from tsnetpy.tcp.flags import ACK, CLOSED, ERROR, ESTABLISHED, FIN, RST, SYN
from tsnetpy.tcp.options import parse_syn

ALL_OPTIONS = bytes.fromhex("020404c40402080a000000640000000001030307")
ONLY_MSS = bytes.fromhex("020404c4")


@pytest.mark.checklist(1, 70)
def test_syn_offers_everything_with_an_unscaled_window() -> None:
    script = Script(TcpConfig(mss=1240))
    (syn,) = script.out()
    assert (syn.seq, syn.flags, syn.payload_len) == (0, SYN, 0)
    assert syn.wnd == 65_535
    offer = parse_syn(syn.options)
    assert offer is not None
    assert (offer.mss, offer.wscale, offer.sack_permitted, offer.has_ts) == (1240, 8, True, True)
    assert len(syn.options) % 4 == 0


@pytest.mark.checklist(2, 16)
def test_syn_ack_completes_and_is_acknowledged() -> None:
    script = Script()
    script.out()
    script.now += 30 * MILLISECOND
    (ack,) = script.feed(0, 1, SYN | ACK, options=ALL_OPTIONS)
    assert (ack.seq, ack.ack, ack.flags) == (1, 1, ACK)
    assert script.conn.take_ready() & ESTABLISHED
    info = script.conn.info()
    assert info.srtt == 30 * MILLISECOND
    assert info.sack
    assert info.timestamps
    assert info.window_scaling
    assert info.mss == 1220 - 12


@pytest.mark.parametrize(
    ("options", "mss"),
    [(b"", 536), (bytes.fromhex("02040000"), 536), (bytes.fromhex("02040008"), 48), (bytes.fromhex("0204ffff"), 1220)],
)
@pytest.mark.checklist(12, 82)
@pytest.mark.attack(8)
def test_peer_mss_absent_zero_tiny_huge(options: bytes, mss: int) -> None:
    assert Script.established(options=options).conn.info().mss == mss


@pytest.mark.checklist(14, 15, 120)
def test_options_not_offered_back_are_never_used() -> None:
    script = Script.established(options=ONLY_MSS)
    info = script.conn.info()
    assert (info.sack, info.timestamps, info.window_scaling) == (False, False, False)
    script.conn.send(b"x", script.now)
    (data,) = script.out()
    assert data.options == b""
    (ack,) = script.feed(5, 1, payload=b"gap")
    assert ack.options == b""
    assert ack.wnd == 65_535


@pytest.mark.checklist(14)
@pytest.mark.attack(8)
def test_window_shift_above_fourteen_counts_as_fourteen() -> None:
    offer = parse_syn(bytes.fromhex("030fff00")[:0] + bytes.fromhex("0303ff00"))
    assert offer is not None
    assert offer.wscale == 14


@pytest.mark.checklist(3)
def test_wrong_ack_in_syn_sent_draws_a_reset_and_a_new_syn() -> None:
    script = Script()
    script.out()
    out = script.feed(0, 9, SYN | ACK, options=ALL_OPTIONS)
    assert [(s.seq, s.flags) for s in out] == [(9, RST), (0, SYN)]
    assert script.state() is State.SYN_SENT


@pytest.mark.checklist(4)
def test_bare_ack_in_syn_sent() -> None:
    script = Script()
    script.out()
    assert [s.flags for s in script.feed(0, 7, ACK)] == [RST, SYN]
    assert script.feed(0, 1, ACK) == []
    assert script.state() is State.SYN_SENT


@pytest.mark.checklist(5, 6)
def test_reset_in_syn_sent_counts_only_with_the_exact_ack() -> None:
    script = Script()
    script.out()
    assert script.feed(0, 0, RST) == []
    assert script.feed(0, 5, RST | ACK) == []
    assert script.state() is State.SYN_SENT
    assert script.feed(0, 1, RST | ACK) == []
    assert script.state() is State.CLOSED
    assert script.conn.error == "refused"
    assert script.conn.take_ready() == CLOSED | ERROR


@pytest.mark.checklist(8, 98)
def test_syn_retries_double_and_end() -> None:
    script = Script(TcpConfig(syn_retries=3))
    times = [at for at, s in script.wait(60 * SECOND) if s.flags == SYN]
    assert times == [0, 1 * SECOND, 3 * SECOND, 7 * SECOND]
    assert script.conn.error == "timeout"
    assert script.conn.next_deadline() is None
    with pytest.raises(LocalProtocolError):
        script.conn.send(b"late", script.now)


@pytest.mark.checklist(7, 38)
@pytest.mark.attack(23)
def test_icmp_hard_error_ends_only_an_attempt() -> None:
    script = Script()
    script.out()
    script.conn.icmp_error(False, "unreachable")
    assert script.state() is State.SYN_SENT
    script.conn.icmp_error(True, "unreachable")
    assert script.conn.error == "unreachable"
    other = Script.established()
    other.conn.icmp_error(True, "unreachable")
    assert other.state() is State.ESTABLISHED


@pytest.mark.parametrize("how", ["close", "abort"])
@pytest.mark.checklist(9)
def test_closing_in_syn_sent_is_silent(how: str) -> None:
    script = Script()
    script.out()
    getattr(script.conn, how)(script.now)
    assert script.out() == []
    assert script.state() is State.CLOSED
    assert script.conn.error is None


@pytest.mark.checklist(10)
def test_data_and_fin_queued_before_establishment_go_out_after_it() -> None:
    script = Script()
    assert script.conn.send(b"early", script.now) == 5
    script.conn.shutdown(script.now)
    script.out()
    out = script.feed(0, 1, SYN | ACK, options=ALL_OPTIONS)
    assert payload_of(out[-1]) == b"early"
    assert out[-1].flags & FIN
    assert script.state() is State.FIN_WAIT_1


@pytest.mark.attack(7)
def test_malformed_options_on_a_syn_are_dropped() -> None:
    script = Script()
    script.out()
    assert script.feed(0, 1, SYN | ACK, options=b"\x02\x00\x00\x00") == []
    assert script.state() is State.SYN_SENT
    assert Connection.accept(TcpConfig(), 1, 2, 3, b"\x08\x0a\x00\x00", 0) is None


@pytest.mark.parametrize("flags", [SYN | FIN, SYN | RST, SYN | FIN | ACK])
@pytest.mark.attack(10)
def test_contradictory_flags_are_dropped(flags: int) -> None:
    script = Script.established()
    assert script.feed(1, 1, flags) == []
    assert script.state() is State.ESTABLISHED


@pytest.mark.checklist(17)
def test_simultaneous_open() -> None:
    pipe = Pipe(simultaneous=True)
    pipe.run(SECOND)
    assert pipe.a.state is State.ESTABLISHED
    assert pipe.b.state is State.ESTABLISHED
    data = bytes(range(256)) * 100
    assert pipe.transfer(data, data) == (data, data)


@pytest.mark.checklist(18)
def test_reset_during_simultaneous_open() -> None:
    script = Script()
    script.out()
    (syn_ack,) = script.feed(0, 0, SYN, options=ALL_OPTIONS)
    assert syn_ack.flags == SYN | ACK
    assert script.state() is State.SYN_RECEIVED
    script.feed(1, 1, RST)
    assert script.state() is State.CLOSED
    assert script.conn.error == "refused"


# -- passive ---------------------------------------------------------------------------------------


def accept(listener: Listener, key: object = "peer", options: bytes = ALL_OPTIONS, now: int = SECOND) -> Connection:
    conn = listener.receive_syn(key, 1000, 64_000, options, now, 5000)
    assert conn is not None
    return conn


@pytest.mark.checklist(21, 120)
def test_syn_ack_offers_only_what_the_syn_had() -> None:
    conn = accept(Listener(TcpConfig()), options=ONLY_MSS)
    (syn_ack,) = conn.segments_to_send(SECOND)
    assert (syn_ack.seq, syn_ack.ack, syn_ack.flags) == (5000, 1001, SYN | ACK)
    offer = parse_syn(syn_ack.options)
    assert offer is not None
    assert (offer.mss, offer.wscale, offer.sack_permitted, offer.has_ts) == (1220, -1, False, False)


def test_syn_ack_echoes_the_timestamp() -> None:
    conn = accept(Listener(TcpConfig()))
    (syn_ack,) = conn.segments_to_send(SECOND)
    offer = parse_syn(syn_ack.options)
    assert offer is not None
    assert offer.ts_ecr == 100


@pytest.mark.checklist(32, 98)
@pytest.mark.attack(28)
def test_repeated_syn_draws_the_syn_ack_again() -> None:
    conn = accept(Listener(TcpConfig()))
    conn.segments_to_send(SECOND)
    conn.receive_segment(1000, 0, SYN, 64_000, ALL_OPTIONS, b"", 2 * SECOND)
    (again,) = conn.segments_to_send(2 * SECOND)
    assert again.flags == SYN | ACK
    assert again.seq == 5000


@pytest.mark.parametrize("ack", [5000, 5002, 4000])
@pytest.mark.checklist(26)
def test_wrong_ack_in_syn_received_draws_a_reset_and_keeps_the_state(ack: int) -> None:
    conn = accept(Listener(TcpConfig()), options=ONLY_MSS)
    conn.segments_to_send(SECOND)
    conn.receive_segment(1001, ack, ACK, 64_000, b"", b"", SECOND)
    (rst,) = conn.segments_to_send(SECOND)
    assert (rst.seq, rst.flags) == (ack, RST)
    assert conn.state is State.SYN_RECEIVED


@pytest.mark.checklist(30, 31)
def test_final_ack_with_data_and_fin_counts() -> None:
    conn = accept(Listener(TcpConfig()), options=ONLY_MSS)
    conn.segments_to_send(SECOND)
    conn.receive_segment(1001, 5001, ACK | FIN, 64_000, b"", b"all at once", SECOND)
    assert conn.state is State.CLOSE_WAIT
    assert conn.read(100, SECOND) == b"all at once"
    assert conn.eof_received


@pytest.mark.checklist(28)
def test_reset_frees_an_embryo() -> None:
    listener = Listener(TcpConfig())
    conn = accept(listener)
    conn.receive_segment(1001, 0, RST, 0, b"", b"", SECOND)
    assert conn.state is State.CLOSED
    listener.forget(conn)
    assert listener.embryos == 0


@pytest.mark.checklist(7)
@pytest.mark.parametrize("hard", [False, True])
def test_an_unreachable_peer_frees_its_embryo(hard: bool) -> None:
    listener = Listener(TcpConfig())
    conn = accept(listener)
    conn.segments_to_send(SECOND)
    conn.icmp_error(hard, "unreachable")
    assert (conn.state, conn.error) == (State.CLOSED, "unreachable")
    assert conn.segments_to_send(SECOND) == []


def test_a_soft_error_does_not_end_a_simultaneous_open() -> None:
    script = Script()
    script.out()
    script.feed(0, 0, SYN)
    assert script.state() is State.SYN_RECEIVED
    script.conn.icmp_error(False, "unreachable")
    assert script.state() is State.SYN_RECEIVED
    script.conn.icmp_error(True, "unreachable")
    assert script.state() is State.CLOSED


@pytest.mark.checklist(32)
@pytest.mark.attack(27)
def test_embryo_dies_when_nobody_answers() -> None:
    listener = Listener(TcpConfig(syn_retries=2))
    conn = accept(listener)
    sent = len(conn.segments_to_send(SECOND))
    while (deadline := conn.next_deadline()) is not None:
        conn.handle_deadline(deadline)
        sent += len(conn.segments_to_send(deadline))
    assert sent == 3
    assert conn.state is State.CLOSED
    assert conn.error == "timeout"


@pytest.mark.checklist(33, 34)
@pytest.mark.attack(27, 29)
def test_embryo_cap_and_backlog() -> None:
    listener = Listener(TcpConfig(), backlog=2, max_embryos=3)
    conns = [accept(listener, key=i) for i in range(3)]
    assert listener.receive_syn(9, 1, 1, ONLY_MSS, 0, 1) is None
    assert listener.receive_syn(1, 1, 1, ONLY_MSS, 0, 1) is conns[1]
    for conn in conns[:2]:
        listener.on_established(conn)
    assert listener.receive_syn(10, 1, 1, ONLY_MSS, 0, 1) is None
    assert listener.drops.snapshot() == {"embryos": 1, "backlog": 1}
    assert listener.accept() is conns[0]
    assert listener.receive_syn(10, 1, 1, ONLY_MSS, 0, 1) is not None
    assert len(listener) == 1


@pytest.mark.checklist(37)
def test_closing_a_listener_resets_what_nobody_accepted() -> None:
    listener = Listener(TcpConfig())
    embryo, waiting = accept(listener, key=1), accept(listener, key=2)
    waiting.receive_segment(1001, 5001, ACK, 64_000, b"", b"", SECOND)
    listener.on_established(waiting)
    orphans = listener.close(SECOND)
    assert set(orphans) == {embryo, waiting}
    for conn in orphans:
        assert conn.segments_to_send(SECOND)[-1].flags & RST
    assert listener.accept() is None


@pytest.mark.parametrize(
    ("segment", "reset"),
    [
        ((7, 99, ACK, 5), (99, 0, RST)),
        ((7, 0, SYN, 0), (0, 8, RST | ACK)),
        ((0xFFFF_FFFF, 0, FIN, 10), (0, 10, RST | ACK)),
    ],
)
@pytest.mark.checklist(22, 23, 130)
def test_reset_for_no_connection(segment: tuple[int, int, int, int], reset: tuple[int, int, int]) -> None:
    assert rst_for(*segment) == reset
