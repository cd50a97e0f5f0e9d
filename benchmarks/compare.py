"""tsnetpy, interpreted and compiled, against Go's tsnet and against wireguard-go with the kernel's TCP, in one run.

    python -m benchmarks.compare [--quick] [--seconds S] [--rounds N] [--only MODES] [--no-compiled] [--json FILE] ...

Needs what ``make interop`` needs: root, network namespaces, and Go (or the binaries that it built); says why it skips.
What the rows mean is in benchmarks/README.md.
"""

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from benchmarks import core, seals
from benchmarks.ends import Ends, Link, kernel_missing
from benchmarks.figures import ALIKE, COMPILED, KERNEL, OURS, PAIRS, ROWS, Figures, Pair, markdown, plain_text
from benchmarks.figures import missed as missed_in
from benchmarks.rest import Activity
from tests.interop.lab import PEERS, ROOT, Lab, Process, missing, running_lab

MODES: Final = ("join", "rtt", "conns", "http", "proxy", "bulk", "source", "idle", "seals")
QUICK: Final = ("rtt", "conns", "bulk", "source", "idle", "seals")
"""What floors and limits of the data path stand on."""
PARALLEL: Final = {"conns": 8, "http": 32, "proxy": 32}
ALIKE_ONLY: Final = ("http", "proxy")
"""Loads of HTTP, which the kernel's end has no use for."""
BACKEND_PORT: Final = 9999
PROMPT: Final = "tuning: {node_store_batch_timeout: 5ms, batch_change_delay: 5ms}\n"
"""Headscale's configuration without the half seconds for which it gathers writes."""
SETTLE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        seconds: of each load; rounds: of the pairs that floors are about; others: rounds of all other pairs.
        joins: of each kind; rest: seconds that idle nodes are watched; seal_rounds: of the seal units.
    """

    seconds: float = 2.0
    rounds: int = 3
    others: int = 3
    joins: int = 5
    rest: float = 60.0
    seal_rounds: int = 60


QUICK_PLAN: Final = Plan(seconds=1.0, others=1, joins=3, rest=20.0, seal_rounds=20)


@dataclass(slots=True)
class Bench:
    """One run in one lab.

    Attributes:
        compiled: folder with the compiled core, if there is one.
        figures: what was measured; units: what :mod:`benchmarks.micro` says of each core.
        failures: what did not work.
    """

    lab: Lab
    plan: Plan
    pairs: Sequence[Pair]
    compiled: pathlib.Path | None
    ends: Ends = field(init=False)
    figures: Figures = field(default_factory=Figures)
    units: dict[str, seals.Seals] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ends = Ends(self.lab, str(self.compiled.relative_to(ROOT)) if self.compiled else "")

    def run(self, modes: Sequence[str]) -> None:
        """Measure *modes*."""
        if "join" in modes:
            self._joins("join, Headscale as it comes", min(3, self.plan.joins))
        self.lab.headscale_down()
        config = self.lab.dir / "hs" / "config.yaml"
        config.write_text(config.read_text(encoding="utf-8") + PROMPT, encoding="utf-8")
        self.lab.headscale_up()
        if "join" in modes:
            self._joins("join, Headscale answering at once", self.plan.joins)
            self._after_joining()
        # Memory marks only rise, so each kind of load that is judged by memory gets ends of its own.
        small = [mode for mode in ("rtt", "conns", "http") if mode in modes]
        for group in (small, *([mode] for mode in ("proxy", "bulk", "source") if mode in modes)):
            if group:
                self._group(group)
        if "idle" in modes:
            self._idle("seals" in modes)
        elif "seals" in modes:
            self._seal_units()

    @contextlib.contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        """Note a failure of *what* and go on."""
        try:
            yield
        except (AssertionError, subprocess.SubprocessError, OSError) as error:
            self.failures.append(f"{what}: {error}")
            print(f"FAILED: {what}", file=sys.stderr)

    # ---- loads

    def _group(self, modes: Sequence[str]) -> None:
        """Measure some loads between the same ends: round by round, and in each round pair by pair."""
        behind: list[str] = []
        started = len(self.lab.processes)
        if modes == ["proxy"]:
            backend = self.lab.start_plain("backend", "a", ["-m", "benchmarks.backend", str(BACKEND_PORT)])
            backend.wait_for("ready")
            behind = ["-backend", f"http://127.0.0.1:{BACKEND_PORT}"]
        pairs = [pair for pair in self.pairs if pair in ALIKE or not set(modes) <= set(ALIKE_ONLY)]
        links: dict[Pair, Link] = {}
        name = " and ".join(modes)
        print(f"{name}: starting {len(pairs)} pairs", file=sys.stderr)
        for pair in pairs:
            with self._noting(f"{name}, {pair}, server"):
                links[pair] = self.ends.open(pair, behind)
        for pair, link in links.items():
            with self._noting(f"{name}, {pair}, client"):
                self.ends.dial(pair, link)
        ready: dict[Pair, Link] = {}
        for pair, link in links.items():
            if link.client is not None:
                with self._noting(f"{name}, {pair}, path"):
                    link.client.address()
                    ready[pair] = link
        for round_ in range(self.plan.rounds):
            for mode in modes:
                for pair, link in ready.items():
                    if pair in ALIKE or (round_ < self.plan.others and mode not in ALIKE_ONLY):
                        with self._noting(f"{mode}, {pair}, round {round_ + 1}"):
                            self._measure(mode, pair, link, round_)
        if modes in (["bulk"], ["source"]):
            for pair, link in ready.items():
                with self._noting(f"{name}, {pair}, memory"):
                    self._memory(modes[0], pair, link)
        for process in reversed(self.lab.processes[started:]):  # clients first
            self.lab.end(process)

    def _measure(self, mode: str, pair: Pair, link: Link, round_: int) -> None:
        client, server = link.client, link.server
        assert client is not None
        real = "http" if mode == "proxy" else mode
        before = client.cpu_seconds() + server.cpu_seconds()
        found = client.ask(real, self.plan.seconds, PARALLEL.get(mode, 1))
        cpu = client.cpu_seconds() + server.cpu_seconds() - before
        if found.get("bad"):
            self.failures.append(f"{mode}, {pair}, round {round_ + 1}: {found['bad']:.0f} failed: {client.complaint()}")
        if mode == "rtt":
            figures = [found["p50_us"], found["p99_us"], cpu / found["n"] * 1e6]
        elif mode in ("bulk", "source"):
            figures = [found["mbit_s"], cpu / (found["bytes"] / 1e9)]
        else:
            rate = found["conn_per_s" if mode == "conns" else "req_per_s"]
            figures = [rate, found["p50_ms"], cpu / found["n"] * 1e6]
        self.figures.note_all(mode, pair, figures, round_)
        print(f"{mode}, {pair}: {figures[0]:,.0f}", file=sys.stderr)

    def _memory(self, mode: str, pair: Pair, link: Link) -> None:
        assert link.client is not None
        rows = [row.name for row in ROWS if row.mode == mode and row.unit == "MiB"]
        for name, end in zip(rows, (link.client, link.server)):
            self.figures.note(mode, name, pair, end.max_rss_mib())

    # ---- joining and resting

    @property
    def _alike(self) -> list[Pair]:
        return [pair for pair in self.pairs if pair in ALIKE]

    def _joins(self, name: str, count: int) -> None:
        """Join and leave in turns, *count* times each."""
        for round_ in range(count):
            for pair in self._alike:
                with self._noting(f"{name}, {pair.client}"):
                    found = self._join_and_rest(pair.client, 0)
                    self.figures.note("join", name, pair, found["up_s"], round_)
                    self.figures.note("join", "process, from start to end", pair, found["wall_s"], round_)

    def _after_joining(self) -> None:
        for pair in self._alike:
            with self._noting(f"join, {pair.client}"):
                found = self._join_and_rest(pair.client, 3)
                self.figures.note("join", "CPU of join and 3 s of rest", pair, found["cpu_s"])
                self.figures.note("join", "memory at rest", pair, found["max_rss_kib"] / 1024)

    def _join_and_rest(self, kind: str, seconds: float) -> dict[str, float]:
        """Run one peer; return what it printed, and how long it ran (``wall_s``)."""
        start = time.monotonic()
        process = self.ends.tailnet(f"{kind}-join", kind, "b", ["-mode", "idle", "-secs", str(seconds)])
        try:
            status = process.popen.wait(seconds + 60)
        finally:
            self.lab.end(process)
        wall = time.monotonic() - start
        lines = [line for line in process.output().splitlines() if line.startswith("{")]
        if status or not lines:
            raise AssertionError(f"ended with {status}: {process.output()[-500:]}")
        result: dict[str, float] = json.loads(lines[-1])
        return {**result, "wall_s": wall}

    def _idle(self, with_seals: bool) -> None:
        """Watch joined nodes that have nothing to do; the seal units, which need no network, run meanwhile."""
        print(f"idle: {self.plan.rest:g} s", file=sys.stderr)
        nodes: dict[Pair, Process] = {}
        for pair in self._alike:
            with self._noting(f"idle, {pair.client}"):
                nodes[pair] = self.ends.tailnet(f"{pair.client}-idle", pair.client, "c", [])
                nodes[pair].wait_for('"ready"', 60)
        time.sleep(SETTLE_SECONDS)
        before = {pair: (time.monotonic(), Activity.of(process.popen.pid)) for pair, process in nodes.items()}
        if with_seals:
            self._seal_units()
        began = max((at for at, _ in before.values()), default=0.0)
        time.sleep(max(0.0, began + self.plan.rest - time.monotonic()))
        for pair, process in nodes.items():
            with self._noting(f"idle, {pair.client}"):
                since, then = before[pair]
                activity = Activity.of(process.popen.pid).a_minute(then, time.monotonic() - since)
                self.figures.note_all("idle", pair, activity)
            self.lab.end(process)

    def _seal_units(self) -> None:
        for kind, folder in {OURS: None, **({COMPILED: self.compiled} if self.compiled else {})}.items():
            print(f"seal units, {kind}", file=sys.stderr)
            with self._noting(f"seal units, {kind}"):
                self.units[kind] = seals.measure(folder, self.plan.seal_rounds)

    # ---- what it says

    def tables(self) -> dict[str, list[list[str]]]:
        """Return the tables by their titles, without empty ones."""
        tables = {
            "ours to ours against tsnet to itself": self.figures.judged_table(),
            "in a tailnet (ratio to tsnet to itself)": self.figures.pairs_table(plain=False),
            "plain WireGuard (ratio to wireguard-go and the kernel to itself)": self.figures.pairs_table(plain=True),
            "inside": seals.table(self.units) if self.units else [],
        }
        return {title: table for title, table in tables.items() if len(table) > 1}

    def missed(self) -> list[str]:
        """Return every rule that was not kept."""
        return [line for table in self.tables().values() for line in missed_in(table)]


def versions() -> list[str]:
    """Return what is compared, as far as it can be told."""
    found = [f"Python {platform.python_version()}"]
    if module := re.search(r"\btailscale\.com (v\S+)", (PEERS / "go.mod").read_text(encoding="utf-8")):
        found.append(f"tsnet {module[1]}")
    if kernel_missing() is None:
        asked = subprocess.run(["wireguard-go", "--version"], capture_output=True, text=True, check=False)
        found.append(asked.stdout.partition("\n")[0].strip())
    return found


def notes(plan: Plan, load_before: float, took: float) -> dict[str, str]:
    """Return what a run was made with."""
    return {
        "Date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "Machine": f"{os.cpu_count()} processors, {platform.system()} {platform.release()}, {platform.machine()}",
        "Versions": ", ".join(versions()),
        "Load average before, and after": f"{load_before:.1f}, {os.getloadavg()[0]:.1f}",
        "Load": f"{plan.seconds:g} s each, {plan.rounds} rounds, client and server on the same machine",
        "Took": f"{took:.0f} s",
    }


def page(bench: Bench, about: dict[str, str]) -> str:
    """Return everything in Markdown."""
    lines = ["# tsnetpy against tsnet and wireguard-go", "", *(f"- {name}: {note}" for name, note in about.items())]
    lines += [f"- Missed: {line}" for line in bench.missed()]
    for title, table in bench.tables().items():
        lines += ["", f"## {title[0].upper()}{title[1:]}", "", markdown(table)]
    return "\n".join(lines) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"1 s of each load; only {','.join(QUICK)} if not told")
    parser.add_argument("--seconds", type=float, default=0.0, help="seconds of each load")
    parser.add_argument("--rounds", type=int, default=0, help="how often each load runs where ours meets tsnet's own")
    parser.add_argument("--only", help=f"some of {','.join(MODES)}")
    parser.add_argument("--no-compiled", action="store_true", help="without the columns of the compiled core")
    parser.add_argument("--compiled", type=pathlib.Path, help="take this compiled copy of the tree and make none")
    parser.add_argument("--markdown", type=pathlib.Path, help="write the tables to this file")
    parser.add_argument("--json", type=pathlib.Path, help="write every figure to this file")
    arguments = parser.parse_args()
    default = QUICK if arguments.quick else MODES
    arguments.modes = arguments.only.split(",") if arguments.only else list(default)
    unknown = set(arguments.modes) - set(MODES)
    if unknown:
        parser.error(f"no such mode: {', '.join(sorted(unknown))}")
    if arguments.compiled is not None:
        arguments.compiled = arguments.compiled.resolve()
        if not arguments.compiled.is_relative_to(ROOT) or not core.is_build(arguments.compiled):
            parser.error(f"{arguments.compiled} is no compiled copy inside this checkout (see tools/compile_core.py)")
    return arguments


def main() -> int:
    """Measure and print; return 1 if a load failed."""
    arguments = _arguments()
    reason = missing()
    if reason:
        print(f"skipped: {reason}")
        return 0
    start, load_before = time.monotonic(), os.getloadavg()[0]
    plan = QUICK_PLAN if arguments.quick else Plan()
    if arguments.seconds:
        plan = dataclasses.replace(plan, seconds=arguments.seconds)
    if arguments.rounds:
        plan = dataclasses.replace(plan, rounds=arguments.rounds, others=min(plan.others, arguments.rounds))
    failures = []
    compiled: pathlib.Path | None = arguments.compiled
    if compiled is None and not arguments.no_compiled:
        try:
            compiled = core.ensure()
        except core.BuildError as error:
            failures.append(f"compiled core: {error}")
    pairs = [pair for pair in PAIRS if compiled or COMPILED not in pair]
    if no_kernel := kernel_missing():
        print(f"without wireguard-go and the kernel: {no_kernel}")
        pairs = [pair for pair in pairs if KERNEL not in pair]
    with running_lab() as lab:
        bench = Bench(lab, plan, pairs, compiled, failures=failures)
        bench.run(arguments.modes)
    about = notes(plan, load_before, time.monotonic() - start)
    for name, note in about.items():
        print(f"{name}: {note}")
    for title, table in bench.tables().items():
        print(f"\n{title}\n{plain_text(table)}")
    for line in bench.missed():
        print(f"MISSED: {line}")
    for failure in failures:
        print(f"FAILED: {failure}")
    if arguments.markdown is not None:
        arguments.markdown.write_text(page(bench, about), encoding="utf-8")
    if arguments.json is not None:
        found = {
            "about": about,
            "rows": bench.figures.as_json(),
            "seals": seals.as_json(bench.units),
            "missed": bench.missed(),
            "failures": failures,
        }
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
