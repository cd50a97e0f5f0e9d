"""What goes out and when: segmentation, windows, Nagle, probes, timeouts, recovery, congestion."""

import pytest

from tests.tcp.kit import Pipe, Script, blob, payload_of
from tsnetpy.base.errors import ConfigError
from tsnetpy.base.instant import MILLISECOND, SECOND
from tsnetpy.tcp import State, TcpConfig
from tsnetpy.tcp.config import TcpConfig as Config
from tsnetpy.tcp.congestion.registry import create
from tsnetpy.tcp.congestion.reno import Reno
from tsnetpy.tcp.flags import ACK, FIN, PSH, RST
from tsnetpy.tcp.options import encode_sack
from tsnetpy.tcp.rtt import RttEstimator

SACK_OK = bytes.fromhex("020404c404020101")
MSS = 1220


def sack(script: Script, *ranges: tuple[int, int]) -> bytes:
    base = script.OUR_ISN
    return encode_sack([((left + base) & 0xFFFFFFFF, (right + base) & 0xFFFFFFFF) for left, right in ranges])


@pytest.mark.checklist(82, 83)
def test_initial_window_goes_out_as_one_super_segment() -> None:
    script = Script.established()
    data = blob(100_000)
    assert script.conn.send(data, script.now) == 100_000
    (segment,) = script.out()
    assert segment.payload_len == 10 * MSS
    assert segment.gso_size == MSS
    assert not segment.flags & PSH
    assert payload_of(segment) == data[: 10 * MSS]


def test_bytes_are_sent_by_reference() -> None:
    script = Script.established()
    data = blob(10 * MSS)
    script.conn.send(data, script.now)
    (segment,) = script.out()
    assert segment.payload[0] is data
    assert segment.flags & PSH


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_what_the_caller_may_change_is_copied(kind: type) -> None:
    script = Script.established()
    source = bytearray(blob(9000))
    expected = bytes(source)
    script.conn.send(kind(source), script.now)
    source[:] = bytes(9000)
    assert b"".join(payload_of(s) for s in script.out()) == expected


def test_super_segments_never_exceed_the_configured_size() -> None:
    script = Script.established(TcpConfig(max_gso_packets=48, max_segments_per_call=3))
    script.conn._sender.cc.cwnd = 1 << 20
    script.conn.tcb.snd_wnd = 1 << 20
    script.conn.send(blob(250_000), script.now)
    first = script.conn.segments_to_send(script.now)
    assert [s.payload_len for s in first] == [48 * MSS] * 3
    rest = script.conn.segments_to_send(script.now)
    assert sum(s.payload_len for s in rest) == 250_000 - 3 * 48 * MSS
    assert script.conn.segments_to_send(script.now) == []


@pytest.mark.checklist(85)
def test_zero_length_send_changes_nothing() -> None:
    script = Script.established()
    assert script.conn.send(b"", script.now) == 0
    assert script.out() == []


@pytest.mark.checklist(78, 79)
def test_nagle_keeps_one_small_packet_in_flight() -> None:
    script = Script.established(TcpConfig(nodelay=False))
    script.conn.send(b"a", script.now)
    assert len(script.out()) == 1
    script.conn.send(b"b", script.now)
    assert script.out() == []
    script.conn.send(b"c" * MSS, script.now)
    (full,) = script.out()
    assert full.payload_len == MSS
    (rest,) = script.feed(1, 2)
    assert rest.payload_len == 1


@pytest.mark.checklist(80)
def test_nagle_does_not_hold_the_last_bytes_before_fin() -> None:
    script = Script.established(TcpConfig(nodelay=False))
    script.conn.send(b"a", script.now)
    script.out()
    script.conn.send(b"b", script.now)
    script.conn.shutdown(script.now)
    (last,) = script.out()
    assert payload_of(last) == b"b"
    assert last.flags & FIN


@pytest.mark.attack(44)
def test_sender_does_not_fill_silly_windows() -> None:
    script = Script.established()
    script.conn.send(blob(20_000), script.now)
    script.out()
    out = script.feed(1, 10 * MSS + 1, wnd=300)
    assert out == []
    ((at, small),) = script.wait(250 * MILLISECOND)
    assert small.payload_len == 300  # the override timeout
    assert at >= 200 * MILLISECOND


