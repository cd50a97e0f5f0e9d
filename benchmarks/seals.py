"""The seal units of :mod:`benchmarks.micro` for both cores, each in a process of its own."""

import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from benchmarks.core import ROOT, environment
from benchmarks.figures import COMPILED, OURS
from benchmarks.micro import COMPILED_TARGETS, TARGETS, Figure

NAMES: Final = {
    "send": "send, seal and all",
    "receive": "receive, open and all",
    "engine": "the TCP engine alone, both ends",
}


@dataclass(frozen=True, slots=True)
class Seals:
    """Figures of one core by what is counted, and the nanoseconds of one seal: medians with quartiles."""

    compiled: bool
    units: Mapping[str, Figure]
    seal_ns: Figure

    @property
    def targets(self) -> Mapping[str, float]:
        """What each may be at most."""
        return COMPILED_TARGETS if self.compiled else TARGETS


def measure(folder: pathlib.Path | None, rounds: int) -> Seals:
    """Run the benchmark on the core in *folder*, or on the checkout's own.

    Raises:
        AssertionError: it failed, or ran on another core than it should.
    """
    argv = [sys.executable, "-m", "benchmarks.micro", "--json", "--rounds", str(rounds)]
    done = subprocess.run(
        argv,
        cwd=folder or ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        raise AssertionError(f"benchmarks.micro ended with {done.returncode}: {done.stderr[-500:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    if found["compiled"] is not (folder is not None):
        raise AssertionError(f"benchmarks.micro ran on the {'compiled' if found['compiled'] else 'interpreted'} core")
    return Seals(folder is not None, {name: Figure(**found[name]) for name in NAMES}, Figure(**found["seal_ns"]))


def table(results: Mapping[str, Seals]) -> list[list[str]]:
    """Return figures and targets of the interpreted (``OURS``) and the compiled core, header first."""
    kinds = [kind for kind in (OURS, COMPILED) if kind in results]
    header = ["seal units a packet", "unit"]
    for kind in kinds:
        header += [kind if kind == COMPILED else "interpreted", "target"]
    rows = [header]
    for name, label in NAMES.items():
        cells = [label, "seals"]
        for kind in kinds:
            figure, target = results[kind].units[name], results[kind].targets[name]
            cells.append(f"{figure.median:.2f} ({figure.low:.2f}-{figure.high:.2f})")
            cells.append(f"<= {target:g}: {'kept' if figure.median <= target else 'MISSED'}")
        rows.append(cells)
    rows.append(["one seal", "ns", *(cell for kind in kinds for cell in (f"{results[kind].seal_ns.median:,.0f}", ""))])
    return rows


def as_json(results: Mapping[str, Seals]) -> dict[str, object]:
    """Return figures and targets."""
    return {
        kind: {
            "seal_ns": asdict(seals.seal_ns),
            **{
                name: {**asdict(figure), "target": seals.targets[name], "kept": figure.median <= seals.targets[name]}
                for name, figure in seals.units.items()
            },
        }
        for kind, seals in results.items()
    }
