"""Lines of the acceptance checklist that no other file proves: odd segments in odd states."""

import pytest

from tests.tcp.kit import Pipe, Script
from tsnetpy.base.instant import MILLISECOND, SECOND
from tsnetpy.tcp import Connection, Listener, State, TcpConfig
from tsnetpy.tcp.flags import ACK, FIN, RST, SYN
from tsnetpy.tcp.options import encode_sack, parse_syn

SACK_OK = bytes.fromhex("020404c404020101")
ONLY_MSS = bytes.fromhex("020404c4")
NOW = 100 * SECOND


def embryo(options: bytes = ONLY_MSS, config: TcpConfig | None = None) -> Connection:
    conn = Listener(config or TcpConfig()).receive_syn("key", 1_000, 65_535, options, NOW, 5_000)
    assert conn is not None
    conn.segments_to_send(NOW)
    return conn


@pytest.mark.checklist(13)
def test_a_limit_on_the_mss_is_announced_and_kept() -> None:
    script = Script.established(TcpConfig(mss=700))
    assert script.conn.info().mss == 700
    script.conn.send(bytes(5_000), script.now)
    assert all(s.payload_len <= 700 or s.gso_size == 700 for s in script.out())
    fresh = Script(TcpConfig(mss=700))
    (syn,) = fresh.out()
    offer = parse_syn(syn.options)
    assert offer is not None
    assert offer.mss == 700


@pytest.mark.checklist(27)
def test_an_embryo_answers_segments_outside_its_window_at_a_limited_rate() -> None:
    conn = embryo()
    answers = 0
    for i in range(30):
        conn.receive_segment(500_000 + i, 5_001, ACK, 100, b"", b"", NOW + i * MILLISECOND)
        answers += len(conn.segments_to_send(NOW + i * MILLISECOND))
    assert answers <= 1
    assert conn.state is State.SYN_RECEIVED


@pytest.mark.checklist(36)
def test_the_backlog_may_change_while_listening() -> None:
    listener = Listener(TcpConfig(), backlog=1)
    conns = []
    for key in range(2):
        conn = listener.receive_syn(key, 1_000, 65_535, ONLY_MSS, NOW, 5_000)
        if conn is not None and key == 0:
            conn.segments_to_send(NOW)
            conn.receive_segment(1_001, 5_001, ACK, 65_535, b"", b"", NOW)
            listener.on_established(conn)
        conns.append(conn)
    assert conns[1] is None
    listener.backlog = 2
    assert listener.receive_syn(2, 1_000, 65_535, ONLY_MSS, NOW, 5_000) is not None


@pytest.mark.checklist(39)
def test_accepted_connections_have_the_options_of_the_listener() -> None:
    config = TcpConfig(nodelay=False, user_timeout=7 * SECOND, mss=900)
    conn = embryo(config=config)
    assert conn.tcb.config is config
    assert conn.info().mss == 900


@pytest.mark.checklist(41)
def test_unknown_options_and_data_on_a_syn_do_no_harm() -> None:
    md5 = bytes((19, 18)) + bytes(16)
    fast_open = bytes((34, 2, 1, 1))
    conn = embryo(ONLY_MSS + md5 + fast_open)
    conn.receive_segment(1_001, 5_001, ACK, 65_535, bytes((254, 6, 1, 2, 3, 4, 1, 1)), b"data", NOW)
    assert conn.state is State.ESTABLISHED
    assert conn.read(10, NOW) == b"data"


@pytest.mark.checklist(56)
def test_a_reset_with_a_hole_pending_is_no_clean_end() -> None:
    script = Script.established()
    script.feed(1, 1, payload=b"abc")
    script.feed(10, 1, ACK | FIN, payload=b"tail")
    script.feed(4, 1, RST)
    assert script.conn.error == "reset"
    assert not script.conn.eof_received
    assert script.conn.read(100, script.now) == b"abc"


@pytest.mark.checklist(63)
def test_no_window_updates_once_the_peer_has_finished() -> None:
    script = Script.established(TcpConfig(rcv_buf=8_000, rcv_buf_max=8_000, window_scaling=False))
    script.feed(1, 1, ACK | FIN, payload=b"x" * 8_000, packets=7)
    script.wait(SECOND)
    assert script.state() is State.CLOSE_WAIT
    while script.conn.read(3_000, script.now):
        assert script.out() == []


