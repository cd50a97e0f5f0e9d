"""The benchmark programs count and judge right; what they measure is for ``make bench``."""

import argparse
import time
from typing import cast

import anyio
import pytest

from benchmarks import compare, peer
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
