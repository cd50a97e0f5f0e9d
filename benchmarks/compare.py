"""tsnetpy against Go's tsnet, in one run on one machine: absolute figures, and ours as a ratio of tsnet's.

    python -m benchmarks.compare [--quick] [--seconds S] [--only rtt,bulk] [--markdown FILE] [--compiled DIR]

Needs what ``make interop`` needs: root, network namespaces, and Go (or the binaries that it built); says why it skips.
What the rows mean is in benchmarks/README.md.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.interop.lab import BIN, CONTROL_URL, ROOT, Lab, Process, missing, running_lab

TSNET: Final = "tsnet"
OURS: Final = "tsnetpy"
PAIRS: Final = ((TSNET, TSNET), (OURS, OURS), (OURS, TSNET), (TSNET, OURS))
"""Client and server; the two alike come first, so that a server's memory mark is that of its own kind's load."""
MODES: Final = ("join", "rtt", "conns", "http", "proxy", "bulk", "source")
PARALLEL: Final = {"conns": 8, "http": 32, "proxy": 32}
BACKEND_PORT: Final = 9999
JOINS: Final = 5
PROMPT: Final = "tuning: {node_store_batch_timeout: 5ms, batch_change_delay: 5ms}\n"
"""Headscale's configuration without the half seconds for which it gathers writes."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        mode: the load that it comes from; name: what is measured; unit: in which unit.
        less: True if less is better.
        floor: what ours must reach of tsnet's own figure: at least (or, with *less*, at most) this ratio.
    """

    mode: str
    name: str
    unit: str
    less: bool = True
    floor: float | None = None

    def meets_floor(self, ratio: float) -> bool:
        """Tell whether *ratio* is good enough."""
        return self.floor is None or (ratio <= self.floor if self.less else ratio >= self.floor)


ROWS: Final = (
    Row("join", "join, Headscale as it comes", "s"),
    Row("join", "join, Headscale answering at once", "s", floor=1.0),
    Row("join", "process, from start to end", "s"),
    Row("join", "CPU of join and 3 s of rest", "s"),
    Row("join", "memory at rest", "MiB"),
    Row("rtt", "echo of 1 byte, p50", "us", floor=4.0),
    Row("rtt", "echo of 1 byte, p99", "us"),
    Row("rtt", "CPU of a round, both ends", "us"),
    Row("conns", "connect, echo, close (8 at a time)", "/s", less=False),
    Row("conns", "p50", "ms"),
    Row("conns", "CPU each, both ends", "us"),
    Row("http", "HTTP GET (32 connections)", "/s", less=False),
    Row("http", "p50", "ms"),
    Row("http", "CPU each, both ends", "us"),
    Row("proxy", "reverse proxy (32 connections)", "/s", less=False, floor=0.1),
    Row("proxy", "p50", "ms"),
    Row("proxy", "CPU each, client and proxy", "us"),
    Row("bulk", "bulk to the server", "Mbit/s", less=False, floor=0.15),
    Row("bulk", "CPU of a GB, both ends", "s"),
    Row("bulk", "memory of the sender", "MiB", floor=0.4),
    Row("bulk", "memory of the receiver", "MiB", floor=0.4),
    Row("source", "bulk to the client", "Mbit/s", less=False, floor=0.15),
    Row("source", "CPU of a GB, both ends", "s"),
    Row("source", "memory of the receiver", "MiB", floor=0.4),
    Row("source", "memory of the sender", "MiB", floor=0.4),
)


@dataclass(slots=True)
class Bench:
    """One run in one lab.

    Attributes:
        seconds: of each load.
        compiled: folder below the checkout whose ``tsnetpy`` our peers use, or ``""``.
        values: figures by mode and name, then by client and server.
        failures: what did not work.
    """

    lab: Lab
    seconds: float
    compiled: str = ""
    values: dict[tuple[str, str], dict[tuple[str, str], float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    _serial: int = 0

    def run(self, modes: Sequence[str]) -> None:
        """Measure *modes*."""
        if "join" in modes:
            self._joins("join, Headscale as it comes", 3)
        self.lab.headscale_down()
        config = self.lab.dir / "hs" / "config.yaml"
        config.write_text(config.read_text(encoding="utf-8") + PROMPT, encoding="utf-8")
        self.lab.headscale_up()
        if "join" in modes:
            self._joins("join, Headscale answering at once", JOINS)
            self._rest()
        # Memory marks only rise, so each kind of load that is judged by memory gets servers of its own.
        small = [mode for mode in ("rtt", "conns", "http") if mode in modes]
        for group in (small, *([mode] for mode in ("proxy", "bulk", "source") if mode in modes)):
            if group:
                self._group(group)

    def _group(self, modes: Sequence[str]) -> None:
        behind: list[str] = []
        if modes == ["proxy"]:
            backend = self.lab.start_plain("backend", "a", ["-m", "benchmarks.backend", str(BACKEND_PORT)])
            backend.wait_for("ready")
            behind = ["-backend", f"http://127.0.0.1:{BACKEND_PORT}"]
        servers: dict[str, tuple[Process, str]] = {}
        for kind in (TSNET, OURS):
            process = self.lab.start(f"{kind}-server", "a", self._argv(kind, "a", behind), self._env())
            servers[kind] = (process, _first_ip(process))
        for mode in modes:
            for pair in PAIRS:
                try:
                    self._measure(mode, pair, *servers[pair[1]])
                except AssertionError as error:
                    self.failures.append(f"{mode}, {pair[0]} to {pair[1]}: {error}")
        for process, _ in servers.values():
            process.stop()
        if behind:
            backend.stop()

    def _joins(self, name: str, count: int) -> None:
        """Join and leave in turns, *count* times each."""
        took: dict[tuple[str, str], list[float]] = {}
        whole: dict[tuple[str, str], list[float]] = {}
        for _ in range(count):
            for pair in PAIRS[:2]:
                client = self._client(pair[0], ["-mode", "idle", "-secs", "0"])
                took.setdefault(pair, []).append(client["up_s"])
                whole.setdefault(pair, []).append(client["wall_s"])
        for pair in PAIRS[:2]:
            self._note("join", name, pair, statistics.median(took[pair]))
            self._note("join", "process, from start to end", pair, statistics.median(whole[pair]))

    def _rest(self) -> None:
        for pair in PAIRS[:2]:
            client = self._client(pair[0], ["-mode", "idle", "-secs", "3"])
            self._note("join", "CPU of join and 3 s of rest", pair, client["cpu_s"])
            self._note("join", "memory at rest", pair, client["max_rss_kib"] / 1024)

    def _measure(self, mode: str, pair: tuple[str, str], server: Process, ip: str) -> None:
        parallel = str(PARALLEL.get(mode, 1))
        real = "http" if mode == "proxy" else mode
        before = server.cpu_seconds()
        client = self._client(pair[0], ["-to", ip, "-mode", real, "-secs", str(self.seconds), "-p", parallel])
        server_cpu = server.cpu_seconds() - before
        if client.get("bad"):
            self.failures.append(f"{mode}, {pair[0]} to {pair[1]}: {client['bad']:.0f} failed")
        names = [row.name for row in ROWS if row.mode == mode]
        if mode == "rtt":
            figures = [client["p50_us"], client["p99_us"], client["cpu_us"] + server_cpu / client["n"] * 1e6]
        elif mode in ("bulk", "source"):
            gigabytes = client["mbit_s"] * self.seconds / 8000
            cpu = client["cpu_s_per_GB"] + server_cpu / max(gigabytes, 1e-9)
            memory = [client["max_rss_kib"] / 1024, server.max_rss_kib() / 1024]
            figures = [client["mbit_s"], cpu, *memory]
        else:
            rate = client["conn_per_s" if mode == "conns" else "req_per_s"]
            each = client["cpu_us"] + server_cpu / max(1.0, rate * self.seconds) * 1e6
            figures = [rate, client["p50_ms"], each]
        for name, value in zip(names, figures):
            self._note(mode, name, pair, value)

    def _client(self, kind: str, flags: Sequence[str]) -> dict[str, float]:
        """Run one client and return what it printed, and how long it ran (``wall_s``)."""
        print(f"{kind}: {' '.join(flags)}", file=sys.stderr)
        limit = self.seconds + 90
        process = self.lab.start(f"{kind}-client", "b", self._argv(kind, "b", flags), self._env())
        usage = os.times()
        try:
            status = process.popen.wait(limit)
        except Exception:
            process.stop(timeout=1)
            raise AssertionError(f"did not end within {limit} s") from None
        wall = os.times().elapsed - usage.elapsed
        self.lab.processes.remove(process)
        lines = [line for line in process.output().splitlines() if line.startswith("{")]
        if status or not lines:
            raise AssertionError(f"ended with {status}: {process.output()[-500:]}")
        result: dict[str, float] = json.loads(lines[-1])
        return {**result, "wall_s": wall}

    def _env(self) -> dict[str, str]:
        """Let Python keep compiled modules, as an installation has them; the checkout itself stays as it is."""
        return {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(self.lab.plain_dir("pycache"))}

    def _argv(self, kind: str, ns: str, flags: Sequence[str]) -> list[str]:
        """Return the command of one peer, to be run in *ns*."""
        self._serial += 1
        joining = ["-control", CONTROL_URL, "-authkey", self.lab.key, "-hostname", f"{kind}-{self._serial}"]
        if kind == TSNET:
            # As root: without SO_MARK it binds to the interface of the default route, which the lab does not have.
            state = self.lab.dir / f"state-{self._serial}"
            state.mkdir()
            return [str(BIN / "tspeer"), *joining, "-dir", str(state), *flags]
        module = ["-m", "benchmarks.peer"]
        if self.compiled:
            code = f"import runpy, sys; sys.path.insert(0, {self.compiled!r}); "
            module = ["-c", code + "runpy.run_module('benchmarks.peer', run_name='__main__', alter_sys=True)"]
        # Lab.start enters the namespace once more, which does nothing.
        return self.lab.plain(ns, [*module, *joining, *flags])

    def _note(self, mode: str, name: str, pair: tuple[str, str], value: float) -> None:
        self.values.setdefault((mode, name), {})[pair] = value

    def table(self) -> Iterator[list[str]]:
        """Yield the cells of the table, header first."""
        yield ["", "unit", *(f"{client} to {server}" for client, server in PAIRS), "ratio", "floor of 0.1"]
        for row in ROWS:
            values = self.values.get((row.mode, row.name))
            if values is None:
                continue
            cells = [_number(values.get(pair)) for pair in PAIRS]
            ratio, verdict = "", ""
            tsnet, ours = values.get(PAIRS[0]), values.get(PAIRS[1])
            if tsnet and ours is not None:
                ratio = f"{ours / tsnet:.2f}"
                if row.floor is not None:
                    kept = "kept" if row.meets_floor(ours / tsnet) else "MISSED"
                    verdict = f"{'<=' if row.less else '>='} {row.floor:g}: {kept}"
            yield [row.name, row.unit, *cells, ratio, verdict]


def _first_ip(process: Process) -> str:
    line = next(line for line in process.wait_for('"ready"', 60).splitlines() if '"ready"' in line)
    ip: str = json.loads(line)["ips"][0]
    return ip


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def plain(table: Sequence[Sequence[str]]) -> str:
    """Return the table for a terminal."""
    widths = [max(len(row[at]) for row in table) for at in range(len(table[0]))]
    lines = []
    for row in table:
        first = row[0].ljust(widths[0])
        lines.append("  ".join([first, *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]).rstrip())
    return "\n".join(lines)


def markdown(table: Sequence[Sequence[str]], notes: Mapping[str, str]) -> str:
    """Return the table for a page, under what it was measured with."""
    lines = ["# tsnetpy against tsnet", ""]
    lines += [f"- {name}: {note}" for name, note in notes.items()]
    lines += ["", "| " + " | ".join(table[0]) + " |", "|---|---|" + "---:|" * (len(table[0]) - 2)]
    lines += ["| " + " | ".join(row) + " |" for row in table[1:]]
    return "\n".join(lines) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 s of each load instead of 5")
    parser.add_argument("--seconds", type=float, default=0.0, help="seconds of each load")
    parser.add_argument("--only", default=",".join(MODES), help=f"some of {','.join(MODES)}")
    parser.add_argument("--markdown", type=pathlib.Path, help="write the table to this file")
    parser.add_argument("--compiled", type=pathlib.Path, help="run our peers from this compiled copy of the tree")
    arguments = parser.parse_args()
    unknown = set(arguments.only.split(",")) - set(MODES)
    if unknown:
        parser.error(f"no such mode: {', '.join(sorted(unknown))}")
    if arguments.compiled is not None:
        folder = arguments.compiled.resolve()
        if not folder.is_relative_to(ROOT) or not any(folder.glob("**/*.so")):
            parser.error(f"{arguments.compiled} is no compiled copy inside this checkout (see tools/compile_core.py)")
        arguments.compiled = folder.relative_to(ROOT)
    return arguments


def main() -> int:
    """Measure and print; return 1 if a load failed."""
    arguments = _arguments()
    reason = missing()
    if reason:
        print(f"skipped: {reason}")
        return 0
    seconds = arguments.seconds or (2.0 if arguments.quick else 5.0)
    with running_lab() as lab:
        bench = Bench(lab, seconds, str(arguments.compiled or ""))
        bench.run(arguments.only.split(","))
    table = list(bench.table())
    print(plain(table))
    for failure in bench.failures:
        print(f"FAILED: {failure}")
    if arguments.markdown is not None:
        notes = {
            "Date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "Machine": f"{os.cpu_count()} processors, {platform.system()} {platform.release()}, {platform.machine()}",
            "Python": f"{platform.python_version()}, {'compiled core' if arguments.compiled else 'interpreted'}",
            "Load": f"{seconds:g} s each, client and server on the same machine",
            "Ratio": "tsnetpy to tsnetpy against tsnet to tsnet",
        }
        arguments.markdown.write_text(markdown(table, notes), encoding="utf-8")
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