@pytest.mark.checklist(72, 73, 74, 75)
def test_zero_window_probes_back_off_without_end_while_answered() -> None:
    script = Script.established(TcpConfig(data_retries=4))
    script.conn.send(blob(20_000), script.now)
    script.out()
    script.feed(1, 10 * MSS + 1, wnd=0)
    gaps = []
    for _ in range(12):
        (first, *_) = [script.conn.next_deadline() or 0]
        gaps.append(first - script.now)
        ((_, probe),) = script.wait(first - script.now)
        assert (probe.seq, probe.payload_len) == (10 * MSS, 0)
        script.feed(1, 10 * MSS + 1, wnd=0)
    assert gaps[1] == 2 * gaps[0]
    assert gaps[-1] == 60 * SECOND
    (data,) = script.feed(1, 10 * MSS + 1, wnd=60_000)
    assert data.seq == 10 * MSS + 1
    assert data.payload_len == 20_000 - 10 * MSS


@pytest.mark.checklist(73)
@pytest.mark.attack(44)
def test_unanswered_probes_end_the_connection() -> None:
    script = Script.established(TcpConfig(data_retries=4))
    script.conn.send(blob(20_000), script.now)
    script.out()
    script.feed(1, 10 * MSS + 1, wnd=0)
    out = script.wait(600 * SECOND)
    assert out[-1][1].flags & RST
    assert script.conn.error == "timeout"


@pytest.mark.checklist(69, 71)
def test_shrunk_window_stops_new_data_only() -> None:
    script = Script.established()
    script.conn.send(blob(40_000), script.now)
    script.out()
    assert script.feed(1, MSS + 1, wnd=MSS) == []
    assert script.conn.info().bytes_in_flight == 9 * MSS


def test_data_to_a_peer_that_opens_its_window_in_a_real_transfer() -> None:
    pipe = Pipe(b=TcpConfig(rcv_buf=20_000, rcv_buf_max=20_000))
    pipe.open()
    data = blob(100_000)
    pipe.a.send(data, pipe.now)
    pipe.run(30 * SECOND)
    assert pipe.b.readable_bytes == 20_000
    assert pipe.a.tcb.stats.zero_window_probes >= 3
    got = bytearray()
    while len(got) < len(data):
        got += pipe.b.read(7_000, pipe.now)
        pipe.step(pipe.now + SECOND)
        assert pipe.now < 2_000 * SECOND
    assert bytes(got) == data


# -- timeouts ----------------------------------------------------------------------------------------


@pytest.mark.checklist(90, 91, 95)
def test_retransmission_timer_doubles_and_gives_up() -> None:
    script = Script.established(TcpConfig(data_retries=3))
    script.conn.send(b"hello", script.now)
    out = script.wait(100 * SECOND)
    assert [(s.seq, payload_of(s)) for _, s in out[:-1]] == [(1, b"hello")] * 4
    times = [at for at, _ in out]
    base = times[1]
    assert 200 * MILLISECOND <= base < 210 * MILLISECOND
    assert times[1:4] == [base, 3 * base, 7 * base]
    assert out[-1][1].flags & RST
    assert script.conn.error == "timeout"


@pytest.mark.checklist(97, 98)
def test_fin_is_retransmitted() -> None:
    script = Script.established()
    script.conn.shutdown(script.now)
    out = script.wait(SECOND)
    assert [(s.seq, s.flags & FIN) for _, s in out] == [(1, FIN)] * 3


@pytest.mark.checklist(92, 96, 100)
def test_timeout_shrinks_to_one_packet_and_resends_in_slow_start() -> None:
    script = Script.established(TcpConfig(congestion="reno"))
    script.conn.send(blob(10 * MSS), script.now)
    script.out()
    out = script.wait(300 * MILLISECOND)
    assert [(s.seq, s.payload_len) for _, s in out] == [(1, MSS)]
    info = script.conn.info()
    assert (info.cwnd, info.ssthresh, info.recovery) == (MSS, 5 * MSS, "loss")
    (two,) = script.feed(1, 1 + MSS)
    assert (two.seq, two.payload_len, two.gso_size) == (1 + MSS, 2 * MSS, MSS)
    assert script.feed(1, 1 + 10 * MSS) == []
    assert script.conn.info().recovery == "open"
    assert script.conn.next_deadline() is None


