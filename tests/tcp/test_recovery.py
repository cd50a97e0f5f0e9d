"""Loss recovery: RACK-TLP (RFC 8985), rate reduction (RFC 6937), F-RTO (RFC 5682), undo by Eifel and DSACK."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tcp.kit import Link, Pipe, Script, blob
from tsnetpy.base.instant import MILLISECOND, SECOND
from tsnetpy.tcp import TcpConfig
from tsnetpy.tcp.flags import ACK, FIN, SYN
from tsnetpy.tcp.flight import Flight
from tsnetpy.tcp.options import encode_sack, encode_timestamps
from tsnetpy.tcp.prr import RateReduction
from tsnetpy.tcp.rack import Rack

MS = MILLISECOND
MSS = 1200
RTT = 40 * MS
SACK_ONLY = bytes.fromhex("020404b004020101")
SACK_AND_TS = bytes.fromhex("020404bc0402080a0000000100000000")


def distant(*, timestamps: bool = False, **changes: object) -> Script:
    """Return an engine that is ESTABLISHED over a path of 40 ms, with packets of 1200 bytes."""
    config = TcpConfig(congestion="reno", pacing=False, **changes)  # type: ignore[arg-type]  # test shorthand
    script = Script(config, options=SACK_AND_TS if timestamps else SACK_ONLY)
    script.out()
    script.now += RTT
    script.feed(0, 1, SYN | ACK, options=script.options)
    assert script.conn.info().mss == MSS
    return script


def sack(script: Script, *packets: tuple[int, int], ts_ecr: int | None = None) -> bytes:
    """Return SACK blocks for packets first..end, counted from 0."""
    base = script.OUR_ISN + 1
    blocks = [((base + a * MSS) & 0xFFFFFFFF, (base + b * MSS) & 0xFFFFFFFF) for a, b in packets]
    return (encode_timestamps(1, ts_ecr) if ts_ecr is not None else b"") + (encode_sack(blocks) if blocks else b"")


def at(packet: int) -> int:
    return 1 + packet * MSS


def clock(script: Script) -> int:
    return script.conn.tcb.clock(script.now)


# -- RACK -----------------------------------------------------------------------------------------------------------


@pytest.mark.checklist(114)
def test_three_reported_packets_without_reordering_mean_loss_at_once() -> None:
    script = distant()
    script.conn.send(blob(10 * MSS), script.now)
    script.out()
    script.now += RTT
    assert script.feed(1, 1, options=sack(script, (1, 3))) == []
    (again, *_) = script.feed(1, 1, options=sack(script, (1, 4)))
    assert (again.seq, again.payload_len) == (1, MSS)
    assert script.conn._sender.recovery.rack.sent_at == script.now - RTT


@pytest.mark.checklist(114)
def test_three_reported_small_packets_mean_loss_as_well() -> None:
    script = distant()
    for _ in range(6):
        script.conn.send(b"x" * 100, script.now)
        script.out()
        script.now += MS
    script.now += RTT
    base = script.OUR_ISN + 1
    blocks = [((base + a) & 0xFFFFFFFF, (base + b) & 0xFFFFFFFF) for a, b in ((100, 200), (300, 600))]
    assert script.feed(1, 1, options=encode_sack(blocks[:1])) == []
    (again, *_) = script.feed(1, 1, options=encode_sack(blocks))
    assert (again.seq, again.payload_len) == (1, 100)


@pytest.mark.checklist(115)
@pytest.mark.checklist(99)
def test_reordering_timer_needs_no_further_ack_and_is_judged_at_its_deadline() -> None:
    script = distant()
    script.conn.send(blob(5 * MSS), script.now)
    script.out()
    script.now += RTT
    assert script.feed(1, 1, options=sack(script, (1, 2))) == []
    deadline = script.conn.next_deadline()
    assert deadline == script.now + RTT // 4
    # Meanwhile a later burst goes out, and the process stalls far beyond the deadline.
    script.now = deadline + 300 * MS
    script.conn.handle_deadline(script.now)
    recovery = script.conn._sender.recovery
    assert script.conn.info().recovery in ("recovery", "loss")
    assert recovery.flight.lost.total == 0 or recovery.flight.lost.first()[0] == script.conn.tcb.snd_una


@pytest.mark.checklist(114)
def test_reordering_that_was_seen_makes_rack_wait() -> None:
    script = distant()
    script.conn.send(blob(10 * MSS), script.now)
    script.out()
    script.now += RTT
    script.feed(1, 1, options=sack(script, (1, 2)))
    script.feed(1, at(2))  # packet 0 was late, not lost
    rack = script.conn._sender.recovery.rack
    assert (rack.reorder_seen, rack.reordering) == (1, 3)
    assert script.feed(1, at(2), options=sack(script, (3, 8))) == []
    ((waited, again), *_) = script.wait(RTT)
    assert waited == RTT // 4
    assert again.seq == at(2)


@pytest.mark.checklist(114)
def test_a_gap_and_what_comes_before_it_in_one_ack_is_no_reordering() -> None:
    script = distant()
    script.conn.send(blob(10 * MSS), script.now)
    script.out()
    script.now += RTT
    again = script.feed(1, at(2), options=sack(script, (5, 10)))
    assert script.conn.info().reorder_seen == 0
    # Five are reported above it: no use in waiting.
    assert (again[0].seq, sum(s.payload_len for s in again)) == (at(2), 3 * MSS)


@pytest.mark.checklist(114)
def test_how_far_the_path_reorders_is_measured() -> None:
    script = distant()
    script.conn.send(blob(10 * MSS), script.now)
    script.out()
    script.now += RTT
    script.feed(1, 1, options=sack(script, (9, 10)))
    script.feed(1, 1, options=sack(script, (3, 4), (9, 10)))
    info = script.conn.info()
    assert (info.reorder_seen, info.reordering, info.sacked_bytes) == (1, 7, 2 * MSS)
    script.feed(1, at(10))
    info = script.conn.info()
    assert (info.reorder_seen, info.reordering, info.sacked_bytes) == (2, 10, 0)


@pytest.mark.checklist(114)
def test_loss_is_judged_by_the_round_trip_of_what_arrived_last_in_sequence() -> None:
    script = distant()
    script.conn.send(blob(8 * MSS), script.now)
    script.out()
    script.now += RTT
    assert script.feed(1, 1, options=sack(script, (1, 2))) == []
    assert script.feed(1, 1, options=sack(script, (1, 3))) == []
    (again,) = script.feed(1, 1, options=sack(script, (1, 3), (6, 7)))  # 0, 3, 4 and 5 are lost
    assert again.seq == 1
    script.now += RTT
    # The repetition took 40 ms, but packet 3 needed 80: so 7, sent at the same time, is not overdue.
    script.feed(1, at(4), options=sack(script, (6, 7)))
    flight = script.conn._sender.recovery.flight
    assert not flight.lost.covers(at(7))
    assert script.conn.next_deadline() == script.now + RTT // 4


@pytest.mark.checklist(114)
def test_a_part_of_a_packet_is_no_packet() -> None:
    script = distant()
    script.conn.send(blob(4 * MSS), script.now)
    script.out()
    script.now += RTT
    base = script.OUR_ISN
    for left, right in ((at(4) - 1, at(4)), (at(1) + 5, at(2)), (at(2), at(3) - 7), (at(1) + 1, at(2) + 1)):
        block = encode_sack([((base + left) & 0xFFFFFFFF, (base + right) & 0xFFFFFFFF)])
        assert script.feed(1, 1, options=block) == []
        info = script.conn.info()
        assert (info.sacked_bytes, info.recovery) == (0, "open")
    block = encode_sack([((base + at(1) - 9) & 0xFFFFFFFF, (base + at(3) + 9) & 0xFFFFFFFF)])
    script.feed(1, 1, options=block)
    assert script.conn.info().sacked_bytes == 2 * MSS  # the whole ones within


@pytest.mark.checklist(114)
def test_small_packets_of_one_instant_are_told_apart() -> None:
    script = distant()
    for size in (100, MSS, 300):
        script.conn.send(blob(size), script.now)
        script.out()
    script.now += RTT
    base = script.OUR_ISN
    block = encode_sack([((base + 101) & 0xFFFFFFFF, (base + 101 + MSS) & 0xFFFFFFFF)])
    script.feed(1, 1, options=block)
    assert script.conn.info().sacked_bytes == MSS


@pytest.mark.checklist(114)
def test_the_last_packet_counts_although_its_fin_is_not_reported() -> None:
    script = distant()
    script.conn.send(blob(3 * MSS), script.now)
    script.conn.shutdown(script.now)
    script.out()
    script.now += RTT
    script.feed(1, 1, options=sack(script, (2, 3)))
    assert script.conn.info().sacked_bytes == MSS


@pytest.mark.checklist(114)
def test_counters_of_a_recovery() -> None:
    script = distant()
    script.conn.send(blob(10 * MSS), script.now)
    script.out()
    script.now += RTT
    script.feed(1, 1, options=sack(script, (2, 3)))
    assert script.conn.info().recovery == "disorder"
    script.feed(1, 1, options=sack(script, (2, 3), (6, 7), (8, 9)))
    info = script.conn.info()
    assert (info.recovery, info.sacked_bytes, info.lost_bytes) == ("recovery", 3 * MSS, 6 * MSS)
    assert info.retransmitted_in_flight == 2 * MSS  # as many as that ACK reported
    script.feed(1, 1, options=sack(script, (0, 3), (6, 7), (8, 9)))
    info = script.conn.info()
    assert (info.lost_bytes, info.sacked_bytes) == (4 * MSS, 5 * MSS)
    script.feed(1, at(10))
    info = script.conn.info()
    assert (info.recovery, info.sacked_bytes, info.lost_bytes, info.retransmitted_in_flight) == ("open", 0, 0, 0)


@pytest.mark.checklist(114)
def test_dsack_widens_the_window_and_sixteen_recoveries_narrow_it() -> None:
    rack = Rack(0)
    rack.reorder_seen = 1
    assert rack.window(True, RTT, RTT) == RTT // 4
    rack.on_dsack(100, 200)
    rack.on_dsack(150, 300)  # the same round trip
    assert rack.multiplier == 2
    rack.on_dsack(200, 300)
    assert rack.window(False, RTT, RTT) == 3 * RTT // 4
    rack.multiplier = 9
    assert rack.window(False, RTT, RTT) == RTT
    for _ in range(16):
        assert rack.multiplier == 9
        rack.on_recovered()
    assert rack.multiplier == 1


def test_a_retransmission_lost_again_is_found_by_time() -> None:
    script = distant()
    script.conn.send(blob(60 * MSS), script.now)
    script.out()
    script.now += RTT
    out = script.feed(1, 1, options=sack(script, (1, 8)))
    assert out[0].seq == 1
    script.now += RTT
    out = script.feed(1, 1, options=sack(script, (1, 12)))  # what was sent after the retransmission has arrived
    assert out[0].seq == 1
    assert script.conn.info().rto_fires == 0


def test_a_retransmission_lost_again_is_found_although_the_echo_stands_still() -> None:
    script = distant(timestamps=True)
    script.conn.send(blob(20 * MSS), script.now)
    first = clock(script)
    script.out()
    script.now += RTT
    script.feed(1, 1, options=sack(script, (3, 5), ts_ecr=first))
    out = script.feed(1, 1, options=sack(script, (3, 10), ts_ecr=first))
    assert out[0].seq == 1
    assert script.conn.info().retransmitted_in_flight == 3 * MSS
    script.now += RTT
    # 1 and 2 arrived now, 0 was lost again; above that gap the peer goes on echoing what it had before.
    out = script.feed(1, 1, options=sack(script, (1, 10), ts_ecr=first))
    assert out[0].seq == 1
    assert script.conn.info().rto_fires == 0


@pytest.mark.checklist(119)
def test_window_limited_flow_with_rack_does_not_stall() -> None:
    pipe = Pipe(b=TcpConfig(rcv_buf=12_000, rcv_buf_max=12_000), seed=11, link=Link(loss=0.02, reorder=0.05))
    data = blob(300_000)
    got, _ = pipe.transfer(data, limit=60 * SECOND)
    assert got == data


@pytest.mark.attack(50)
def test_heavy_reordering_costs_no_throughput() -> None:
    pipe = Pipe(seed=1, link=Link(reorder=0.05, rate=100_000_000))
    start = pipe.now
    data = blob(3_000_000)
    got, _ = pipe.transfer(data)
    assert got == data
    assert len(data) * 8 / ((pipe.now - start) / SECOND) > 30e6


# -- tail loss ------------------------------------------------------------------------------------------------------


@pytest.mark.checklist(116)
def test_tail_probe_goes_out_once_and_not_when_holes_are_known() -> None:
    script = distant()
    script.conn.send(blob(4 * MSS), script.now)
    script.out()
    first, second, *_ = script.wait(SECOND)
    assert first[0] == 2 * RTT
    assert (first[1].seq, first[1].payload_len) == (at(3), MSS)
    assert second[1].seq == 1  # then it is the timeout's turn
    assert second[0] >= first[0] + 200 * MS
    script = distant()
    script.conn.send(blob(4 * MSS), script.now)
    script.out()
    script.now += RTT
    script.feed(1, 1, options=sack(script, (2, 3)))
    ((when, again), *_) = script.wait(SECOND)
    assert (when, again.seq) == (RTT // 4, 1)
    assert script.conn.info().tail_probes == 0


@pytest.mark.checklist(116)
def test_a_single_packet_is_probed_before_it_costs_the_window() -> None:
    script = distant()
    script.conn.send(b"alone", script.now)
    script.out()
    rto = script.conn.info().rto
    assert rto < 2 * RTT + 200 * MS  # so long its ACK may be delayed, and later than the timeout makes no sense
    ((first, probe), *rest) = script.wait(2 * rto - MS)
    assert (first, probe.seq, rest) == (rto, 1, [])
    info = script.conn.info()
    assert (info.tail_probes, info.rto_fires, info.cwnd, info.backoff) == (1, 0, 10 * MSS, 0)
    ((second, again), *_) = script.wait(rto)
    assert (second, again.seq) == (MS, 1)
    info = script.conn.info()
    assert (info.tail_probes, info.rto_fires, info.cwnd, info.backoff) == (1, 1, MSS, 1)


@pytest.mark.checklist(116)
def test_the_ack_of_a_single_packet_may_be_delayed() -> None:
    script = distant()
    script.conn._sender.rtt.sample(600 * MS)  # the path became worse and unsteady
    info = script.conn.info()
    assert info.rto > 2 * info.srtt + 200 * MS
    script.conn.send(b"alone", script.now)
    script.out()
    ((when, probe), *_) = script.wait(info.rto)
    assert (when, probe.seq) == (2 * info.srtt + 200 * MS, 1)


@pytest.mark.checklist(116)
def test_on_a_short_path_the_tail_is_probed_after_five_milliseconds() -> None:
    script = Script(TcpConfig(), options=SACK_ONLY)
    script.out()
    script.now += MS
    script.feed(0, 1, SYN | ACK, options=script.options)
    script.conn.send(blob(3 * MSS), script.now)
    script.out()
    ((when, probe), *_) = script.wait(100 * MS)
    assert (when, probe.seq) == (5 * MS, at(2))


@pytest.mark.checklist(116)
@pytest.mark.parametrize("later", [False, True])
def test_a_fin_that_went_alone_is_probed_alone(later: bool) -> None:
    script = distant()
    script.conn.send(blob(3 * MSS), script.now)
    script.out()
    if later:
        script.now += RTT // 2
    script.conn.shutdown(script.now)
    (fin,) = script.out()
    assert (fin.seq, fin.payload_len) == (at(3), 0)
    ((when, probe), *_) = script.wait(SECOND)
    assert (when, probe.seq, probe.payload_len, bool(probe.flags & FIN)) == (2 * RTT, at(3), 0, True)


@pytest.mark.checklist(116)
def test_no_probe_into_a_closed_window() -> None:
    script = distant()
    script.conn.send(blob(2 * MSS), script.now)
    script.out()
    script.feed(1, 1, wnd=0)
    out = script.wait(SECOND)
    assert script.conn.info().tail_probes == 0
    assert out[0][0] == 240 * MS


@pytest.mark.checklist(116)
@pytest.mark.parametrize("arrived", [True, False])
def test_tail_probe_is_judged_by_dsack_or_echo(arrived: bool) -> None:
    script = distant(timestamps=True)
    script.conn.send(blob(4 * MSS), script.now)
    script.out()
    script.wait(2 * RTT)
    assert script.conn.info().tail_probes == 1
    probe_stamp = clock(script)
    cwnd = script.conn.info().cwnd
    script.now += RTT
    if arrived:  # the first ACK was lost, and the probe is a duplicate
        script.feed(1, at(4), options=sack(script, (3, 4), ts_ecr=probe_stamp - 80))
        assert script.conn.info().cwnd >= cwnd
    else:
        script.feed(1, at(4), options=sack(script, ts_ecr=probe_stamp))
        assert script.conn.info().cwnd < cwnd


@pytest.mark.checklist(116)
@pytest.mark.parametrize("repeated", [True, False])
def test_a_superfluous_tail_probe_costs_nothing_without_dsack_either(repeated: bool) -> None:
    script = distant()
    script.conn.send(blob(4 * MSS), script.now)
    script.out()
    script.wait(2 * RTT)
    cwnd = script.conn.info().cwnd
    script.feed(1, at(4))
    if repeated:  # one ACK for the packets, and one for the probe
        script.feed(1, at(4))
    script.conn.send(blob(4 * MSS), script.now)
    script.out()
    script.now += RTT
    script.feed(1, at(8))
    assert (script.conn.info().cwnd >= cwnd) is repeated


@pytest.mark.parametrize("advancing", [True, False])
def test_a_duplicate_reported_once_excuses_no_later_tail_probe(advancing: bool) -> None:
    script = distant(timestamps=True)
    script.conn.send(blob(4 * MSS), script.now)
    script.out()
    script.wait(2 * RTT)
    script.now += RTT
    stamp = clock(script)
    if not advancing:
        script.feed(1, at(4), options=sack(script, ts_ecr=stamp - 80))
    script.feed(1, at(4), options=sack(script, (3, 4), ts_ecr=stamp - 80))
    cwnd = script.conn.info().cwnd
    script.conn.send(blob(4 * MSS), script.now)
    script.out()
    script.wait(2 * script.conn.info().srtt)
    assert script.conn.info().tail_probes == 2
    stamp = clock(script)
    script.now += RTT
    script.feed(1, at(8), options=sack(script, ts_ecr=stamp))  # the probe's echo: the tail was lost
    assert script.conn.info().cwnd < cwnd


# -- undo -----------------------------------------------------------------------------------------------------------


@pytest.mark.checklist(118)
def test_spurious_timeout_is_found_by_the_echo_and_undone() -> None:
    script = distant(timestamps=True)
    script.conn.send(blob(30 * MSS), script.now)
    script.out()
    sent = clock(script)
    script.wait(400 * MS)
    info = script.conn.info()
    assert info.rto_fires == 1
    assert info.cwnd == MSS
    out = script.feed(1, at(4), options=sack(script, ts_ecr=sent))
    info = script.conn.info()
    assert (info.undos, info.recovery) == (1, "open")
    assert info.cwnd >= 10 * MSS
    assert info.ssthresh > 1 << 30
    assert out[0].seq > at(10)  # new data, and nothing again


@pytest.mark.checklist(118)
def test_no_undo_by_echo_when_the_ack_reports_a_duplicate() -> None:
    script = distant(timestamps=True)
    script.conn.send(blob(10 * MSS), script.now)
    script.out()
    sent = clock(script)
    script.now += RTT
    script.feed(1, 1, options=sack(script, (1, 5), ts_ecr=sent))
    assert script.conn.info().recovery == "recovery"
    script.feed(1, at(6), options=sack(script, (2, 3), ts_ecr=sent))
    assert script.conn.info().undos == 0


@pytest.mark.checklist(118)
def test_dsack_of_everything_resent_undoes_a_recovery() -> None:
    script = distant()
    script.conn.send(blob(10 * MSS), script.now)
    script.out()
    script.now += RTT
    (again, *_) = script.feed(1, 1, options=sack(script, (1, 5)))
    assert again.payload_len == MSS
    script.feed(1, at(10))
    assert script.conn.info().cwnd == 5 * MSS
    script.feed(1, at(10), options=sack(script, (0, 1)))
    info = script.conn.info()
    assert info.dsacks == 1
    assert info.undos == 1
    assert info.cwnd >= 10 * MSS


def test_f_rto_tries_new_data_and_undoes() -> None:
    script = distant()
    script.conn.send(blob(30 * MSS), script.now)
    script.out()
    script.wait(400 * MS)
    info = script.conn.info()
    assert info.rto_fires == 1
    out = script.feed(1, at(2))
    assert all(s.seq > at(9) for s in out)
    assert out
    assert sum(s.payload_len for s in out) <= 2 * MSS
    script.feed(1, at(4))  # beyond what was sent again: the first flight is still arriving
    info = script.conn.info()
    assert (info.undos, info.recovery) == (1, "open")
    assert info.cwnd >= 10 * MSS


def test_f_rto_falls_back_on_a_duplicate() -> None:
    script = distant()
    script.conn.send(blob(30 * MSS), script.now)
    script.out()
    script.wait(400 * MS)
    new = script.feed(1, at(1))
    assert new[0].seq > at(9)
    first_new = (new[0].seq - 1) // MSS
    out = script.feed(1, at(1), options=sack(script, (first_new, first_new + 1)))
    assert out[0].seq == at(1)
    info = script.conn.info()
    assert (info.undos, info.recovery) == (0, "loss")


# -- the rest -------------------------------------------------------------------------------------------------------


@pytest.mark.checklist(109)
def test_rate_reduction_is_proportional_and_ends_at_the_threshold() -> None:
    prr = RateReduction()
    prr.start(20 * MSS)
    pipe, sent = 17 * MSS, 0
    for _ in range(17):  # one packet reported per ACK, 20 in flight, threshold 10
        pipe -= MSS
        window = prr.window(MSS, pipe, 10 * MSS, MSS, True)
        while pipe + MSS <= window:
            pipe += MSS
            prr.sent += MSS
            sent += 1
    assert 8 <= sent <= 10
    assert pipe <= 10 * MSS
    prr.start(20 * MSS)
    assert prr.window(MSS, 2 * MSS, 10 * MSS, MSS, True) == 4 * MSS  # far below: slow start, no burst


@pytest.mark.checklist(108)
def test_lost_tail_in_recovery_is_rescued() -> None:
    script = distant()
    script.conn.send(blob(10 * MSS), script.now)
    script.out()
    script.now += RTT
    seqs = [s.seq for s in script.feed(1, 1, options=sack(script, (1, 9)))]
    assert seqs[0] == 1
    script.now += RTT
    seqs += [s.seq for s in script.feed(1, at(9))]
    assert at(9) in seqs
    assert script.conn.info().rto_fires == 0


@pytest.mark.attack(40)
def test_reneging_is_noticed_early() -> None:
    script = distant()
    script.conn.send(blob(10 * MSS), script.now)
    script.out()
    script.now += RTT
    script.feed(1, 1, options=sack(script, (1, 3)))
    script.feed(1, at(1))  # the peer reported 1 and 2, and now lacks them
    ((waited, again), *_) = script.wait(SECOND)
    assert waited < RTT
    assert again.seq == at(1)


@pytest.mark.checklist(107)
def test_one_window_is_halved_once() -> None:
    script = distant()
    script.conn.send(blob(40 * MSS), script.now)
    script.out()
    script.now += RTT
    for upper in range(4, 9):
        script.feed(1, 1, options=sack(script, (1, upper)))
    before = script.conn.info().ssthresh
    script.feed(1, at(2), options=sack(script, (3, 9)))
    script.feed(1, at(2), options=sack(script, (3, 11)))
    info = script.conn.info()
    assert info.ssthresh == before
    assert info.fast_retransmits == 1


@pytest.mark.checklist(117)
def test_duplicates_are_recognised_and_nonsense_is_not() -> None:
    script = distant()
    script.conn.send(blob(10 * MSS), script.now)
    script.out()
    script.feed(1, at(4), options=sack(script, (1, 2)))
    assert script.conn.info().dsacks == 1  # below the ACK
    script.feed(1, at(4), options=sack(script, (6, 7), (5, 8)))
    assert script.conn.info().dsacks == 2  # inside the block that follows
    script.feed(1, at(4), options=sack(script, (7, 6), (5, 8)))
    script.feed(1, at(4), options=sack(script, (5, 8), (6, 7)))
    script.feed(1, at(4), options=sack(script, (-(1 << 20), 2)))
    assert script.conn.info().dsacks == 2


@pytest.mark.attack(37)
@pytest.mark.attack(36)
@pytest.mark.attack(38)
def test_fragmented_reports_stay_bounded() -> None:
    script = distant()
    script.conn._sender.cc.cwnd = 1 << 20
    script.conn.tcb.snd_wnd = 1 << 20
    script.conn.send(blob(200 * MSS), script.now)
    script.out()
    script.now += RTT
    base = script.OUR_ISN
    for i in range(2_000):
        left = 1000 + 50 * i
        script.feed(1, 1, options=encode_sack([((left + base) & 0xFFFFFFFF, (left + 1 + base) & 0xFFFFFFFF)]))
    flight = script.conn._sender.recovery.flight
    assert len(flight.sacked) <= 128
    assert len(flight) <= 500
    assert len(flight.lost) <= 130


@given(
    st.lists(
        st.tuples(st.sampled_from(["send", "resend", "sack", "lose", "ack"]), st.integers(0, 300), st.integers(1, 60)),
        max_size=60,
    )
)
def test_flight_equals_a_byte_map(steps: list[tuple[str, int, int]]) -> None:
    flight = Flight(1000)
    when: dict[int, int] = {}
    sacked: set[int] = set()
    lost: set[int] = set()
    for now, (step, offset, size) in enumerate(steps, 1):
        start, end = 1000 + offset, 1000 + offset + size
        inside = [seq for seq in range(start, end) if seq in when]
        if step == "send":
            start, end = flight.end, flight.end + size
            flight.send(start, end, now)
            when.update(dict.fromkeys(range(start, end), now))
        elif not inside:
            continue
        elif step == "resend":
            flight.resend(start, end, now)
            when.update(dict.fromkeys(inside, now))
            lost -= set(inside)
        elif step == "sack":
            start, end = inside[0], inside[-1] + 1
            flight.sacked.add(start, end)
            flight.lost.remove(start, end)
            sacked |= set(inside)
            lost -= set(inside)
        elif step == "lose":
            sent_at = when[inside[0]]
            flight.mark_lost(inside[0], inside[-1] + 1, sent_at)
            lost |= {seq for seq in inside if when[seq] == sent_at and seq not in sacked}
        else:
            una = inside[-1] + 1
            assert flight.advance(una) == when[una - 1]
            when = {seq: t for seq, t in when.items() if seq >= una}
            sacked = {seq for seq in sacked if seq >= una}
            lost = {seq for seq in lost if seq >= una}
        assert flight.pipe() == len(when) - len(sacked) - len(lost)
        pieces = flight.pieces(flight.una, flight.end)
        assert {seq: t for a, b, t, _ in pieces for seq in range(a, b)} == when
        assert flight.resent_pieces == sum(again for *_, again in pieces)
