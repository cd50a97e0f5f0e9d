"""The benchmark programs count and judge right; what they measure is for ``make bench``."""

import argparse
import json
import pathlib
import subprocess
import time
from typing import cast

import anyio
import pytest

from benchmarks import compare, core, figures, peer, seals
from benchmarks.ends import End, Tunnel
from benchmarks.figures import COMPILED, KERNEL, OURS, REFERENCE, TSNET, Figures, Pair, Row
from benchmarks.micro import Figure
from benchmarks.rest import Activity
from tests.interop.lab import Process
from tsnetpy.node.node import Node
from tsnetpy.wireguard import parse_quick

INTERPRETED = Pair(OURS, OURS)


class _Stream:
    """Gives a thousand bytes at a time, after other tasks had their turn; takes all, and says so at the end."""

    def __init__(self) -> None:
        self.ended = False

    async def __aenter__(self) -> "_Stream":
        return self

    async def __aexit__(self, *_: object) -> None:
        return

    async def receive(self, max_bytes: int) -> bytes:
        await anyio.lowlevel.checkpoint()
        if self.ended:
            assert max_bytes == 3
            return b"ok\n"
        assert max_bytes >= 1000
        _Node.moved += 1000
        return bytes(1000)

    async def send(self, data: bytes) -> None:
        assert not self.ended
        await anyio.lowlevel.checkpoint()
        _Node.moved += len(data)

    async def send_eof(self) -> None:
        self.ended = True


class _Node:
    moved = 0
    streams: list[_Stream]

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams = []

    async def connect_tcp(self, host: str, port: int) -> _Stream:
        assert (host, port) == ("there", self.port)
        self.streams.append(_Stream())
        return self.streams[-1]


@pytest.mark.anyio
@pytest.mark.parametrize(("mode", "port"), [("source", peer.SOURCE), ("bulk", peer.SINK)])
async def test_parallel_connections_are_all_counted(mode: str, port: int) -> None:
    _Node.moved = 0
    node = _Node(port)
    args = argparse.Namespace(mode=mode, to="there", secs=0.05, p=4)
    counted = await peer.bulk(cast("Node", node), args, time.perf_counter())
    assert counted == _Node.moved > 4000
    assert [stream.ended for stream in node.streams] == [mode == "bulk"] * 4


@pytest.mark.anyio
async def test_a_load_is_done_once_at_least_however_late_it_begins() -> None:
    done: list[int] = []

    async def once(worker: int) -> None:
        await anyio.lowlevel.checkpoint()
        done.append(worker)

    latencies, bad = await peer.load(4, -1.0, once)
    assert sorted(done) == [0, 1, 2, 3]
    assert (len(latencies), bad) == (4, 0)


# ---- judging


@pytest.mark.parametrize(
    ("less", "floor", "ratio", "said"),
    [
        (True, 4.0, 3.9, ("<= 4x", True)),
        (True, 4.0, 4.1, ("<= 4x", False)),
        (False, 0.15, 0.2, (">= 0.15x", True)),
        (False, 0.15, 0.1, (">= 0.15x", False)),
    ],
)
def test_floors_know_their_direction(less: bool, floor: float, ratio: float, said: tuple[str, bool]) -> None:
    row = Row("mode", "name", "unit", less=less, floors=(floor, 99.0))
    assert row.verdict(OURS, 1.0, ratio) == said


def test_each_core_has_its_own_floor() -> None:
    row = Row("rtt", "echo", "us", floors=(2.5, 1.5))
    assert row.verdict(OURS, 1.0, 2.0) == ("<= 2.5x", True)
    assert row.verdict(COMPILED, 1.0, 2.0) == ("<= 1.5x", False)


def test_a_limit_is_about_the_figure_and_needs_no_reference() -> None:
    row = Row("idle", "wake-ups", "", limit=60)
    assert row.verdict(OURS, 60.0, None) == ("<= 60", True)
    assert row.verdict(OURS, 61.0, 0.1) == ("<= 60", False)
    assert row.verdict(OURS, None, None) is None


def test_the_floors_are_those_that_were_agreed() -> None:
    rules = {(row.mode, row.name.partition(",")[0]): row.floors for row in figures.ROWS if row.floors}
    assert rules["rtt", "echo of 1 byte"] == (2.5, 1.5)
    assert rules["conns", "connect"] == (0.2, 0.5)
    assert rules["bulk", "bulk to the server"] == rules["source", "bulk to the client"] == (0.25, 0.4)
    assert [floors for (_, name), floors in rules.items() if name.startswith("memory")] == [(0.3, 0.3)] * 4
    assert [row.limit for row in figures.ROWS if row.mode == "idle"] == [60, None]


