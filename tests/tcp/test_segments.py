"""Arriving segments in synchronized states: RFC 9293 §3.10.7.4, RFC 5961, RFC 7323, RFC 2018."""

import pytest

from tests.tcp.kit import Script, payload_of
from tsnetpy.base.errors import LocalProtocolError
from tsnetpy.base.instant import MILLISECOND, SECOND
from tsnetpy.tcp import State, TcpConfig
from tsnetpy.tcp.flags import ACK, CLOSED, EOF, ERROR, FIN, PSH, READABLE, RST, SYN, URG, WRITABLE
from tsnetpy.tcp.options import encode_sack, encode_timestamps, parse_segment

SACK_OK = bytes.fromhex("020404d804020101")
TS_OK = bytes.fromhex("020404d80101080a0000006400000000")


@pytest.mark.checklist(42, 54)
def test_in_order_data_is_delivered_and_acknowledged() -> None:
    script = Script.established()
    assert script.feed(1, 1, ACK | PSH, b"hello") == []
    ((_, ack),) = script.wait(SECOND)
    assert ack.ack == 6
    assert script.conn.take_ready() == READABLE
    assert script.conn.read(3, script.now) == b"hel"
    assert script.conn.read(100, script.now) == b"lo"
    assert script.conn.read(100, script.now) == b""


@pytest.mark.checklist(59, 60)
def test_delayed_ack_after_the_quick_ones() -> None:
    script = Script.established(TcpConfig(quick_acks=0))
    assert script.feed(1, 1, payload=b"a") == []
    ((at, ack),) = script.wait(SECOND)
    assert at == 40 * MILLISECOND
    assert ack.ack == 2
    assert script.feed(2, 1, payload=b"b") == []
    (ack,) = script.feed(3, 1, payload=b"c")
    assert ack.ack == 4
    (ack,) = script.feed(4, 1, payload=b"d" * 3000, packets=3)
    assert ack.ack == 3004
    assert script.wait(SECOND) == []


def test_full_packets_are_acknowledged_at_once_in_the_beginning() -> None:
    script = Script.established(TcpConfig(quick_acks=2))
    size = script.conn.tcb.mss
    (ack,) = script.feed(1, 1, payload=b"f" * size)
    assert ack.ack == 1 + size
    assert script.feed(1 + size, 1, payload=b"small") == []
    (ack,) = script.feed(6 + size, 1, payload=b"f" * size)
    assert ack.ack == 6 + 2 * size
    assert script.feed(6 + 2 * size, 1, payload=b"f" * size) == []


def test_after_a_delayed_ack_small_segments_are_not_kept_waiting() -> None:
    script = Script.established(TcpConfig(quick_acks=2))
    assert script.feed(1, 1, payload=b"head") == []
    script.wait(SECOND)
    for seq in (5, 6):
        (ack,) = script.feed(seq, 1, payload=b"x")
        assert ack.ack == seq + 1
    assert script.feed(7, 1, payload=b"x") == []


def test_one_packet_answers_a_fin() -> None:
    script = Script.established()
    script.feed(1, 1, ACK | FIN)
    script.conn.shutdown(script.now)
    (fin,) = script.out()
    assert (fin.ack, fin.flags & FIN) == (2, FIN)
    assert script.wait(100 * MILLISECOND) == []


@pytest.mark.checklist(59)
def test_outgoing_data_carries_the_ack_and_cancels_the_delay() -> None:
    script = Script.established(TcpConfig(quick_acks=0))
    script.feed(1, 1, payload=b"question")
    script.conn.send(b"answer", script.now)
    (data,) = script.out()
    assert data.ack == 9
    assert script.feed(9, 7) == []
    assert script.wait(SECOND) == []


@pytest.mark.checklist(44, 46, 61, 123)
def test_out_of_order_data_waits_and_overlaps_do_not_matter() -> None:
    script = Script.established(options=SACK_OK)
    (ack,) = script.feed(4, 1, payload=b"def")
    assert ack.ack == 1
    assert parse_segment(ack.options).sacks == [
        ((4 + script.PEER_ISN) & 0xFFFFFFFF, (7 + script.PEER_ISN) & 0xFFFFFFFF)
    ]
    script.feed(6, 1, payload=b"XYZ")  # only "YZ" is news
    assert script.conn.readable_bytes == 0
    (ack,) = script.feed(1, 1, payload=b"abcDEF")
    assert ack.ack == 9
    assert parse_segment(ack.options).sacks == []
    assert script.conn.read(100, script.now) == b"abcdefYZ"


