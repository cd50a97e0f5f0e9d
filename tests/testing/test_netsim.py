"""The simulated matrix: every byte right, and goodput no worse than the committed snapshot."""

import json
import math

import pytest

from benchmarks import netsim


def test_goodput_over_the_matrix_is_at_least_nine_tenths_of_the_snapshot() -> None:
    # Single lossy cells depend on which packets the dice take, so rows are compared; cells only roughly.
    snapshot = json.loads(netsim.SNAPSHOT.read_text(encoding="utf-8"))
    table = netsim.run()
    assert table.keys() == snapshot.keys()
    for row, cells in table.items():
        known = snapshot[row]
        assert cells.keys() == known.keys()
        ratios = {column: cells[column] / known[column] for column in cells}
        mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
        assert mean >= 0.9, f"{row}: {cells} against {known}"
        assert min(ratios.values()) >= 0.6, f"{row}: {cells} against {known}"


@pytest.mark.parametrize("row", ["loss 5 %", "reorder 5 %", "duplicate 5 %", "corrupt 1 %"])
def test_a_fresh_seed_delivers_every_byte_too(row: str) -> None:
    case = next(c for c in netsim.cases() if c.row == row and c.rtt == 20)
    assert netsim.measure(case, 100_000, (97,)) > 0
