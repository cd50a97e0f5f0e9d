"""Two engines over a bad network: whatever happens, the bytes arrive once and in order."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tcp.kit import Link, Pipe, blob
from tsnetpy.base.instant import MILLISECOND, SECOND
from tsnetpy.tcp import State, TcpConfig


def test_bulk_over_a_clean_link() -> None:
    pipe = Pipe()
    data = blob(3_000_000)
    got, _ = pipe.transfer(data)
    assert got == data
    info = pipe.a.info()
    assert info.retransmits == 0
    assert info.rto_fires == 0


@pytest.mark.parametrize("gro", [True, False])
@pytest.mark.parametrize("sack", [True, False])
@pytest.mark.parametrize("timestamps", [True, False])
def test_bulk_over_a_bad_link(gro: bool, sack: bool, timestamps: bool) -> None:
    config = TcpConfig(sack=sack, timestamps=timestamps)
    pipe = Pipe(config, seed=3, gro=gro, link=Link(loss=0.01, reorder=0.01, duplicate=0.01))
    data, back = blob(1_000_000), blob(200_000, 8)
    assert pipe.transfer(data, back) == (data, back)
    assert pipe.a.info().retransmits > 0


def test_sack_repairs_loss_without_timeouts() -> None:
    pipe = Pipe(seed=5, link=Link(loss=0.01))
    start = pipe.now
    data = blob(4_000_000)
    got, _ = pipe.transfer(data)
    assert got == data
    info = pipe.a.info()
    assert info.sack
    assert info.fast_retransmits >= 5
    assert info.rto_fires <= 6
    # Reno at 1 % loss and 20 ms: around 6 Mbit/s; half of that would mean that recovery does not work.
    assert (pipe.now - start) / SECOND < 12


@given(
    seed=st.integers(0, 1 << 30),
    loss=st.sampled_from([0.0, 0.02, 0.1, 0.25]),
    reorder=st.sampled_from([0.0, 0.05, 0.3]),
    duplicate=st.sampled_from([0.0, 0.1]),
    sack=st.booleans(),
    timestamps=st.booleans(),
    scaling=st.booleans(),
    gro=st.booleans(),
    nodelay=st.booleans(),
    chunk=st.sampled_from([1, 37, 1200, 5000, 65_536]),
    iss=st.sampled_from([0, 1, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFF0, 0xFFFF_FFFF]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_network_any_options(
    seed: int,
    loss: float,
    reorder: float,
    duplicate: float,
    sack: bool,
    timestamps: bool,
    scaling: bool,
    gro: bool,
    nodelay: bool,
    chunk: int,
    iss: int,
) -> None:
    size = 40_000 if chunk > 100 else 3_000
    config = TcpConfig(sack=sack, timestamps=timestamps, window_scaling=scaling, nodelay=nodelay, syn_retries=20)
    other = TcpConfig(syn_retries=20)
    link = Link(loss=loss, reorder=reorder, duplicate=duplicate)
    pipe = Pipe(config, other, seed=seed, gro=gro, iss_a=iss, iss_b=(iss * 7 + 5) & 0xFFFFFFFF, link=link)
    data, back = blob(size, seed), blob(size // 2, seed + 1)
    assert pipe.transfer(data, back, limit=20_000 * SECOND, chunk=chunk) == (data, back)


def test_slow_bottleneck_with_a_short_queue_keeps_going() -> None:
    pipe = Pipe(seed=2, link=Link(rate=20_000_000, queue_limit=64))
    data = blob(5_000_000)
    start = pipe.now
    got, _ = pipe.transfer(data)
    assert got == data
    rate = len(data) * 8 / ((pipe.now - start) / SECOND)
    assert rate > 12_000_000  # at least 60 % of the bottleneck


def test_two_way_bulk_at_once() -> None:
    pipe = Pipe(seed=4, link=Link(rate=50_000_000))
    data, back = blob(2_000_000), blob(2_000_000, 9)
    assert pipe.transfer(data, back) == (data, back)


@pytest.mark.parametrize("offset", [1 << 32, (1 << 33) + 12345, (1 << 40) - 70_000])
@pytest.mark.attack(48)
def test_streams_beyond_four_gigabytes(offset: int) -> None:
    """As if *offset* bytes had gone by already: the absolute numbers are far above 32 bits, the wire is not."""
    pipe = Pipe()
    pipe.open()
    for tx, rx in ((pipe.a, pipe.b), (pipe.b, pipe.a)):
        shift = offset - offset % (1 << 32)  # the wire numbers stay what they are
        sender, receiver = tx.tcb, rx.tcb
        for name in ("snd_una", "snd_nxt", "snd_wl2", "iss"):
            setattr(sender, name, getattr(sender, name) + shift)
        for name in ("rcv_nxt", "rcv_adv", "last_ack_sent", "irs", "snd_wl1"):
            setattr(receiver, name, getattr(receiver, name) + shift)
        buffer = tx._sender.buffer
        buffer.start += shift
        buffer.end += shift
        buffer._sealed_end += shift
        tx._sender.recovery.point += shift
    pipe.links[0].loss = 0.02
    data, back = blob(400_000), blob(300_000, 3)
    assert pipe.transfer(data, back) == (data, back)


@pytest.mark.checklist(123)
@pytest.mark.attack(48)
def test_sequence_numbers_wrap_on_the_wire() -> None:
    pipe = Pipe(iss_a=0xFFFF_FFFF - 30_000, iss_b=0xFFFF_FFFF)
    data = blob(200_000)
    assert pipe.transfer(data, data) == (data, data)
    wire = [p.seq for p in pipe.data_sent(0)]
    assert max(wire) > 0xFFFF_0000
    assert min(wire) < 200_000


@pytest.mark.checklist(78)
@pytest.mark.attack(42)
def test_many_tiny_writes_share_packets() -> None:
    pipe = Pipe(TcpConfig(nodelay=False))
    pipe.open()
    pipe.clear_log()
    for _ in range(2_000):
        assert pipe.a.send(b"abc", pipe.now) == 3
    pipe.run(SECOND)
    assert pipe.b.readable_bytes == 6_000
    assert len(pipe.data_sent(0)) <= 6
    assert pipe.a.unsent_bytes == 0


def test_after_everything_both_ends_are_gone() -> None:
    pipe = Pipe()
    pipe.transfer(b"ping", b"pong")
    pipe.run(30 * SECOND)
    assert pipe.a.state is State.CLOSED
    assert pipe.b.state is State.CLOSED
    assert pipe.a.error is None
    assert pipe.a.next_deadline() is None
    assert pipe.b.next_deadline() is None


@pytest.mark.checklist(76, 77)
def test_receive_window_grows_with_a_reader_that_keeps_up() -> None:
    pipe = Pipe(link=Link(delay=40 * MILLISECOND))
    pipe.transfer(blob(12_000_000))
    assert pipe.b.info().rcv_buf > 1_000_000
    assert pipe.a.info().snd_buf > 500_000


@pytest.mark.parametrize("sack", [True, False])
def test_a_lost_window_of_packets_is_recovered(sack: bool) -> None:
    pipe = Pipe(TcpConfig(sack=sack))
    pipe.open()
    first = pipe.links[0].count
    pipe.links[0].drop_next = set(range(first, first + 10))
    data = blob(60_000)
    pipe.a.send(data, pipe.now)
    pipe.run(5 * SECOND)
    got = b""
    while part := pipe.b.read(1 << 20, pipe.now):
        got += part
    assert got == data
    info = pipe.a.info()
    assert (info.rto_fires, info.tail_probes) == ((0, 1) if sack else (1, 0))


def test_a_lost_acknowledgment_costs_two_round_trips_and_no_window() -> None:
    pipe = Pipe()
    pipe.open()
    pipe.links[1].drop_next = {pipe.links[1].count}
    start = pipe.now
    pipe.a.send(blob(9_000), pipe.now)
    while pipe.a.unsent_bytes:
        assert pipe.step(pipe.now + 10 * SECOND)
    assert pipe.now - start < 80 * MILLISECOND
    info = pipe.a.info()
    assert (info.tail_probes, info.rto_fires, info.fast_retransmits) == (1, 0, 0)
    assert info.ssthresh > 1 << 30  # the peer's DSACK proved that nothing had been lost


@pytest.mark.checklist(116)
def test_a_repaired_tail_counts_as_congestion() -> None:
    pipe = Pipe()
    pipe.open()
    first = pipe.links[0].count
    pipe.links[0].drop_next = {first + 6, first + 7}
    pipe.a.send(blob(8 * 1208), pipe.now)
    pipe.run(SECOND)
    info = pipe.a.info()
    assert (info.tail_probes, info.rto_fires, info.retransmits) == (1, 0, 2)
    assert info.cwnd < 10 * 1208


def test_a_lost_retransmission_is_noticed_without_a_timeout() -> None:
    pipe = Pipe(link=Link(rate=100_000_000))
    pipe.open()
    pipe.a._sender.cc.cwnd = 60 * 1208
    first = pipe.links[0].count
    data = blob(400_000)
    state = {"hits": 0}
    victim = (pipe.a.tcb.snd_nxt + 5 * 1208) & 0xFFFFFFFF
    pipe.links[0].drop_next = {first + 5}
    sent = 0
    until = pipe.now + 60 * SECOND
    got = bytearray()
    while len(got) < len(data):
        if sent < len(data):
            sent += pipe.a.send(data[sent:], pipe.now)
        before = len(pipe.log)
        pipe.step(until)
        again = [p for _, s, p in pipe.log[before:] if s == 0 and p.seq == victim and p.payload]
        if again and state["hits"] == 0 and pipe.a.info().retransmits:
            state["hits"] = 1  # lose the first retransmission in flight
            pipe._heap = [item for item in pipe._heap if not (item[2] == 1 and item[3].seq == victim)]
            pipe._heap.sort()
        got += pipe.b.read(1 << 20, pipe.now)
        assert pipe.now < until
    assert bytes(got) == data
    assert state["hits"] == 1
    assert pipe.a.info().rto_fires == 0
    assert pipe.a.info().retransmits >= 2
