"""Our node dials: a Go tsnet peer over Headscale, and the other way round, through the benchmark peers."""

import json
from collections.abc import Iterator

import pytest

from tests.interop.lab import BIN, CONTROL_URL, Lab, Process, Recorder


@pytest.fixture(scope="module")
def tspeer(lab: Lab) -> Iterator[str]:
    argv = [str(BIN / "tspeer"), "-control", CONTROL_URL, "-authkey", lab.key, "-hostname", "gosrv"]
    state = lab.dir / "gosrv"
    state.mkdir()
    process = lab.start("tspeer", "a", [*argv, "-dir", str(state)])
    yield _first_ip(process)
    process.stop()


@pytest.fixture(scope="module")
def pypeer(lab: Lab) -> Iterator[str]:
    argv = ["-m", "benchmarks.peer", "-control", CONTROL_URL, "-authkey", lab.key, "-hostname", "pysrv"]
    process = lab.start_plain("pypeer", "b", argv)
    yield _first_ip(process)
    process.stop()


def _first_ip(process: Process) -> str:
    line = next(line for line in process.wait_for('"ready"').splitlines() if '"ready"' in line)
    ip: str = json.loads(line)["ips"][0]
    return ip


MODES = ["rtt", "bulk", "source", "conns", "http"]


@pytest.mark.parametrize("mode", MODES)
def test_ours_dials_tsnet(lab: Lab, tspeer: str, mode: str, record_property: Recorder) -> None:
    argv = ["-m", "benchmarks.peer", "-control", CONTROL_URL, "-authkey", lab.key, "-hostname", f"pycli-{mode}"]
    out = lab.run_plain("b", [*argv, "-to", tspeer, "-mode", mode, "-secs", "2", "-p", "4" if mode != "rtt" else "1"])
    _check(json.loads(out), mode, record_property)


@pytest.mark.parametrize("mode", MODES)
def test_tsnet_dials_ours(lab: Lab, pypeer: str, mode: str, record_property: Recorder) -> None:
    state = lab.dir / f"gocli-{mode}"
    state.mkdir()
    argv = [str(BIN / "tspeer"), "-control", CONTROL_URL, "-authkey", lab.key, "-hostname", f"gocli-{mode}"]
    argv += ["-dir", str(state), "-to", pypeer, "-mode", mode, "-secs", "2", "-p", "4" if mode != "rtt" else "1"]
    _check(json.loads(lab.run("c", argv)), mode, record_property)


def _check(result: dict[str, float], mode: str, record_property: Recorder) -> None:
    assert result.get("bad", 0) == 0
    name, unit = {
        "rtt": ("p50_us", "us"),
        "bulk": ("mbit_s", "Mbit/s"),
        "source": ("mbit_s", "Mbit/s"),
        "conns": ("conn_per_s", "conn/s"),
        "http": ("req_per_s", "req/s"),
    }[mode]
    assert result[name] > 0
    record_property(unit, round(result[name]))