@pytest.mark.checklist(121, 122)
def test_newest_range_is_the_first_sack_block_and_four_fit() -> None:
    script = Script.established(options=SACK_OK)
    for seq in (10, 20, 30, 40, 50):
        (ack,) = script.feed(seq, 1, payload=b"xx")
    blocks = [(left - script.PEER_ISN) & 0xFFFFFFFF for left, _ in parse_segment(ack.options).sacks]
    assert blocks == [50, 40, 30, 20]


@pytest.mark.checklist(117)
def test_duplicate_data_is_reported_by_dsack() -> None:
    script = Script.established(options=SACK_OK)
    script.feed(1, 1, payload=b"abcdef")
    (ack,) = script.feed(1, 1, payload=b"abc")
    assert ack.ack == 7
    ((left, right),) = parse_segment(ack.options).sacks
    assert ((left - script.PEER_ISN) & 0xFFFFFFFF, (right - script.PEER_ISN) & 0xFFFFFFFF) == (1, 4)


@pytest.mark.checklist(45)
def test_hundred_copies_of_a_future_segment_neither_fill_nor_block() -> None:
    script = Script.established()
    for _ in range(100):
        script.feed(3, 1, payload=b"c" * 1000)
    script.feed(1, 1, payload=b"ab")
    assert script.conn.read(5000, script.now) == b"ab" + b"c" * 1000


@pytest.mark.checklist(67)
@pytest.mark.attack(41)
def test_many_separate_ranges_are_capped() -> None:
    script = Script.established(TcpConfig(max_reassembly_ranges=8))
    for i in range(50):
        script.feed(10 + 2 * i, 1, payload=b"x")
    assert len(script.conn._receiver.reassembly.starts) == 8
    assert script.conn.tcb.stats.dropped_reassembly == 42


@pytest.mark.checklist(47, 50, 51, 66, 68)
@pytest.mark.attack(43)
def test_data_beyond_the_window_is_trimmed_and_outside_it_only_acknowledged() -> None:
    script = Script.established(TcpConfig(rcv_buf=1000, rcv_buf_max=1000, window_scaling=False))
    (ack,) = script.feed(1, 1, payload=b"x" * 1500)
    assert ack.ack == 1001
    assert ack.wnd == 0
    (ack,) = script.feed(1001, 1, payload=b"y" * 10)
    assert ack.ack == 1001
    (ack,) = script.feed(5000, 1, payload=b"y" * 10)
    assert ack.ack == 1001
    assert script.conn.readable_bytes == 1000
    assert len(script.conn.read(5000, script.now)) == 1000
    (update,) = script.out()
    assert update.wnd == 1000


@pytest.mark.checklist(62, 66)
def test_window_reopens_in_steps_that_are_not_silly() -> None:
    script = Script.established(TcpConfig(rcv_buf=8000, rcv_buf_max=8000, window_scaling=False))
    script.feed(1, 1, payload=b"x" * 8000, packets=7)
    script.conn.read(100, script.now)
    assert script.out() == []
    script.conn.read(1000, script.now)
    assert script.out() == []
    script.conn.read(400, script.now)
    (update,) = script.out()
    assert update.wnd == 1500


