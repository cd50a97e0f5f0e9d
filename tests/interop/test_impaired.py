"""The same transfers over a bad network: 1 % loss, reordering and duplication, and every byte right.

The serving node sits in a namespace of its own whose only cable runs through ``relay.py``. Throughput is what the
losses leave: a sender that takes loss for congestion gets about ``1.2 MSS / (RTT sqrt(p))`` (Mathis et al. 1997), and
reordering counts as loss for both sides. ``TSNETPY_IMPAIRED_MB`` sets all sizes, ``TSNETPY_IMPAIRED_DELAY_MS`` the
delay one way.
"""

import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.interop.backend import PATTERN
from tests.interop.lab import CONTROL_URL, ROOT, Lab, Official, Process, Recorder, eventually

MEGABYTE = 1_000_000
BULK = int(os.environ.get("TSNETPY_IMPAIRED_MB", "100")) * MEGABYTE
SMALLER = int(os.environ.get("TSNETPY_IMPAIRED_MB", "30")) * MEGABYTE
DELAY_MS = os.environ.get("TSNETPY_IMPAIRED_DELAY_MS", "1")


class BadCable:
    """Namespace ``far`` at the end of a cable that runs through the relay."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.ns = lab.ns("far")

    def lay(self) -> None:
        """Make the namespace and the cable."""
        lab, hub = self.lab, self.lab.ns("hub")
        self._ip("netns", "add", self.ns)
        self._ip("-n", self.ns, "link", "set", "lo", "up")
        self._ip("-n", self.ns, "link", "add", "v0", "type", "veth", "peer", "name", "left", "netns", hub)
        self._ip("-n", hub, "link", "add", "right", "type", "veth", "peer", "name", "pfar")
        for name in ("left", "right", "pfar"):
            self._ip("-n", hub, "link", "set", name, "up")
        self._ip("-n", hub, "link", "set", "pfar", "master", "br0")
        self._ip("-n", self.ns, "link", "set", "v0", "up")
        self._ip("-n", self.ns, "addr", "add", "192.0.2.20/24", "dev", "v0")
        self._ip("-n", self.ns, "addr", "add", "2001:db8::20/64", "dev", "v0", "nodad")
        relay = [sys.executable, str(ROOT / "tests/interop/relay.py")]
        lab.run("far", [*relay, "wire", "v0"])
        lab.run("hub", [*relay, "wire", "pfar"])
        self.relay = lab.start(
            "relay", "hub", [*relay, "run", "left", "right", "--delay-ms", DELAY_MS, "--jitter-ms", DELAY_MS]
        )
        self.relay.wait_for("ready")

    def counts(self) -> dict[str, int]:
        """Return the relay's counters."""
        lines = len(self.relay.output().splitlines())
        self.relay.popen.send_signal(signal.SIGUSR1)
        eventually(lambda: len(self.relay.output().splitlines()) > lines)
        counts: dict[str, int] = json.loads(self.relay.output().splitlines()[-1])
        return counts

    def close(self) -> None:
        """Take out as much of it as there is."""
        subprocess.run(["ip", "netns", "del", self.ns], capture_output=True, check=False)
        subprocess.run(["ip", "-n", self.lab.ns("hub"), "link", "del", "pfar"], capture_output=True, check=False)

    @staticmethod
    def _ip(*args: str) -> None:
        subprocess.run(["ip", *args], check=True)


@dataclass
class Far:
    """Our serving node behind the bad cable, and an official client on a good one."""

    cable: BadCable
    serve: Process
    client: Official
    ip4: str


@pytest.fixture(scope="module")
def far(lab: Lab) -> Iterator[Far]:
    cable = BadCable(lab)
    try:
        cable.lay()
        yield from serve_over(cable)
    finally:
        cable.close()


