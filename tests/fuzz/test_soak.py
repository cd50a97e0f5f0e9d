"""A short run of the soak; ``python -m tests.fuzz.soak --seconds 60`` is the long one."""

from pathlib import Path

import pytest

from tests.fuzz import soak as soaking
from tests.fuzz.fuzz_ingress import replay
from tests.fuzz.soak import run, run_parts


@pytest.mark.attack(18, 54)
@pytest.mark.parametrize("seed", [1, 2])
def test_lies_on_the_wire_do_no_harm(seed: int) -> None:
    soak = run(seed, 12_000)
    for stack in (soak.a, soak.b):
        assert stack.drops.total > 500
        # Reasons are fixed words: a table of them cannot be made to grow from outside.
        assert len(stack.drops.counts) < 40


@pytest.mark.attack(54)
def test_every_operation_of_the_fuzz_target_runs() -> None:
    dropped: set[str] = set()
    for first in range(256):
        record = bytes((first, 40)) + bytes((first * 7 + i * 13) & 0xFF for i in range(40))
        dropped |= set(replay(record * 4).drops.counts)
    assert len(dropped) >= 8


def test_a_long_run_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(soaking, "PART", 1000)
    progress = tmp_path / "progress.json"
    progress.write_text('{"7": 1001, "8": 1002}')
    assert run_parts(7, 2000, 1, progress) == 2003
    assert "2 of 2 parts were through before" in capsys.readouterr().out