@pytest.mark.checklist(95)
def test_user_timeout_ends_a_silent_peer() -> None:
    script = Script.established(TcpConfig(user_timeout=3 * SECOND))
    script.conn.send(b"anyone?", script.now)
    script.out()
    out = script.wait(60 * SECOND)
    assert out[-1][0] == 3 * SECOND
    assert out[-1][1].flags & RST
    assert script.conn.error == "timeout"


@pytest.mark.parametrize("window", [65_535, 0])
@pytest.mark.parametrize("what", ["data", "fin"])
def test_silence_before_does_not_count_towards_the_user_timeout(window: int, what: str) -> None:
    script = Script.established(TcpConfig(user_timeout=3 * SECOND))
    script.conn.send(b"x", script.now)
    script.out()
    script.feed(1, 2, wnd=window)
    script.wait(3600 * SECOND)
    start = script.now
    if what == "data":
        script.conn.send(b"x", script.now)
    else:
        script.conn.shutdown(script.now)
    script.wait(2900 * MILLISECOND)
    assert script.state() is not State.CLOSED
    while script.state() is not State.CLOSED:
        script.wait(MILLISECOND)
    assert script.now - start == 3 * SECOND
    assert script.conn.error == "timeout"


@pytest.mark.checklist(69, 73)
@pytest.mark.parametrize("timeout", [0, 300])
def test_a_window_that_is_taken_back_does_not_end_the_connection(timeout: int) -> None:
    script = Script.established(TcpConfig(data_retries=5, user_timeout=timeout * SECOND))
    script.conn.send(blob(3 * MSS), script.now)
    script.out()
    script.feed(1, 1, wnd=0)
    sent = []
    for _ in range(20):  # it answers, and takes nothing
        deadline = script.conn.next_deadline()
        assert deadline is not None
        sent += script.wait(deadline - script.now)
        script.feed(1, 1, wnd=0)
    assert script.state() is State.ESTABLISHED
    assert len(sent) >= 19
    (again, *_) = script.feed(1, 1, wnd=65_535)
    assert again.seq == 1
    script.feed(1, 1 + MSS, wnd=0)
    while script.state() is not State.CLOSED:  # and now it has gone
        script.wait(SECOND)
    assert script.conn.error == "timeout"


def test_what_nobody_fetches_ends_by_the_user_timeout_too() -> None:
    script = Script.established(TcpConfig(user_timeout=3 * SECOND))
    script.wait(3600 * SECOND)
    script.conn.send(b"x", script.now)
    start = script.now
    tries = []
    while (deadline := script.conn.next_deadline()) is not None:  # the way out is blocked: out() is never called
        script.now = deadline
        script.conn.handle_deadline(deadline)
        tries.append(script.conn.info().probes)
    assert script.conn.error == "timeout"
    assert 3 * SECOND <= script.now - start <= 3500 * MILLISECOND
    assert tries[:-1] == list(range(1, len(tries)))
    assert script.conn.info().backoff == 0


def test_what_was_fetched_late_is_sent_and_counts_from_then() -> None:
    script = Script.established(TcpConfig(user_timeout=3 * SECOND))
    script.conn.send(b"x", script.now)
    for _ in range(4):
        deadline = script.conn.next_deadline()
        assert deadline is not None
        script.now = deadline
        script.conn.handle_deadline(deadline)
    assert script.conn.info().probes == 4
    assert [s.payload_len for s in script.out()] == [1]
    script.now += 10 * MILLISECOND
    script.feed(1, 2)
    assert script.conn.next_deadline() is None
    script.conn.send(b"y", script.now)
    script.out()
    assert script.conn.info().probes == 0
    script.wait(2900 * MILLISECOND)
    assert script.state() is State.ESTABLISHED


@pytest.mark.checklist(146)
@pytest.mark.attack(45)
def test_keepalive_probes_and_gives_up() -> None:
    config = TcpConfig(keepalive_idle=60 * SECOND, keepalive_interval=10 * SECOND, keepalive_probes=3)
    script = Script.established(config)
    ((at, probe),) = script.wait(65 * SECOND)
    assert at == 60 * SECOND
    assert (probe.seq, probe.payload_len, probe.flags) == (0, 0, ACK)
    script.feed(1, 1)
    out = script.wait(200 * SECOND)
    assert [at for at, _ in out] == [60 * SECOND, 70 * SECOND, 80 * SECOND, 90 * SECOND]
    assert script.conn.error == "timeout"
    pipe = Pipe(config)
    pipe.open()
    pipe.run(3600 * SECOND)
    assert pipe.a.state is State.ESTABLISHED


