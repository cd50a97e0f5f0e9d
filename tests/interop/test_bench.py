"""`make bench` in short: every kind of end, each as client and as server, and figures that can be."""

import os
import pathlib
import tempfile
from collections.abc import Iterator

import pytest

from benchmarks.compare import Bench, Plan
from benchmarks.ends import kernel_missing
from benchmarks.figures import KERNEL, OURS, REFERENCE, ROWS, Pair
from tests.interop.lab import Lab, Recorder, missing

PAIRS = [REFERENCE, Pair(OURS, OURS), Pair(KERNEL, KERNEL), Pair(OURS, KERNEL)]


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A run in a lab of its own: it changes Headscale's configuration and leaves nodes behind."""
    reason = missing() or kernel_missing()
    if reason:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="tsnetpy-bench-") as name:
        directory = pathlib.Path(name)
        directory.chmod(0o755)
        lab = Lab(directory, f"tb{os.getpid()}-")
        try:
            lab.up()
            yield Bench(lab, Plan(seconds=0.3, rounds=2, others=1), PAIRS, None)
        finally:
            lab.down()


def test_all_kinds_of_ends_are_measured(bench: Bench, record_property: Recorder) -> None:
    bench.run(["rtt", "conns", "bulk"])
    assert bench.failures == []
    found = bench.figures.by_row
    for row in ROWS:
        if row.mode in ("rtt", "conns", "bulk"):
            here = found[row.mode, row.name]
            assert set(here) == set(PAIRS)
            assert all(rounds.median > 0 for rounds in here.values())
            several = 1 if row.unit == "MiB" else 2  # a high-water mark is read once, at the end
            assert [len(here[pair].values) for pair in PAIRS] == [several, several, 1, 1]
    # What has begun is ended with the load: only the lab's own programs are left.
    assert {process.name for process in bench.lab.processes} == {"derper", "front", "headscale"}
    for line in bench.tables()["ours to ours against tsnet to itself"][1:]:
        record_property(line[0], line[4])