def rounds(bench: Figures, pair: Pair, *values: float | None) -> None:
    for at, value in enumerate(values):
        if value is not None:
            bench.note("rtt", "echo of 1 byte, p50", pair, value, at)


def test_ratios_are_of_rounds_and_not_of_medians() -> None:
    """The machine was slow in the second round, for both: 2, 2 and 3 times as long, and not 400 to 100."""
    found = Figures()
    rounds(found, REFERENCE, 100.0, 1000.0, 100.0)
    rounds(found, INTERPRETED, 200.0, 2000.0, 300.0)
    header, row = found.judged_table()
    assert header == ["", "unit", "tsnet", "tsnetpy, interpreted", "ratio", "floor"]
    assert row[2:] == ["100 (100-1,000)", "300 (200-2,000)", "2.00 (2.00-3.00)", "<= 2.5x: kept"]


def test_a_round_that_failed_is_left_out_of_the_ratio() -> None:
    found = Figures()
    rounds(found, REFERENCE, 100.0, None, 100.0)
    rounds(found, INTERPRETED, None, 900.0, 300.0)
    assert found.judged_table()[1][3:] == ["600 (300-900)", "3.00", "<= 2.5x: MISSED"]
    assert figures.missed(found.judged_table()) == [
        "echo of 1 byte, p50, tsnetpy, interpreted: 3.00, floor <= 2.5x",
    ]


def test_without_a_reference_nothing_is_judged() -> None:
    found = Figures()
    rounds(found, INTERPRETED, 300.0)
    assert found.judged_table()[1][2:] == ["", "300", "", ""]
    assert figures.missed(found.judged_table()) == []


def test_both_cores_stand_in_one_table() -> None:
    found = Figures()
    rounds(found, REFERENCE, 100.0)
    rounds(found, INTERPRETED, 200.0)
    rounds(found, Pair(COMPILED, COMPILED), 160.0)
    header, row = found.judged_table()
    assert header[6:] == ["compiled", "ratio", "floor"]
    assert row[3:] == ["200", "2.00", "<= 2.5x: kept", "160", "1.60", "<= 1.5x: MISSED"]
    assert "| 1.60 | <= 1.5x: MISSED |" in figures.markdown([header, row])


def test_plain_tunnels_are_compared_with_wireguard_go() -> None:
    found = Figures()
    rounds(found, REFERENCE, 50.0)
    rounds(found, Pair(KERNEL, KERNEL), 100.0)
    rounds(found, Pair(OURS, KERNEL), 150.0)
    rounds(found, Pair(OURS, TSNET), 75.0)
    assert found.pairs_table(plain=True) == [
        ["", "unit", "kernel to kernel", "tsnetpy to kernel"],
        ["echo of 1 byte, p50", "us", "100", "150 (1.50x)"],
    ]
    assert found.pairs_table(plain=False)[1] == ["echo of 1 byte, p50", "us", "50.0", "75.0 (1.50x)"]


def test_json_has_figures_ratios_and_verdicts() -> None:
    found = Figures()
    rounds(found, REFERENCE, 100.0, 200.0, 150.0)
    rounds(found, INTERPRETED, 300.0, 300.0, 300.0)
    (row,) = json.loads(json.dumps(found.as_json()))
    assert row["pairs"]["tsnet to tsnet"] == {"median": 150, "min": 100, "max": 200, "rounds": 3}
    assert row["ours"]["tsnetpy"] == {
        "ratio": {"median": 2.0, "min": 1.5, "max": 3.0, "rounds": 3},
        "floor": 2.5,
        "limit": None,
        "kept": True,
    }


def test_every_mode_has_rows() -> None:
    assert {row.mode for row in figures.ROWS} == set(compare.MODES) - {"seals"}
    assert set(compare.QUICK) < set(compare.MODES)


# ---- seal units


def test_seal_units_are_judged_by_their_medians() -> None:
    def result(compiled: bool, engine: float) -> seals.Seals:
        units = {"send": Figure(3.9, 3.5, 4.4), "receive": Figure(6.1, 6.0, 6.2), "engine": Figure(engine, 0.1, 0.2)}
        return seals.Seals(compiled, units, Figure(900.0, 880.0, 950.0))

    results = {OURS: result(False, 0.14), COMPILED: result(True, 0.14)}
    header, send, receive, engine, seal = seals.table(results)
    assert header == ["seal units a packet", "unit", "interpreted", "target", "compiled", "target"]
    assert send[2:4] == ["3.90 (3.50-4.40)", "<= 4: kept"]
    assert receive[2:4] == ["6.10 (6.00-6.20)", "<= 6: MISSED"]
    assert (engine[3], engine[5]) == ("<= 0.5: kept", "<= 0.12: MISSED")
    assert seal == ["one seal", "ns", "900", "", "900", ""]
    assert figures.missed([header, engine]) == [
        "the TCP engine alone, both ends, compiled: 0.14 (0.10-0.20), floor <= 0.12",
    ]
    assert seals.as_json(results)[COMPILED] == {
        "seal_ns": {"median": 900.0, "low": 880.0, "high": 950.0},
        "send": {"median": 3.9, "low": 3.5, "high": 4.4, "target": 4.0, "kept": True},
        "receive": {"median": 6.1, "low": 6.0, "high": 6.2, "target": 6.0, "kept": False},
        "engine": {"median": 0.14, "low": 0.1, "high": 0.2, "target": 0.12, "kept": False},
    }