@pytest.mark.checklist(93)
def test_no_sample_from_retransmitted_data_without_timestamps() -> None:
    script = Script.established()
    script.now += MILLISECOND
    before = script.conn.info().srtt
    script.conn.send(b"x", script.now)
    script.wait(SECOND)
    script.feed(1, 2)
    assert script.conn.info().srtt == before


@pytest.mark.checklist(91, 94)
def test_rto_follows_a_table_of_samples() -> None:
    rtt = RttEstimator(Config())
    assert rtt.rto == SECOND
    rtt.sample(100 * MILLISECOND)
    assert (rtt.srtt, rtt.rttvar, rtt.rto) == (100 * MILLISECOND, 50 * MILLISECOND, 300 * MILLISECOND)
    rtt.sample(180 * MILLISECOND)
    assert rtt.srtt == 110 * MILLISECOND
    assert rtt.rttvar == 57_500_000
    rtt.back_off()
    rtt.back_off()
    assert rtt.rto == 4 * (110 * MILLISECOND + 230 * MILLISECOND)
    for _ in range(40):
        rtt.back_off()
    assert rtt.rto == 120 * SECOND
    rtt.sample(110 * MILLISECOND)
    assert rtt.rto < SECOND


# -- loss recovery -----------------------------------------------------------------------------------


@pytest.mark.checklist(101, 105)
def test_third_duplicate_ack_resends_once_and_limited_transmit_keeps_the_clock() -> None:
    script = Script.established(TcpConfig(congestion="reno"))
    script.conn.send(blob(30 * MSS), script.now)
    script.out()
    for expected in (11, 12):
        (new,) = script.feed(1, 1)
        assert (new.seq, new.payload_len) == (1 + (expected - 1) * MSS, MSS)
    (again,) = script.feed(1, 1)
    assert (again.seq, again.payload_len) == (1, MSS)
    info = script.conn.info()
    assert info.recovery == "recovery"
    assert info.ssthresh == info.cwnd == 6 * MSS
    assert script.feed(1, 1) == []
    assert script.conn.info().fast_retransmits == 1


@pytest.mark.checklist(103, 106)
def test_newreno_partial_ack_resends_the_next_hole() -> None:
    script = Script.established()
    script.conn.send(blob(10 * MSS), script.now)
    script.out()
    for _ in range(3):
        out = script.feed(1, 1)
    assert [s.seq for s in out] == [1]
    (hole,) = script.feed(1, 1 + 4 * MSS)
    assert (hole.seq, hole.payload_len) == (1 + 4 * MSS, MSS)
    assert script.feed(1, 1 + 10 * MSS) == []
    assert script.conn.info().recovery == "open"


@pytest.mark.checklist(102)
def test_data_or_a_changed_window_is_no_duplicate_ack() -> None:
    script = Script.established()
    script.conn.send(blob(10 * MSS), script.now)
    script.out()
    for i in range(5):
        script.feed(1, 1, wnd=60_000 + i)
    for i in range(5):
        script.feed(1 + i, 1, payload=b"x", wnd=60_004)
    assert script.conn.info().fast_retransmits == 0


@pytest.mark.checklist(108)
def test_sack_resends_exactly_the_holes() -> None:
    script = Script.established(options=SACK_OK)
    script.conn.send(blob(10 * MSS), script.now)
    script.out()
    ranges = [(1 + 1 * MSS, 1 + 3 * MSS), (1 + 4 * MSS, 1 + 9 * MSS)]
    out = script.feed(1, 1, options=sack(script, *ranges))
    assert (out[0].seq, out[0].payload_len) == (1, MSS)
    seqs = {s.seq for s in out}
    assert 1 + 3 * MSS in seqs
    assert not seqs & {1 + MSS, 1 + 4 * MSS}
    script.feed(1, 1 + 10 * MSS)
    assert script.conn.info().recovery == "open"


def test_one_sacked_packet_is_reordering_not_loss() -> None:
    script = Script.established(options=SACK_OK)
    script.conn.send(blob(10 * MSS), script.now)
    script.out()
    assert script.feed(1, 1, options=sack(script, (1 + MSS, 1 + 2 * MSS))) == []
    assert script.conn.info().recovery == "disorder"