@pytest.mark.checklist(65)
def test_right_edge_of_the_window_never_moves_left() -> None:
    script = Script.established(TcpConfig(rcv_buf=60_000, rcv_buf_max=60_000, window_scaling=False))
    edge = 0
    seq = 1
    for size in (100, 5000, 1, 9000, 700, 30_000):
        for segment in script.feed(seq, 1, payload=b"x" * size, packets=2):
            assert segment.ack + segment.wnd >= edge
            edge = segment.ack + segment.wnd
        seq += size
        script.conn.read(size // 3, script.now)
        for segment in script.out():
            assert segment.ack + segment.wnd >= edge
            edge = segment.ack + segment.wnd


@pytest.mark.checklist(48, 49, 55)
def test_fin_beyond_a_gap_waits_for_the_gap() -> None:
    script = Script.established()
    script.feed(4, 1, ACK | FIN, b"def")
    assert script.state() is State.ESTABLISHED
    assert not script.conn.eof_received
    (ack,) = script.feed(1, 1, payload=b"abc")
    assert ack.ack == 8
    assert script.state() is State.CLOSE_WAIT
    assert script.conn.take_ready() == READABLE | EOF
    assert script.conn.read(10, script.now) + script.conn.read(10, script.now) == b"abcdef"


def test_fin_is_taken_at_a_closed_window() -> None:
    script = Script.established(TcpConfig(rcv_buf=1000, rcv_buf_max=1000, window_scaling=False))
    script.feed(1, 1, payload=b"x" * 1000)
    script.feed(1001, 1, ACK | FIN)
    ((_, ack),) = script.wait(SECOND)
    assert ack.ack == 1002
    assert script.state() is State.CLOSE_WAIT


@pytest.mark.parametrize("flags", [0, PSH, URG, FIN])
@pytest.mark.checklist(52)
@pytest.mark.attack(10)
def test_without_the_ack_flag_a_segment_is_ignored(flags: int) -> None:
    script = Script.established()
    assert script.feed(1, 0, flags, b"data") == []
    assert script.conn.readable_bytes == 0


@pytest.mark.attack(47)
def test_urgent_data_is_ordinary_data() -> None:
    script = Script.established()
    script.feed(1, 1, ACK | URG, b"now")
    assert script.conn.read(9, script.now) == b"now"


# -- resets and challenges (RFC 5961) --------------------------------------------------------------


@pytest.mark.checklist(129, 133)
@pytest.mark.attack(30)
def test_reset_exact_in_window_and_outside() -> None:
    script = Script.established()
    assert script.feed(70_000, 1, RST) == []
    (challenge,) = script.feed(2, 1, RST)
    assert (challenge.flags, challenge.seq, challenge.ack) == (ACK, 1, 1)
    assert script.state() is State.ESTABLISHED
    assert script.feed(1, 1, RST) == []
    assert script.state() is State.CLOSED
    assert script.conn.error == "reset"


@pytest.mark.checklist(55)
def test_received_bytes_stay_readable_after_a_reset() -> None:
    script = Script.established()
    script.feed(1, 1, payload=b"last words")
    script.feed(11, 1, RST)
    assert script.conn.take_ready() == READABLE | CLOSED | ERROR
    assert not script.conn.eof_received
    assert script.conn.read(100, script.now) == b"last words"


@pytest.mark.checklist(131, 132)
@pytest.mark.attack(31)
def test_syn_on_an_open_connection_draws_limited_challenges() -> None:
    script = Script.established()
    assert [s.flags for s in script.feed(1, 1, SYN)] == [ACK]
    for _ in range(20):
        script.now += MILLISECOND
        assert script.feed(5, 1, SYN) == []
    script.now += SECOND
    assert len(script.feed(5, 1, SYN)) == 1
    assert script.state() is State.ESTABLISHED


@pytest.mark.checklist(87, 126)
@pytest.mark.attack(33)
def test_ack_for_unsent_data_changes_nothing() -> None:
    script = Script.established()
    assert script.feed(1, 100, ACK, b"", wnd=17) == []
    ((waited, challenge),) = script.wait(100 * MILLISECOND)  # RFC 5961 wants an ACK; two such ends must not play on
    assert (waited, challenge.ack, challenge.payload_len) == (10 * MILLISECOND, 1, 0)
    assert script.conn.info().snd_wnd == 65_535
    script.feed(1, 100, ACK, wnd=17)
    assert script.wait(100 * MILLISECOND) == []  # rate limited
    script.feed(1, 100, ACK, b"data")
    assert script.conn.readable_bytes == 0


@pytest.mark.checklist(87, 126)
def test_the_answer_to_an_ack_of_unsent_data_goes_with_what_is_sent_anyway() -> None:
    script = Script.established(options=TS_OK)
    assert script.feed(1, 9999, FIN | ACK, options=encode_timestamps(200_000, 1)) == []
    (ack,) = script.feed(1, 1, payload=b"x" * 2000, options=encode_timestamps(201, 1), packets=2)
    assert (ack.ack, parse_segment(ack.options).ts_ecr) == (2001, 201)
    assert script.wait(SECOND) == []


@pytest.mark.checklist(87)
@pytest.mark.attack(32)
def test_ack_far_below_is_refused() -> None:
    script = Script.established()
    script.conn.send(b"x" * 100, script.now)
    script.out()
    script.feed(1, 101)
    script.feed(1, 101 - 70_000, ACK, b"forged")
    assert script.conn.readable_bytes == 0
    assert script.conn.tcb.stats.dropped_bad_ack == 1


@pytest.mark.checklist(64, 132)
@pytest.mark.attack(35)
def test_keepalive_probes_are_answered_and_pure_ack_storms_are_not() -> None:
    script = Script.established()
    (ack,) = script.feed(0, 1)
    assert ack.ack == 1
    answers = sum(len(script.feed(90_000, 1)) for _ in range(50))
    assert answers <= 1


# -- timestamps ------------------------------------------------------------------------------------


@pytest.mark.checklist(127)
@pytest.mark.attack(51)
def test_paws_drops_old_timestamps_with_an_ack() -> None:
    script = Script.established(options=TS_OK)
    script.feed(1, 1, payload=b"a", options=encode_timestamps(200, 0))
    (ack,) = script.feed(2, 1, payload=b"b", options=encode_timestamps(150, 0))
    assert ack.ack == 2
    assert script.conn.tcb.stats.dropped_paws == 1
    assert parse_segment(ack.options).ts_ecr == 200
    script.feed(2, 1, payload=b"b", options=encode_timestamps(200, 0))
    assert script.conn.readable_bytes == 2


@pytest.mark.checklist(125)
@pytest.mark.attack(48)
def test_timestamps_wrap() -> None:
    script = Script.established(options=bytes.fromhex("020404d80101080afffffff000000000"))
    script.feed(1, 1, payload=b"a", options=encode_timestamps(5, 0))
    ((_, ack),) = script.wait(SECOND)
    assert parse_segment(ack.options).ts_ecr == 5


@pytest.mark.attack(48)
def test_after_24_days_of_silence_any_timestamp_is_believed() -> None:
    script = Script.established(options=TS_OK)
    script.now += 25 * 24 * 3600 * SECOND
    script.feed(1, 1, payload=b"a", options=encode_timestamps(3_000_000_000, 0))
    assert script.conn.readable_bytes == 1


@pytest.mark.checklist(125, 126)
@pytest.mark.attack(33)
def test_echo_is_not_advanced_by_out_of_order_or_bad_segments() -> None:
    script = Script.established(options=TS_OK)
    (ack,) = script.feed(3, 1, payload=b"c", options=encode_timestamps(300, 0))
    assert parse_segment(ack.options).ts_ecr == 100
    script.feed(1, 999, options=encode_timestamps(400, 0))
    (ack,) = script.feed(1, 1, payload=b"ab", options=encode_timestamps(310, 0))
    assert parse_segment(ack.options).ts_ecr == 310
    assert ack.ack == 4


@pytest.mark.checklist(128)
def test_missing_timestamps_are_accepted() -> None:
    script = Script.established(options=TS_OK)
    script.feed(1, 1, payload=b"bare")
    assert script.conn.readable_bytes == 4


# -- closing ---------------------------------------------------------------------------------------


@pytest.mark.checklist(58, 137, 138)
def test_local_close_first() -> None:
    script = Script.established()
    script.conn.send(b"bye", script.now)
    script.conn.shutdown(script.now)
    (fin,) = script.out()
    assert fin.flags & FIN
    assert payload_of(fin) == b"bye"
    assert script.state() is State.FIN_WAIT_1
    with pytest.raises(LocalProtocolError):
        script.conn.send(b"more", script.now)
    script.feed(1, 4)
    assert script.state() is State.FIN_WAIT_1  # the data, but not the FIN
    script.feed(1, 5)
    assert script.state() is State.FIN_WAIT_2
    script.feed(1, 5, payload=b"still here")
    assert script.conn.read(100, script.now) == b"still here"
    (ack,) = script.feed(11, 5, ACK | FIN)
    assert ack.ack == 12
    assert script.state() is State.TIME_WAIT


@pytest.mark.checklist(138, 141)
def test_remote_close_first() -> None:
    script = Script.established()
    assert script.feed(1, 1, ACK | FIN) == []  # our own FIN may go with the ACK
    ((at, ack),) = script.wait(SECOND)
    assert (at, ack.ack) == (40 * MILLISECOND, 2)
    assert script.state() is State.CLOSE_WAIT
    script.conn.send(b"reply", script.now)
    assert payload_of(script.out()[0]) == b"reply"
    script.conn.shutdown(script.now)
    (fin,) = script.out()
    assert (fin.seq, fin.flags & FIN) == (6, FIN)
    assert script.state() is State.LAST_ACK
    script.feed(2, 7)
    assert script.state() is State.CLOSED
    assert script.conn.error is None
    assert script.conn.take_ready() & CLOSED


@pytest.mark.checklist(139)
def test_simultaneous_close() -> None:
    script = Script.established()
    script.conn.shutdown(script.now)
    script.out()
    (ack,) = script.feed(1, 1, ACK | FIN)
    assert ack.ack == 2
    assert script.state() is State.CLOSING
    script.feed(2, 2)
    assert script.state() is State.TIME_WAIT


@pytest.mark.checklist(139)
def test_fin_with_ack_of_our_fin_goes_straight_to_time_wait() -> None:
    script = Script.established()
    script.conn.shutdown(script.now)
    script.out()
    script.feed(1, 2, ACK | FIN)
    assert script.state() is State.TIME_WAIT


@pytest.mark.checklist(143, 145)
@pytest.mark.attack(49)
def test_time_wait_repeats_the_ack_ignores_resets_and_ends() -> None:
    script = Script.established(TcpConfig(time_wait=4 * SECOND))
    script.conn.shutdown(script.now)
    script.out()
    script.feed(1, 2, ACK | FIN)
    script.now += 3 * SECOND
    (ack,) = script.feed(1, 2, ACK | FIN)
    assert ack.ack == 2
    assert script.feed(2, 2, RST) == []
    assert script.feed(2, 2) == []  # a proper ACK gets no answer, or two TIME-WAITs would never stop talking
    script.wait(3 * SECOND)
    assert script.state() is State.TIME_WAIT  # the FIN restarted it
    script.wait(2 * SECOND)
    assert script.state() is State.CLOSED


@pytest.mark.checklist(144)
@pytest.mark.attack(49)
def test_time_wait_gives_way_to_a_newer_syn() -> None:
    script = Script.established(options=TS_OK)
    script.conn.shutdown(script.now)
    script.out()
    script.feed(1, 2, ACK | FIN, options=encode_timestamps(500, 0))
    assert script.state() is State.TIME_WAIT
    fresh = bytes.fromhex("080a") + (600).to_bytes(4, "big") + bytes(4)
    stale = bytes.fromhex("080a") + (400).to_bytes(4, "big") + bytes(4)
    assert script.conn.accepts_new_syn(12345, fresh)
    assert not script.conn.accepts_new_syn(12345, stale)
    assert script.conn.accepts_new_syn((script.PEER_ISN + 900) & 0xFFFFFFFF, b"")
    assert not script.conn.accepts_new_syn((script.PEER_ISN - 900) & 0xFFFFFFFF, b"")


@pytest.mark.checklist(134)
def test_close_with_unread_data_resets() -> None:
    script = Script.established()
    script.feed(1, 1, payload=b"ignored")
    script.conn.close(script.now)
    (rst,) = script.out()
    assert rst.flags & RST
    assert rst.seq == 1
    assert script.state() is State.CLOSED


@pytest.mark.checklist(57)
def test_data_after_close_resets() -> None:
    script = Script.established()
    script.conn.close(script.now)
    (fin,) = script.out()
    assert fin.flags & FIN
    (rst,) = script.feed(1, 1, payload=b"too late")
    assert (rst.flags, rst.seq) == (RST, 1)  # the peer has not seen our FIN: this is the number that it takes
    assert script.state() is State.CLOSED


def test_resets_carry_timestamps_once_they_are_agreed_upon() -> None:
    script = Script.established(options=TS_OK)
    script.feed(1, 1, payload=b"x", options=encode_timestamps(201, 1))
    script.now += SECOND
    script.conn.abort(script.now)
    (rst,) = script.out()
    stamps = parse_segment(rst.options)
    assert (rst.flags, stamps.has_ts, stamps.ts_ecr) == (RST | ACK, True, 201)
    assert stamps.ts_val == script.conn.tcb.clock(script.now)
    asking = Script(options=TS_OK)
    asking.out()
    (rst, *_) = asking.feed(0, 77)  # nothing is agreed upon yet
    assert (rst.flags, rst.options) == (RST, b"")


def test_the_packet_size_of_the_peer_is_that_on_the_wire() -> None:
    script = Script.established()
    assert script.conn.info().rcv_mss == 0
    script.feed(1, 1, payload=b"x" * 9_500, packets=10)  # joined on the way up; the last one is short
    assert script.conn.info().rcv_mss == 950
    script.feed(9_501, 1, payload=b"x" * 1_000)
    script.feed(10_501, 1, payload=b"x" * 10)
    assert script.conn.info().rcv_mss == 1_000


@pytest.mark.checklist(142)
@pytest.mark.attack(46)
def test_orphan_in_fin_wait_2_is_reset_in_the_end() -> None:
    script = Script.established(TcpConfig(orphan_timeout=20 * SECOND))
    script.conn.close(script.now)
    script.out()
    script.feed(1, 2)
    assert script.state() is State.FIN_WAIT_2
    out = script.wait(60 * SECOND)
    assert [(at, s.flags & RST) for at, s in out] == [(20 * SECOND, RST)]
    assert script.state() is State.CLOSED


def test_half_closed_without_close_waits_for_ever() -> None:
    script = Script.established()
    script.conn.shutdown(script.now)
    script.out()
    script.feed(1, 2)
    script.wait(3600 * SECOND)
    assert script.state() is State.FIN_WAIT_2


@pytest.mark.checklist(135)
def test_abort_sends_one_reset() -> None:
    script = Script.established()
    script.conn.send(b"lost", script.now)
    script.conn.abort(script.now)
    assert [s.flags for s in script.out()] == [RST | ACK]
    assert script.conn.take_ready() & CLOSED
    assert script.feed(1, 1, payload=b"x") == []


@pytest.mark.checklist(136)
def test_discard_is_silent() -> None:
    script = Script.established()
    script.conn.discard()
    assert script.out() == []
    assert script.conn.error == "unreachable"


@pytest.mark.attack(39)
def test_sack_blocks_that_make_no_sense_are_ignored() -> None:
    script = Script.established(options=SACK_OK)
    script.conn.send(b"x" * 5000, script.now)
    script.out()
    base = script.OUR_ISN
    for left, right in ((3000, 2000), (6000, 7000), (0, 1), (2000, 2000), (4000, 4000 + (1 << 31))):
        script.feed(1, 1, options=encode_sack([((left + base) & 0xFFFFFFFF, (right + base) & 0xFFFFFFFF)]))
    assert script.conn._sender.recovery.flight.sacked.total == 0
    assert script.conn.info().recovery == "open"


def test_writable_comes_back_after_a_short_count() -> None:
    script = Script.established(TcpConfig(snd_buf=4000, snd_buf_max=4000))
    assert script.conn.send(b"x" * 5000, script.now) == 4000
    assert script.conn.send(b"x", script.now) == 0
    script.out()
    script.conn.take_ready()
    script.feed(1, 501)
    assert not script.conn.take_ready() & WRITABLE
    script.feed(1, 2001)
    assert script.conn.take_ready() & WRITABLE
    assert script.conn.send_space == 2000