# ---- ends


def test_both_ends_of_a_tunnel_know_each_other() -> None:
    tunnel = Tunnel(7)
    server, client = ("".join(tunnel.conf(side)) for side in (0, 1))
    ours = parse_quick(client.replace("[Peer]", f"Address = {tunnel.inner(1)}/24\n[Peer]"))
    theirs = parse_quick(server.replace("[Peer]", f"Address = {tunnel.inner(0)}/24\n[Peer]"))
    assert (ours.peers[0].public_key, theirs.peers[0].public_key) == (theirs.public_key, ours.public_key)
    assert str(ours.peers[0].endpoint) == f"192.0.2.20:{theirs.listen_port}"
    assert ours.peers[0].allowed_ips[0].ip == theirs.addresses[0]
    assert len(tunnel.device(0)) < 16


class _Popen:
    """A program that answers as soon as it is asked, and ends."""

    def __init__(self, log: pathlib.Path, answer: str) -> None:
        self.log, self.answer = log, answer
        self.asked = b""
        self.stdin = self

    def write(self, data: bytes) -> None:
        self.asked += data

    def flush(self) -> None:
        self.log.write_text(self.log.read_text() + self.answer)

    def poll(self) -> int | None:
        return 1 if self.asked else None


def started(path: pathlib.Path, answer: str, kind: str = OURS) -> tuple[End, _Popen]:
    log = path / "log"
    log.write_text('warning {\n{"ready": true, "ips": ["100.64.0.9", "fd7a::9"], "compiled": false}\n')
    popen = _Popen(log, answer)
    return End(kind, Process("client", cast("subprocess.Popen[bytes]", popen), log)), popen


def test_a_client_is_asked_and_answers(tmp_path: pathlib.Path) -> None:
    client, popen = started(tmp_path, 'noise\n{"n": 5}\n')
    assert client.address() == "100.64.0.9"
    assert client.ask("rtt", 2.0, 1) == {"n": 5}
    assert popen.asked == b"rtt 2.0 1\n"
    assert client.complaint() == "noise"


def test_a_client_that_ends_has_no_answer(tmp_path: pathlib.Path) -> None:
    client, _ = started(tmp_path, '{"n": 5')  # half a line
    client.address()
    with pytest.raises(AssertionError, match="no answer"):
        client.ask("rtt", 2.0, 1)


def test_a_peer_on_the_wrong_core_is_not_measured(tmp_path: pathlib.Path) -> None:
    client, _ = started(tmp_path, "", COMPILED)
    with pytest.raises(AssertionError, match="wrong core"):
        client.address()


def test_wake_ups_of_all_threads_are_counted(tmp_path: pathlib.Path) -> None:
    def thread(number: int, voluntary: int, cpu_ns: int) -> None:
        task = tmp_path / "42" / "task" / str(number)
        task.mkdir(parents=True, exist_ok=True)
        (task / "status").write_text(
            f"Name:\tx\nvoluntary_ctxt_switches:\t{voluntary}\nnonvoluntary_ctxt_switches:\t9\n"
        )
        (task / "schedstat").write_text(f"{cpu_ns} 5 6\n")

    thread(42, 100, 7_000_000)
    before = Activity.of(42, tmp_path)
    thread(42, 130, 9_000_000)
    thread(43, 5, 1_000_000)
    (tmp_path / "42" / "task" / "44").mkdir()  # ends while this looks
    assert Activity.of(42, tmp_path).a_minute(before, 120.0) == (17.5, 1.5)


# ---- the compiled core


def test_a_build_is_for_just_these_sources(tmp_path: pathlib.Path) -> None:
    for name in core.SOURCES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").write_text("x = 1\n")
    (tmp_path / "pyproject.toml").write_text("")
    first = core.digest(tmp_path)
    assert core.digest(tmp_path) == first
    (tmp_path / "tsnetpy" / "a.so").write_text("compiled")
    assert core.digest(tmp_path) == first
    (tmp_path / "tsnetpy" / "a.py").write_text("x = 2\n")
    assert core.digest(tmp_path) != first