@pytest.mark.checklist(104)
def test_no_fast_retransmission_into_a_closed_window() -> None:
    script = Script.established(options=SACK_OK)
    script.conn.send(blob(10 * MSS), script.now)
    script.out()
    assert script.feed(1, 1, wnd=0, options=sack(script, (1 + MSS, 1 + 8 * MSS))) == []
    assert [s.seq for s in script.feed(1, 1, options=sack(script, (1 + MSS, 1 + 8 * MSS)))][:1] == [1]


@pytest.mark.checklist(100)
@pytest.mark.attack(40)
def test_timeout_forgets_the_scoreboard() -> None:
    script = Script.established(options=SACK_OK)
    script.conn.send(blob(10 * MSS), script.now)
    script.out()
    script.feed(1, 1, options=sack(script, (1 + MSS, 1 + 2 * MSS)))
    script.wait(SECOND)
    (resent,) = script.feed(1, 1 + MSS)
    assert resent.seq == 1 + MSS  # reneged, for all we know


@pytest.mark.checklist(147)
def test_smaller_mtu_resends_in_smaller_packets_without_penalty() -> None:
    script = Script.established()
    script.conn.send(blob(10 * MSS), script.now)
    script.out()
    cwnd = script.conn.info().cwnd
    script.conn.mtu_changed(600)
    out = script.out()
    assert out[0].seq == 1
    assert all(s.gso_size in (0, 600) for s in out)
    assert script.conn.info().cwnd == cwnd
    script.conn.mtu_changed(1000)
    assert script.conn.info().mss == 1000


@pytest.mark.parametrize("before", [MSS, 600])
@pytest.mark.parametrize("lost", [False, True])
def test_reports_about_packets_of_another_size_count(before: int, lost: bool) -> None:
    script = Script.established(options=SACK_OK)
    script.conn.mtu_changed(before)
    script.conn.send(blob(8 * before), script.now)
    script.out()
    script.conn.mtu_changed(600 if before == MSS else MSS, lost)
    script.feed(1, 1, options=sack(script, (1 + before, 1 + 2 * before)))
    assert script.conn.info().sacked_bytes == before
    # What is sent from now on is taken by whole packets again: half a one is none.
    mss = script.conn.info().mss
    script.feed(1, 1 + 8 * before)
    script.conn.send(blob(8 * mss), script.now)
    script.out()
    start = 1 + 8 * before
    script.feed(1, start, options=sack(script, (start + mss, start + 2 * mss + mss // 2)))
    assert script.conn.info().sacked_bytes == mss


# -- congestion window -------------------------------------------------------------------------------


@pytest.mark.parametrize("packets_per_ack", [1, 2, 4, 10])
@pytest.mark.checklist(110)
@pytest.mark.attack(34)
def test_slow_start_doubles_per_round_trip_whatever_an_ack_covers(packets_per_ack: int) -> None:
    script = Script.established()
    script.conn.send(blob(100 * MSS), script.now)
    script.out()
    acked = 0
    while acked < 10:
        acked = min(10, acked + packets_per_ack)
        script.feed(1, 1 + acked * MSS)
    assert script.conn.info().cwnd == 20 * MSS


@pytest.mark.checklist(111)
@pytest.mark.attack(34)
def test_congestion_avoidance_adds_one_packet_per_window() -> None:
    reno = Reno(1000, 10)
    reno.on_congestion(20_000, 0)
    assert (reno.cwnd, reno.ssthresh) == (10_000, 10_000)
    for _ in range(10):
        reno.on_ack(1000, 0, 0, 0, False)
    assert reno.cwnd == 11_000
    reno.on_ack(1 << 30, 0, 0, 0, False)
    assert reno.cwnd == 12_000  # optimistic ACKs gain one packet


@pytest.mark.checklist(110)
def test_application_limited_flow_does_not_grow() -> None:
    script = Script.established()
    for i in range(50):
        script.conn.send(b"x", script.now)
        script.out()
        script.feed(1, 2 + i)
    assert script.conn.info().cwnd == 10 * MSS


@pytest.mark.checklist(113)
def test_idle_falls_back_to_the_initial_window() -> None:
    script = Script.established()
    script.conn._sender.cc.cwnd = 100 * MSS
    script.conn.send(b"x", script.now)
    script.out()
    script.feed(1, 2)
    script.now += 10 * SECOND
    script.conn.send(blob(60 * MSS), script.now)
    (burst,) = script.out()
    assert burst.payload_len == 10 * MSS


def test_unknown_congestion_control_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError):
        create("vegas", 1000, 10)
