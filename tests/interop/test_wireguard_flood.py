"""A handshake flood of 20,000 datagrams a second beside a transfer: the transfer lives, and memory stays bounded.

Sender, receiver and flooder share the processors of this machine, so the printed ratio is what is left of all of it.
"""

import sys
from collections.abc import Iterator

import pytest

from tests.interop.lab import Recorder
from tests.interop.wireguard_lab import BULK, U4, U_IN, Tunnel, last_line, rate, running_tunnel, zeros
from tsnetpy.crypto import dh

PER_SECOND = 20_000
OUR_PORT = 41001


@pytest.fixture(scope="module")
def tunnel(transfers: object) -> Iterator[Tunnel]:
    with running_tunnel() as made:
        yield made


def datagrams_in(tunnel: Tunnel) -> int:
    """Return how many UDP datagrams the kernel has handed to sockets at our end."""
    lines = [
        line.split() for line in tunnel.run("u", ["cat", "/proc/net/snmp"]).splitlines() if line.startswith("Udp:")
    ]
    return int(lines[1][lines[0].index("InDatagrams")])


@pytest.mark.parametrize("kind", ["garbage", "initiations"])
def test_a_transfer_outlives_a_handshake_flood(tunnel: Tunnel, kind: str, record_property: Recorder) -> None:
    flood = [sys.executable, "-m", "tests.interop.flood", kind, U4, str(OUR_PORT)]
    flood += [dh.public_key(tunnel.keys[1]).hex(), str(PER_SECOND)]

    def both_ways() -> tuple[float, float]:
        """Move the bulk in and out; return the rates."""
        digest, seconds_in = tunnel.sum_of("u", "http://127.0.0.1:8080/bulk")
        assert digest == tunnel.sums["/bulk"]
        digest, seconds_out = tunnel.sum_of("k", f"http://{U_IN[0]}/zeros?{BULK}")
        assert digest == zeros(BULK)
        return rate(BULK, seconds_in), rate(BULK, seconds_out)

    with tunnel.ours(port=OUR_PORT) as process:
        both_ways()
        before, memory, seen = both_ways(), process.max_rss_kib(), datagrams_in(tunnel)
        flooder = tunnel.start("flood", "k", flood)
        flooder.wait_for("ready")
        during = both_ways()
        flooder.stop()
        tunnel.processes.remove(flooder)
        grown, seen = process.max_rss_kib() - memory, datagrams_in(tunnel) - seen
        after = both_ways()
        assert tunnel.run("k", ["ping", "-c", "3", "-i", "0.1", U_IN[0]]).count("bytes from") == 3
    said = last_line(flooder.output())
    sent, seconds = int(str(said["sent"])), float(str(said["seconds"]))
    assert said["refused"] == 0
    assert seen > sent / 2  # the flood did arrive
    assert grown < 32 << 10
    for at, name in enumerate(("in", "out")):
        quiet = (before[at] + after[at]) / 2
        record_property(f"{name}: Mbit/s quiet", round(quiet, 1))
        record_property("flooded", during[at])
        record_property("ratio", round(during[at] / quiet, 2))
    record_property("flood/s", round(sent / seconds))
    record_property("grown KiB", grown)
