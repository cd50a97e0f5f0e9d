"""The benchmark programs count and judge right; what they measure is for ``make bench``."""

import argparse
import time
from typing import cast

import anyio
import pytest

from benchmarks import compare, micro, peer
from tsnetpy.node.node import Node


class _Stream:
    """Gives a thousand bytes at a time, after other tasks had their turn."""

    async def __aenter__(self) -> "_Stream":
        return self

    async def __aexit__(self, *_: object) -> None:
        return

    async def receive(self, max_bytes: int) -> bytes:
        assert max_bytes >= 1000
        await anyio.lowlevel.checkpoint()
        _Node.given += 1000
        return bytes(1000)


class _Node:
    given = 0

    async def connect_tcp(self, host: str, port: int) -> _Stream:
        assert (host, port) == ("there", peer.SOURCE)
        return _Stream()


@pytest.mark.anyio
async def test_parallel_connections_are_all_counted() -> None:
    _Node.given = 0
    args = argparse.Namespace(mode="source", to="there", secs=0.05, p=4)
    counted = await peer.bulk(cast("Node", _Node()), args, time.perf_counter())
    assert counted == _Node.given > 4000


@pytest.mark.parametrize(
    ("less", "floor", "ratio", "kept"),
    [(True, 4.0, 3.9, True), (True, 4.0, 4.1, False), (False, 0.15, 0.2, True), (False, 0.15, 0.1, False)],
)
def test_floors_know_their_direction(less: bool, floor: float, ratio: float, kept: bool) -> None:
    assert compare.Row("mode", "name", "unit", less=less, floor=floor).meets_floor(ratio) is kept


def test_table_has_ratio_and_verdict() -> None:
    bench = compare.Bench.__new__(compare.Bench)
    bench.values = {("rtt", "echo of 1 byte, p50"): {compare.PAIRS[0]: 100.0, compare.PAIRS[1]: 500.0}}
    header, row = list(bench.table())
    assert row == ["echo of 1 byte, p50", "us", "100", "500", "", "", "5.00", "<= 4: MISSED"]
    assert len(header) == len(row)
    assert "| 5.00 | <= 4: MISSED |" in compare.markdown([header, row], {"Date": "today"})


def test_a_seal_figure_is_the_median_between_its_quartiles() -> None:
    figure = micro.Figure.of([9.0, 1.0, 3.0, 2.0, 4.0])
    assert (figure.low, figure.median, figure.high) == (2.0, 3.0, 4.0)


def test_seal_units_count_packets_of_a_transfer_that_takes_place() -> None:
    result = micro.measure(rounds=2, packets=50, warm_up=3)
    assert result.packets >= 100
    for figure in (result.send, result.receive, result.engine, result.seal_ns):
        assert 0 < figure.low <= figure.median <= figure.high
    assert result.engine.median < result.receive.median