@pytest.mark.checklist(88)
def test_an_old_ack_changes_nothing_but_its_sack_blocks_count() -> None:
    script = Script.established(options=SACK_OK)
    mss = script.conn.info().mss
    script.conn.send(bytes(20 * mss), script.now)
    script.out()
    script.feed(1, 1 + 2 * mss, wnd=50_000)
    base = script.OUR_ISN
    block = encode_sack([((1 + 4 * mss + base) & 0xFFFFFFFF, (1 + 6 * mss + base) & 0xFFFFFFFF)])
    script.feed(1, 1, wnd=9, options=block)
    tcb = script.conn.tcb
    assert (tcb.snd_una - tcb.iss, tcb.snd_wnd) == (1 + 2 * mss, 50_000)
    assert script.conn._sender.recovery.flight.sacked.total == 2 * mss


@pytest.mark.checklist(140)
@pytest.mark.parametrize("state", [State.CLOSE_WAIT, State.CLOSING, State.LAST_ACK, State.FIN_WAIT_2])
@pytest.mark.parametrize("kind", ["seq", "ack"])
def test_unacceptable_segments_while_closing_are_answered_by_an_ack(state: State, kind: str) -> None:
    script = Script.established()
    nxt = 1
    if state in (State.CLOSE_WAIT, State.LAST_ACK):
        script.feed(1, 1, ACK | FIN)
        script.wait(100 * MILLISECOND)
        nxt = 2
    if state is not State.CLOSE_WAIT:
        script.conn.shutdown(script.now)
        script.out()
    if state is State.FIN_WAIT_2:
        script.feed(1, 2)
    if state is State.CLOSING:
        script.feed(1, 1, ACK | FIN)
        nxt = 2
    assert script.state() is state
    script.now += SECOND
    script.wait(0)
    if kind == "seq":
        answer = script.feed(nxt + 1_000_000, 1, ACK, b"x")
    else:
        answer = script.feed(nxt, 5_000, ACK, b"x")
    acks = [s for s in answer if s.flags == ACK or s.flags == ACK | FIN]
    assert acks
    assert acks[0].ack == nxt
    assert script.state() is state


@pytest.mark.checklist(19)
def test_a_connection_to_itself_opens_and_carries_data() -> None:
    """Its own SYN comes back: a simultaneous open with itself (RFC 9293 §3.5, figure 7)."""
    conn = Connection.connect(TcpConfig(), 77, NOW)
    for _ in range(10):
        for s in conn.segments_to_send(NOW):
            conn.receive_segment(s.seq, s.ack, s.flags, s.wnd, s.options, b"".join(map(bytes, s.payload)), NOW)
    assert conn.state is State.ESTABLISHED
    conn.send(b"echo", NOW)
    for s in conn.segments_to_send(NOW):
        conn.receive_segment(s.seq, s.ack, s.flags, s.wnd, s.options, b"".join(map(bytes, s.payload)), NOW)
    assert conn.read(10, NOW) == b"echo"


@pytest.mark.checklist(29)
def test_a_different_syn_for_an_embryo_does_not_change_it() -> None:
    """RFC 5961 §4.2 instead of a reset: a challenge, and the handshake under way can still complete."""
    conn = embryo()
    conn.receive_segment(1_500, 0, SYN, 65_535, ONLY_MSS, b"", NOW + SECOND // 2)
    answer = conn.segments_to_send(NOW + SECOND // 2)
    assert len(answer) <= 1
    assert conn.info().state == "SYN-RECEIVED"
    conn.receive_segment(1_001, 5_001, ACK, 65_535, b"", b"", NOW + SECOND)
    assert conn.info().state == "ESTABLISHED"


@pytest.mark.attack(53)
@pytest.mark.attack(44)
def test_a_peer_that_reads_nothing_holds_a_bounded_amount() -> None:
    pipe = Pipe(TcpConfig(user_timeout=30 * SECOND), TcpConfig(rcv_buf=10_000, rcv_buf_max=10_000))
    pipe.open()
    taken = 0
    while more := pipe.a.send(bytes(65_536), pipe.now):
        taken += more
    pipe.run(20 * SECOND)
    assert taken <= 256 * 1024
    assert pipe.a.send_space <= 10_000 + 256
    assert pipe.b.readable_bytes <= 10_000