def serve_over(cable: BadCable) -> Iterator[Far]:
    lab = cable.lab
    backend = lab.start("backend", "far", [sys.executable, str(ROOT / "tests/interop/backend.py"), "3000"])
    backend.wait_for("ready")
    serve = lab.start_plain(
        "serve",
        "far",
        ["-m", "tsnetpy.serve", "3000", "--hostname", "far", "--json"],
        {"TS_AUTHKEY": lab.key, "TS_CONTROL_URL": CONTROL_URL},
    )
    serve.wait_for('"event": "running"')
    line = next(line for line in serve.output().splitlines() if '"running"' in line)
    client = lab.official("near", "a")
    client.reach("far")
    client.cli("ping", "--until-direct", "-c", "20", "far")
    yield Far(cable, serve, client, json.loads(line)["addresses"][0])
    assert serve.stop() in (0, 130)
    client.process.stop()
    backend.stop()
    cable.relay.stop()


def digest_of(size: int) -> str:
    return hashlib.sha256((PATTERN * (size // len(PATTERN) + 1))[:size]).hexdigest()


def path_to_far(client: Official) -> str:
    peers = json.loads(client.cli("status", "--json"))["Peer"].values()
    return str(next(peer["CurAddr"] for peer in peers if peer["DNSName"].startswith("far.")))


def judge(far: Far, before: dict[str, int], size: int, seconds: float, record_property: Recorder) -> None:
    """The bytes went by UDP through the relay, and the relay was as bad as it should be."""
    after = far.cable.counts()
    passed = {name: after[name] - before[name] for name in after}
    assert passed["udp_bytes"] > size, "the transfer went another way"
    frames = passed["udp_frames"]
    assert 0.005 < passed["lost"] / frames < 0.015
    assert 0.005 < passed["duplicated"] / frames < 0.015
    assert 0.04 < passed["reordered"] / frames < 0.06
    record_property("Mbit/s", round(size * 8e-6 / seconds, 1))
    record_property("frames", f"{frames}, lost {passed['lost']}, reordered {passed['reordered']}")
    record_property("duplicated", passed["duplicated"])


def test_official_client_downloads_over_the_bad_cable(far: Far, record_property: Recorder) -> None:
    before, start = far.cable.counts(), time.monotonic()
    command = f"curl -sS --socks5-hostname 127.0.0.1:{far.client.socks_port} http://far/zeros?{BULK} | sha256sum"
    out = far.client.lab.run("a", ["sh", "-c", command], timeout=500)
    seconds = time.monotonic() - start
    assert out.split()[0] == digest_of(BULK)
    assert path_to_far(far.client).startswith(("192.0.2.20:", "[2001:db8::20]:"))
    judge(far, before, BULK, seconds, record_property)


def test_official_client_uploads_over_the_bad_cable(
    far: Far, tmp_path: pathlib.Path, record_property: Recorder
) -> None:
    data = os.urandom(MEGABYTE) * (SMALLER // MEGABYTE)
    (tmp_path / "up").write_bytes(data)
    before, start = far.cable.counts(), time.monotonic()
    answer = far.client.curl("-H", "Expect:", "--data-binary", f"@{tmp_path}/up", "http://far/sha256", timeout=500)
    seconds = time.monotonic() - start
    assert answer == hashlib.sha256(data).hexdigest()
    assert path_to_far(far.client).startswith(("192.0.2.20:", "[2001:db8::20]:"))
    judge(far, before, SMALLER, seconds, record_property)


@pytest.mark.parametrize("verb", ["get", "put"])
def test_two_nodes_of_ours_over_the_bad_cable(far: Far, lab: Lab, verb: str, record_property: Recorder) -> None:
    before = far.cable.counts()
    argv = ["-m", "tests.interop.transfer", verb, "far", str(SMALLER)]
    result = json.loads(lab.run_plain("b", argv, timeout=500, TS_AUTHKEY=lab.key, TS_CONTROL_URL=CONTROL_URL))
    assert result["sha256"] == digest_of(SMALLER)
    assert result.get("theirs", result["sha256"]) == result["sha256"]
    assert result.get("extra", 0) == 0
    assert result["direct"].startswith(("192.0.2.20:", "[2001:db8::20]:"))
    judge(far, before, SMALLER, result["seconds"], record_property)
