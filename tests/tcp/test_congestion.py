"""CUBIC (RFC 9438), HyStart++ (RFC 9406), pacing, and what they give on simulated paths."""

import heapq
from itertools import pairwise

import pytest

from benchmarks.netsim import beside_plain, long_fat
from tests.tcp.kit import Link, Pipe, Script, blob, coalesce, split
from tsnetpy.base.errors import ConfigError
from tsnetpy.base.instant import MILLISECOND, SECOND
from tsnetpy.tcp import Connection, Listener, TcpConfig
from tsnetpy.tcp.congestion.cubic import Cubic
from tsnetpy.tcp.congestion.hystart import HyStart
from tsnetpy.tcp.congestion.registry import REGISTRY, create
from tsnetpy.tcp.congestion.tolerance import LossTolerance
from tsnetpy.tcp.flags import ACK, SYN
from tsnetpy.tcp.rtt import RttEstimator

MS = MILLISECOND
MSS = 1000
RTT = 100 * MS


def run_cubic(cubic: Cubic, start: int, duration: int, rtt: int = RTT) -> int:
    """Acknowledge a full window per round trip, packet by packet; return the time after it."""
    now = start
    while now < start + duration:
        packets = max(1, cubic.cwnd // MSS)
        for i in range(packets):
            cubic.on_ack(MSS, now + rtt * i // packets, rtt, rtt, i == 0)
        now += rtt
    return now


@pytest.mark.checklist(111)
def test_cubic_follows_its_curve() -> None:
    cubic = Cubic(MSS, 10)
    cubic.cwnd = cubic.ssthresh = 1_000 * MSS
    cubic.on_congestion(1_000 * MSS, 0)
    assert cubic.cwnd == 700 * MSS
    k = (300 / 0.4) ** (1 / 3)  # 9.09 s until the old window is reached again
    now = run_cubic(cubic, 0, int(k / 2 * SECOND))
    expected = 1_000 + 0.4 * (now / SECOND - k) ** 3
    assert cubic.cwnd / MSS == pytest.approx(expected, rel=0.02)
    now = run_cubic(cubic, now, int(k / 2 * SECOND))
    assert cubic.cwnd / MSS == pytest.approx(1_000, rel=0.02)
    now = run_cubic(cubic, now, 4 * SECOND)
    expected = 1_000 + 0.4 * (now / SECOND - k) ** 3
    assert cubic.cwnd / MSS == pytest.approx(expected, rel=0.02)


@pytest.mark.checklist(111)
def test_cubic_is_never_slower_than_reno_on_a_short_path() -> None:
    cubic = Cubic(MSS, 10)
    cubic.cwnd = cubic.ssthresh = 40 * MSS
    cubic.on_congestion(40 * MSS, 0)
    run_cubic(cubic, 0, 200 * MS, 5 * MS)
    # 40 round trips at 0.53 packets each, then one each: Reno-friendly region.
    assert cubic.cwnd >= (28 + 18) * MSS


def test_cubic_gives_way_faster_when_it_loses_again_and_undoes_fully() -> None:
    cubic = Cubic(MSS, 10)
    cubic.cwnd = cubic.ssthresh = 1_000 * MSS
    cubic.on_congestion(1_000 * MSS, 0)
    run_cubic(cubic, 0, SECOND)
    window, threshold = cubic.cwnd, cubic.ssthresh
    reference = Cubic(MSS, 10)
    reference.cwnd = reference.ssthresh = 1_000 * MSS
    reference.on_congestion(1_000 * MSS, 0)
    run_cubic(reference, 0, SECOND)
    cubic.on_congestion(window, SECOND)
    assert cubic.cwnd == int(window * 0.7)
    cubic.undo(window, threshold)
    run_cubic(cubic, SECOND, SECOND)
    run_cubic(reference, SECOND, SECOND)
    assert cubic.cwnd == reference.cwnd


def test_time_without_full_windows_does_not_count() -> None:
    cubic = Cubic(MSS, 10)
    cubic.cwnd = cubic.ssthresh = 1_000 * MSS
    cubic.on_congestion(1_000 * MSS, 0)
    now = run_cubic(cubic, 0, SECOND)
    before = cubic.cwnd
    run_cubic(cubic, now + 60 * SECOND, 100 * MS)
    assert cubic.cwnd < before * 1.1


@pytest.mark.attack(34)
def test_one_ack_is_worth_one_window_at_most() -> None:
    for name in REGISTRY:
        control = create(name, MSS, 10)
        control.on_ack(1 << 40, 0, RTT, RTT, True)
        assert control.cwnd <= 10 * MSS + 65_536
        control.on_congestion(control.cwnd, 0)
        before = control.cwnd
        for i in range(5):
            control.on_ack(1 << 40, i * MS, RTT, RTT, True)
        assert control.cwnd <= 1.6 * before


def test_names_are_a_table() -> None:
    assert set(REGISTRY) == {"reno", "cubic"}
    with pytest.raises(ConfigError, match="vegas"):
        create("vegas", MSS, 10)


# -- HyStart++ ------------------------------------------------------------------------------------------------------


class Rounds:
    """Feeds round trips to HyStart++, one ACK every two milliseconds unless told otherwise."""

    def __init__(self) -> None:
        self.hystart = HyStart()
        self.now = 1_000 * SECOND

    def feed(self, *samples: list[int], gap: int = 2 * MS) -> bool:
        """Take in rounds of round trips in milliseconds; return whether slow start is over."""
        done = False
        for batch in samples:
            for i, rtt in enumerate(batch):
                done = self.hystart.on_ack(rtt * MS, i == 0, self.now) or done
                self.now += gap
        return done


@pytest.mark.checklist(112)
def test_hystart_slows_down_when_the_round_trip_rises_and_leaves_after_a_whole_round() -> None:
    rounds = Rounds()
    assert not rounds.feed([100] * 16, [100] * 16)
    seen = [rounds.hystart.conservative]
    assert not rounds.feed([113] * 16)
    seen.append(rounds.hystart.conservative)
    assert seen == [False, True]
    assert not rounds.feed([115] * 16, [115] * 16)
    assert rounds.feed([115] * 16)


@pytest.mark.checklist(112)
def test_hystart_sees_a_queue_that_grows_within_one_round() -> None:
    rounds = Rounds()
    rounds.feed([100] * 16)
    rounds.feed([100] * 8 + [115] * 8)
    assert rounds.hystart.conservative


@pytest.mark.checklist(112)
@pytest.mark.parametrize(
    ("batch", "gap"),
    [
        ([300] * 40, 0),  # our own lateness: many ACKs at one instant
        ([300] * 7 + [100], 2 * MS),  # the minimum counts
        ([109] * 16, 2 * MS),  # below an eighth
        ([200] * 7, 2 * MS),  # too few samples
    ],
)
def test_hystart_is_not_fooled(batch: list[int], gap: int) -> None:
    rounds = Rounds()
    rounds.feed([100] * 16)
    rounds.feed(batch, gap=gap)
    rounds.feed([100] * 16)
    assert not rounds.hystart.conservative


@pytest.mark.checklist(112)
def test_hystart_goes_back_when_it_was_jitter_or_one_burst() -> None:
    rounds = Rounds()
    rounds.feed([100] * 16, [130] * 16)
    seen = [rounds.hystart.conservative]
    for _ in range(2):
        assert not rounds.feed([101] * 16)
        seen.append(rounds.hystart.conservative)
    assert seen == [True, True, False], "what was sent before it slowed down says nothing yet"


# -- pacing ---------------------------------------------------------------------------------------------------------


def spread(rtt: int, window: int) -> list[tuple[int, int]]:
    """Return (when, bytes) of what one window looks like over a path of *rtt*."""
    script = Script()
    script.out()
    script.now += rtt
    script.feed(0, 1, SYN | ACK, options=script.options)
    cc = script.conn._sender.cc
    cc.cwnd = cc.ssthresh = window
    script.conn.tcb.snd_wnd = 1 << 22
    script.conn.send(blob(250_000), script.now)
    return [(when, s.payload_len) for when, s in script.wait(2 * rtt) if s.seq < 240_000 and when < rtt]


def test_a_window_is_spread_over_the_round_trip() -> None:
    sent = spread(100 * MS, 400_000)
    assert sum(size for _, size in sent) >= 240_000
    assert sum(size for when, size in sent if when == 0) <= 22 * 1240
    assert max(size for _, size in sent) <= 12 * 1240
    times = [when for when, _ in sent]
    assert times[-1] >= 40 * MS  # 240 of 400 kB at six fifths of the rate
    gaps = [b - a for a, b in pairwise(times[3:])]
    assert max(gaps) <= 4 * MS


@pytest.mark.parametrize(("rtt", "window"), [(2 * MS, 400_000), (100 * MS, 10 * 1240)])
def test_fast_paths_and_small_windows_are_not_paced(rtt: int, window: int) -> None:
    sent = spread(rtt, window)
    assert {when for when, _ in sent} == {0}
    assert sum(size for _, size in sent) >= min(window, 240_000) - 1240


def test_a_window_of_twenty_packets_keeps_its_burst_of_ten_and_recovery_is_not_paced() -> None:
    script = Script(TcpConfig(timestamps=False))
    script.out()
    script.now += RTT
    sack_ok = script.options + bytes((1, 1, 4, 2))
    script.feed(0, 1, SYN | ACK, options=sack_ok)
    cc = script.conn._sender.cc
    cc.cwnd = cc.ssthresh = 40 * 1220
    script.conn.send(blob(100 * 1220), script.now)
    first = [(when, s) for when, s in script.wait(90 * MS) if s.payload_len]
    assert sum(s.payload_len for when, s in first if when == 0) == 20 * 1220  # the bucket, and the step that empties it
    assert sum(s.payload_len for _, s in first) == 40 * 1220
    script.now += 10 * MS
    edges = [(1 + n * 1220 + script.OUR_ISN) & 0xFFFFFFFF for n in (10, 40)]
    out = script.feed(1, 1, options=bytes((1, 1, 5, 10)) + b"".join(edge.to_bytes(4, "big") for edge in edges))
    assert sum(s.payload_len for s in out) > 15 * 1220, "what PRR admits leaves at once"


# -- the least round trip --------------------------------------------------------------------------------------------


def test_the_least_round_trip_is_that_of_the_last_ten_seconds() -> None:
    rtt = RttEstimator(TcpConfig())
    now = 1_000 * SECOND
    rtt.note_least(300_000, now)
    seen = []
    for _ in range(120):
        now += 100 * MS
        rtt.note_least(80 * MS, now)
        seen.append(rtt.min_rtt)
    assert seen[49] == 300_000, "five seconds are remembered"
    assert seen[100] == 80 * MS, "ten are not"
    rtt.note_least(20 * MS, now)
    assert rtt.min_rtt == 20 * MS, "a shorter path counts at once"
    rtt.note_least(70 * MS, now + 60 * SECOND)
    assert rtt.min_rtt == 70 * MS, "silence forgets everything"


def test_after_a_move_to_a_long_path_pacing_and_reordering_window_adapt() -> None:
    pipe = Pipe(link=Link(delay=MS // 10, rate=8_000_000, queue_limit=100))
    pipe.open()
    assert pipe.a.info().min_rtt < MS
    for link in pipe.links:
        link.delay = 40 * MS
    data = bytes(1 << 18)
    until = pipe.now + 12 * SECOND
    while pipe.now < until:
        while pipe.a.send(data, pipe.now):
            pass
        while pipe.b.read(1 << 20, pipe.now):
            pass
        pipe.step(until)
        pipe.clear_log()
    assert pipe.a.info().min_rtt >= 80 * MS
    rack = pipe.a._sender.recovery.rack
    assert rack.window(False, pipe.a.info().min_rtt, pipe.a.info().srtt) >= 20 * MS


# -- rare losses ----------------------------------------------------------------------------------------------------


def tolerance(arrived: int) -> LossTolerance:
    """Return one that has seen *arrived* packets and lost one of them, long ago."""
    subject = LossTolerance(0)
    subject.keeps(arrived * MSS, MSS, 100 * MSS, MSS, RTT, RTT)
    return subject


@pytest.mark.parametrize(
    ("rtt", "keep"),
    [(RTT, 1.0), (106 * MS, 1.0), (110 * MS, 100 / 110), (150 * MS, 2 / 3), (0, 0.0)],
)
def test_a_rare_loss_costs_the_queue_that_there_was(rtt: int, keep: float) -> None:
    assert tolerance(500).keeps(1_000 * MSS, MSS, 100 * MSS, MSS, rtt, RTT) == pytest.approx(keep)


def test_frequent_or_many_losses_are_congestion() -> None:
    assert tolerance(500).keeps(549 * MSS, 3 * MSS, 100 * MSS, MSS, RTT, RTT) == 1, "4 of 549"
    assert tolerance(60).keeps(100 * MSS, 2 * MSS, 100 * MSS, MSS, RTT, RTT) == 0, "3 of 100"
    assert LossTolerance(0).keeps(49 * MSS, MSS, 100 * MSS, MSS, RTT, RTT) == 0, "the first of 49"
    assert tolerance(900).keeps(1_000 * MSS, 4 * MSS, 100 * MSS, MSS, RTT, RTT) == 0, "4 in a window of 100"
    subject = tolerance(900)
    assert subject.keeps(1_000 * MSS, 2 * MSS, 100 * MSS, MSS, RTT, RTT) == 1
    assert subject.goes_on(1, MSS), "a third packet in the same recovery"
    assert not subject.goes_on(1, MSS), "and a fourth"


def test_old_losses_fade() -> None:
    subject = LossTolerance(0)
    for n in range(1, 40):
        assert subject.keeps(n * 1_000 * MSS, 2 * MSS, 100 * MSS, MSS, RTT, RTT) == 1
    assert subject.keeps(39_040 * MSS, 2 * MSS, 100 * MSS, MSS, RTT, RTT) == 1, "of late 0.4 %, whatever the last forty"


def test_short_paths_have_no_tolerance() -> None:
    assert tolerance(500).keeps(1_000 * MSS, MSS, 100 * MSS, MSS, 2 * MS, 2 * MS) == 0


@pytest.mark.parametrize(("lost", "keeps"), [(1, True), (40, False)])
def test_a_tolerated_loss_leaves_the_window_alone(lost: int, keeps: bool) -> None:
    script = Script(TcpConfig(timestamps=False, pacing=False))
    script.out()
    script.now += RTT
    script.feed(0, 1, SYN | ACK, options=script.options + bytes((1, 1, 4, 2)))
    script.conn.tcb.snd_wnd = 1 << 22
    cc = script.conn._sender.cc
    cc.cwnd = cc.ssthresh = 100 * 1220
    script.conn.send(blob(300 * 1220), script.now)
    script.wait(50 * MS)
    script.now += 50 * MS
    script.feed(1, 1 + 90 * 1220, wnd=65_535)
    script.wait(50 * MS)
    script.now += 50 * MS
    before = cc.cwnd
    first = 90 + lost
    edges = [(1 + n * 1220 + script.OUR_ISN) & 0xFFFFFFFF for n in (first, first + 10)]
    blocks = b"".join(edge.to_bytes(4, "big") for edge in edges)
    script.feed(1, 1 + 90 * 1220, options=bytes((1, 1, 5, 10)) + blocks, wnd=65_535)
    assert script.conn.info().recovery == "recovery"
    script.now += RTT
    script.feed(1, script.conn.tcb.snd_nxt - script.conn.tcb.iss, wnd=65_535)
    assert script.conn.info().recovery == "open"
    assert (cc.cwnd >= before) is keeps, (cc.cwnd, before)
    assert (cc.ssthresh == 100 * 1220) is keeps


# -- paths ----------------------------------------------------------------------------------------------------------


def throughput(config: TcpConfig, size: int, link: Link, seed: int = 1) -> float:
    """Return Mbit/s of a transfer with loss in the data's direction only."""
    pipe = Pipe(config, seed=seed, link=link)
    pipe.links[1].loss = 0.0
    start = pipe.now
    data = bytes(size)
    got, _ = pipe.transfer(data, limit=3_000 * SECOND)
    assert len(got) == size
    return size * 8 / ((pipe.now - start) / SECOND) / 1e6


@pytest.mark.parametrize("delay", [1, 3, 10, 50])
def test_one_percent_loss_hurts_less_than_half_of_what_it_does_without_sack(delay: int) -> None:
    link = Link(delay=delay * MS, loss=0.01)
    modern = throughput(TcpConfig(), 2_000_000, link)
    plain = throughput(TcpConfig(sack=False, congestion="reno", timestamps=False), 2_000_000, link)
    assert modern >= 2 * plain


def test_a_long_fat_path_is_filled() -> None:
    """100 Mbit/s and 100 ms, buffer of one round trip: from the third second on, at least 85 % of the link."""
    pipe = Pipe(link=Link(delay=50 * MS, rate=100_000_000, queue_limit=1_024))
    pipe.run(300 * MS)
    data = bytes(1 << 20)
    marks: dict[int, int] = {}
    got = 0
    start = pipe.now
    while pipe.now < start + 6 * SECOND:
        while pipe.a.send(data, pipe.now):
            pass
        while part := pipe.b.read(1 << 20, pipe.now):
            got += len(part)
        marks.setdefault((pipe.now - start) // SECOND, got)
        assert pipe.step(pipe.now + SECOND)
        pipe.clear_log()
    assert (marks[5] - marks[3]) * 8 / 2 >= 85e6
    assert pipe.a.info().rto_fires == 0


def test_a_long_fat_path_that_loses_one_in_ten_thousand_is_filled() -> None:
    """100 Mbit/s, 100 ms, 0.01 %: from the third second on, 85 % of the link in the median; RFC 9438 alone has half."""
    shares = [long_fat("cubic", 0.0001, seconds=10, skip=3, seed=seed) for seed in (1, 2, 3)]
    assert sorted(shares)[1] >= 0.85, shares


def test_neighbours_that_bear_no_losses_keep_their_share() -> None:
    """A queue of a tenth of the bandwidth-delay product is the hardest: it hardly shows in the round trip."""
    plain, _ = beside_plain(0.1, False, False)
    beside, _ = beside_plain(0.1, False, True)
    assert beside >= 0.8 * plain


def test_sixteen_flows_share_one_bottleneck_fairly() -> None:
    """Jain's index over the second half of 20 s at 40 Mbit/s and 40 ms is 0.95 at least."""
    flows, rate, delay, queue = 16, 40_000_000, 20 * MS, 160
    now = start = 1_000 * SECOND
    listener = Listener(TcpConfig(), backlog=64)
    senders = [Connection.connect(TcpConfig(), 1_000 * i, now) for i in range(flows)]
    receivers: dict[int, Connection] = {}
    heap: list[tuple[int, int, int, int, object]] = []
    serial, busy, cost = 0, 0, 1_280 * 8 * SECOND // rate
    half = start + 10 * SECOND
    counts = [0] * flows
    data = bytes(65_536)

    def emit(side: int, flow: int, conn: Connection) -> None:
        nonlocal serial, busy
        while segments := conn.segments_to_send(now):
            for segment in segments:
                for packet in split(segment):
                    serial += 1
                    when = now + delay
                    if side == 0 and packet.payload:
                        begin = max(now, busy)
                        if begin - now > queue * cost:
                            continue
                        busy = begin + cost
                        when = busy + delay
                    heapq.heappush(heap, (when, serial, 1 - side, flow, packet))

    for flow, conn in enumerate(senders):
        emit(0, flow, conn)
    deadlines = [conn.next_deadline() or 1 << 62 for conn in senders]
    late = [1 << 62] * flows
    while now < start + 20 * SECOND:
        now = max(now, min(heap[0][0] if heap else 1 << 62, min(deadlines), min(late)))
        dirty: set[tuple[int, int]] = set()
        while heap and heap[0][0] <= now:
            _, _, side, flow, p = heapq.heappop(heap)
            assert hasattr(p, "seq")
            (packet,) = coalesce([p])  # type: ignore[list-item]  # heap entries carry packets
            if side == 1 and flow not in receivers:
                made = listener.receive_syn(flow, packet.seq, packet.wnd, packet.options, now, 77)
                assert made is not None
                receivers[flow] = made
            else:
                conn = receivers[flow] if side else senders[flow]
                conn.receive_segment(
                    packet.seq, packet.ack, packet.flags, packet.wnd, packet.options, packet.payload, now, 1
                )
            dirty.add((side, flow))
        for flow in range(flows):
            if deadlines[flow] <= now:
                senders[flow].handle_deadline(now)
                dirty.add((0, flow))
            if late[flow] <= now:
                receivers[flow].handle_deadline(now)
                dirty.add((1, flow))
        for side, flow in dirty:
            conn = receivers[flow] if side else senders[flow]
            if side:
                got = len(conn.read(1 << 20, now))
                if now >= half:
                    counts[flow] += got
            else:
                conn.send(data, now)
            emit(side, flow, conn)
            (late if side else deadlines)[flow] = conn.next_deadline() or 1 << 62
    jain = sum(counts) ** 2 / (flows * sum(c * c for c in counts))
    assert sum(counts) * 8 / 10 > 0.85 * rate * 1_208 / 1_280
    assert jain >= 0.95
