"""Plain WireGuard over every link: good and bad cable, IPv4 and IPv6 outside and inside, each way, TCP and UDP.

``TSNETPY_INTEROP_FULL=1`` moves 1 GiB each time. See ``wireguard_lab.py``.
"""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.interop.lab import Process, Recorder
from tests.interop.wireguard_lab import (
    DELAY_MS,
    FULL,
    K_IN,
    LINKS,
    SMALL,
    U_IN,
    Link,
    Tunnel,
    host,
    rate,
    running_tunnel,
    zeros,
)

FAMILIES = pytest.mark.parametrize("family", [0, 1], ids=["v4", "v6"])
PATIENTLY = pytest.mark.timeout(4 * 3600 if FULL else 600)
FORWARDS = ("127.0.0.1:8080", "[::1]:8086")


@pytest.fixture(scope="module")
def tunnel(transfers: object) -> Iterator[Tunnel]:
    with running_tunnel() as made:
        yield made


@dataclass(slots=True)
class Served:
    """Our process, running over one link."""

    tunnel: Tunnel
    link: Link
    process: Process

    def judge(self, size: int, seconds: float, cpu_before: float, record_property: Recorder) -> None:
        """Write down what a transfer cost; our memory must not depend on its size."""
        record_property("Mbit/s", rate(size, seconds))
        if FULL:
            record_property("s", round(seconds, 1))
        record_property("cpu s", round(self.process.cpu_seconds() - cpu_before, 2))
        peak = self.process.max_rss_kib() >> 10
        record_property("peak MiB", peak)
        assert peak < 72


@pytest.fixture(scope="module", params=LINKS, ids=[link.name for link in LINKS])
def served(tunnel: Tunnel, request: pytest.FixtureRequest) -> Iterator[Served]:
    link: Link = request.param
    before = {}
    if link.bad:
        tunnel.bad_cable()
        before = tunnel.relay_counts()
    with tunnel.ours(endpoint=link.endpoint) as process:
        yield Served(tunnel, link, process)
    if link.bad:
        counts = {name: n - before[name] for name, n in tunnel.relay_counts().items()}
        print(link.name, counts)
        assert 0.005 < counts["lost"] / counts["udp_frames"] < 0.015
        assert 0.035 < counts["reordered"] / counts["udp_frames"] < 0.065
        assert counts["overflow"] == 0


@FAMILIES
@PATIENTLY
def test_fetches_from_nginx(served: Served, family: int, record_property: Recorder) -> None:
    """The kernel sends."""
    size, before = served.link.bulk, served.process.cpu_seconds()
    url = f"http://{FORWARDS[family]}{served.link.body}"
    digest, seconds = served.tunnel.sum_of("u", url, served.link.patience(size))
    assert digest == served.tunnel.sums[served.link.body]
    served.judge(size, seconds, before, record_property)


@FAMILIES
@PATIENTLY
def test_serves_curl(served: Served, family: int, record_property: Recorder) -> None:
    """We send."""
    size, before = served.link.bulk, served.process.cpu_seconds()
    url = f"http://{host(U_IN[family])}/zeros?{size}"
    digest, seconds = served.tunnel.sum_of("k", url, served.link.patience(size))
    assert digest == zeros(size)
    served.judge(size, seconds, before, record_property)


@FAMILIES
@PATIENTLY
@pytest.mark.parametrize("sender", ["k", "u"], ids=["in", "out"])
def test_uploads(served: Served, sender: str, family: int, record_property: Recorder) -> None:
    """``in``: curl at the kernel's end sends to our backend; ``out``: ours sends to the backend behind nginx."""
    target = host(U_IN[family]) if sender == "k" else FORWARDS[family]
    name = served.link.body if not FULL or served.link.bad else "/bulk"
    size, before, start = served.link.bulk, served.process.cpu_seconds(), time.monotonic()
    upload = ["curl", "-sSg", "-X", "POST", "-H", "Expect:", "-T", f"{served.tunnel.dir}/www{name}"]
    out = served.tunnel.run(sender, [*upload, f"http://{target}/sha256"], timeout=served.link.patience(size))
    assert out == served.tunnel.sums[name]
    served.judge(size, time.monotonic() - start, before, record_property)


@FAMILIES
def test_answers_ping(served: Served, family: int, record_property: Recorder) -> None:
    flag = ("-4", "-6")[family]
    out = served.tunnel.run(
        "k", ["ping", flag, "-c", "40", "-i", "0.05", "-w", "20", "-s", "1000", U_IN[family]], check=False
    )
    lost = re.search(r"([\d.]+)% packet loss", out)
    times = re.search(r"= ([\d.]+)/([\d.]+)/", out)
    assert lost is not None
    assert times is not None
    assert float(lost[1]) <= (20 if served.link.bad else 0)
    if served.link.bad:
        assert float(times[1]) >= 2 * DELAY_MS
    record_property("ms", float(times[2]))
    record_property("lost %", float(lost[1]))


@FAMILIES
def test_200_connections_at_once(served: Served, family: int, record_property: Recorder) -> None:
    size = 20_000 if served.link.bad else SMALL
    inward = (U_IN[family], "80")
    outward = ("127.0.0.1", "8080") if not family else ("::1", "8086")
    for name, ns, where in (("out", "u", outward), ("in", "k", inward)):
        path = f"/zeros?{size}" if ns == "k" else "/small"
        result = served.tunnel.program("crowd", *where, path, "200", ns=ns, timeout=300)
        assert result["count"] == 200
        assert result["digests"] == [zeros(size) if ns == "k" else served.tunnel.sums["/small"]]
        record_property(f"{name}: open s", round(float(str(result["opened"])), 2))
        record_property("all s", round(float(str(result["seconds"])), 2))


@FAMILIES
def test_udp_both_ways(served: Served, family: int, record_property: Recorder) -> None:
    lost = 0
    for ns, where in (("u", ("127.0.0.1", "::1")[family]), ("k", U_IN[family])):
        # 1372 and 1392 fill a packet of the tunnel; 8000 goes through it in fragments.
        port = "5007" if ns == "u" else "7"
        result = served.tunnel.program("ask", where, port, "1", "512", "1372", "1392", "8000", ns=ns)
        lost += int(str(result["lost"]))
    assert served.link.bad or not lost
    record_property("lost", lost)


def test_the_tunnel_is_the_one_meant(served: Served) -> None:
    """wireguard-go has heard us on this link, and we run without any capability."""
    here = served.link.endpoint.rpartition(":")[0].rstrip("]1")  # the network both ends are in
    assert here in served.tunnel.run("k", ["wg", "show", served.tunnel.device, "endpoints"])
    assert K_IN[0] in served.tunnel.run("k", ["ip", "-o", "addr", "show", "dev", served.tunnel.device])
    status = served.tunnel.run("u", ["cat", f"/proc/{served.process.popen.pid}/status"])
    assert re.search(r"^Uid:\s+65534\s+65534", status, re.MULTILINE)
    assert len(re.findall(r"^Cap(?:Inh|Prm|Eff|Bnd|Amb):\s+0+$", status, re.MULTILINE)) == 5
