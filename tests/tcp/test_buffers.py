"""Byte stores against simple models."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsnetpy.base.packet import Buffer
from tsnetpy.tcp.buffers import ReassemblyQueue, ReceiveQueue, SendBuffer
from tsnetpy.tcp.options import encode_sack, encode_syn, encode_timestamps, parse_segment, parse_syn
from tsnetpy.tcp.ranges import RangeSet
from tsnetpy.tcp.seqnum import from_wire, not_older, to_wire

U32 = st.integers(0, 0xFFFFFFFF)


def pattern(start: int, end: int) -> bytes:
    return bytes((at * 31 + (at >> 8)) & 0xFF for at in range(start, end))


@given(st.integers(0, 1 << 70), st.integers(-(1 << 31), (1 << 31) - 1))
def test_wire_numbers_come_back_whatever_the_distance(near: int, distance: int) -> None:
    assert from_wire(to_wire(near + distance), near) == near + distance


@given(U32, st.integers(0, (1 << 31) - 1))
def test_timestamps_compare_on_the_circle(stamp: int, later: int) -> None:
    assert not_older((stamp + later) & 0xFFFFFFFF, stamp)
    assert later == 0 or not not_older(stamp, (stamp + later) & 0xFFFFFFFF)


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 120)), max_size=60), st.randoms(use_true_random=False))
def test_reassembly_equals_a_byte_map(pieces: list[tuple[int, int]], random: object) -> None:
    base = (1 << 32) - 150
    queue = ReassemblyQueue(1000)
    have: dict[int, int] = {}
    nxt = base
    got = bytearray()
    for offset, size in pieces:
        start = max(base + offset, nxt)
        end = base + offset + size
        if end <= start:
            continue
        new = queue.add(start, pattern(start, end))
        assert new == sum(at not in have for at in range(start, end))
        have.update((at, at) for at in range(start, end))
        assert queue.size == len(have)
        runs = [at for at in have if at - 1 not in have]
        assert queue.starts == sorted(runs)
        if queue.starts and queue.starts[0] == nxt:
            for part in queue.pop_until(nxt):
                got += part
                nxt += len(part)
            for at in [at for at in have if at < nxt]:
                del have[at]
            assert queue.size == len(have)
    assert bytes(got) == pattern(base, nxt)
    blocks = queue.blocks(4)
    assert len(blocks) == min(4, len(queue.starts))
    assert set(blocks) <= set(zip(queue.starts, queue.ends))


def test_first_copy_wins() -> None:
    queue = ReassemblyQueue(8)
    queue.add(10, b"first")
    queue.add(8, b"XXXXXXXXX")
    assert b"".join(queue.pop_until(8)) == b"XXfirstXX"


def test_single_bytes_do_not_become_objects() -> None:
    queue = ReassemblyQueue(8)
    for at in range(1000, 3000):
        queue.add(at, b"x")
    for at in range(999, 500, -1):
        queue.add(at, b"y")
    assert len(queue._parts[0]) <= 3
    receive = ReceiveQueue()
    for _ in range(5000):
        receive.append(b"z")
    assert len(receive._chunks) <= 3
    assert receive.read(10_000) + receive.read(10_000) == b"z" * 5000


@given(st.lists(st.one_of(st.integers(1, 9000), st.integers(-9000, -1)), max_size=40))
def test_receive_queue_is_a_fifo(steps: list[int]) -> None:
    queue = ReceiveQueue()
    written = read = 0
    for step in steps:
        if step > 0:
            queue.append(pattern(written, written + step))
            written += step
        else:
            data = queue.read(-step)
            assert len(data) <= -step
            assert bool(data) == (written > read)
            assert data == pattern(read, read + len(data))
            read += len(data)
        assert queue.size == written - read


@given(
    st.lists(st.tuples(st.integers(1, 9000), st.sampled_from([bytes, bytearray, memoryview])), min_size=1, max_size=20),
    st.data(),
)
def test_send_buffer_is_a_rope(writes: list[tuple[int, type]], data: st.DataObject) -> None:
    base = (1 << 32) - 77
    buffer = SendBuffer(base)
    end = base
    for size, kind in writes:
        chunk: Buffer = kind(pattern(end, end + size))
        buffer.append(chunk, size)
        end += size
        assert buffer.end == end
        start = data.draw(st.integers(buffer.start, end - 1))
        stop = data.draw(st.integers(start + 1, end))
        assert b"".join(bytes(p) for p in buffer.slices(start, stop - start)) == pattern(start, stop)
        if data.draw(st.booleans()):
            # Only what was sent is acknowledged, and what was sent was sliced before.
            buffer.drop_until(stop)
            assert buffer.start == stop


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 200), st.integers(1, 40)), max_size=40), st.integers(0, 200))
@pytest.mark.checklist(124)
def test_range_set_equals_a_set(blocks: list[tuple[bool, int, int]], una: int) -> None:
    base = (1 << 32) - 100
    ranges = RangeSet(1000)
    have: set[int] = set()
    for adding, offset, size in blocks:
        block = set(range(base + offset, base + offset + size))
        if adding:
            assert ranges.add(base + offset, base + offset + size) == len(block - have)
            have |= block
        else:
            assert ranges.remove(base + offset, base + offset + size) == len(block & have)
            have -= block
        assert ranges.total == len(have)
        assert ranges.highest() == max(have, default=-1) + 1
    ranges.advance(base + una)
    have = {at for at in have if at >= base + una}
    assert ranges.total == len(have)
    assert ranges.first()[0] == min(have, default=0)
    low, high = base + una, base + 260
    holes = [at for at in range(low, high) if at not in have]
    start, end = ranges.gap(low, high)
    if holes:
        assert start == holes[0]
        assert set(range(start, end)) <= set(holes)
        assert end == high or end in have
    else:
        assert start == end


def test_range_set_refuses_endless_fragments() -> None:
    ranges = RangeSet(4)
    for at in range(20):
        ranges.add(10 * at, 10 * at + 1)
    assert (ranges.total, len(ranges)) == (4, 4)
    assert ranges.add(0, 40) == 36


@given(st.integers(1, 0xFFFF), st.integers(-1, 14), st.booleans(), st.booleans(), U32, U32)
def test_syn_options_come_back(mss: int, wscale: int, sack: bool, has_ts: bool, val: int, ecr: int) -> None:
    raw = encode_syn(mss, wscale, sack, has_ts, val, ecr)
    assert len(raw) % 4 == 0
    assert len(raw) <= 40
    offer = parse_syn(memoryview(raw))
    assert offer is not None
    assert (offer.mss, offer.wscale, offer.sack_permitted, offer.has_ts) == (mss, wscale, sack, has_ts)
    assert not has_ts or (offer.ts_val, offer.ts_ecr) == (val, ecr)


@given(U32, U32, st.lists(st.tuples(U32, U32), min_size=1, max_size=3))
def test_segment_options_come_back(val: int, ecr: int, blocks: list[tuple[int, int]]) -> None:
    found = parse_segment(encode_timestamps(val, ecr) + encode_sack(blocks))
    assert (found.has_ts, found.ts_val, found.ts_ecr, found.sacks) == (True, val, ecr, blocks)


@given(st.binary(max_size=60))
@pytest.mark.attack(7, 54)
def test_any_bytes_are_parsed_without_complaint(raw: bytes) -> None:
    parse_segment(raw)
    parse_syn(raw)
