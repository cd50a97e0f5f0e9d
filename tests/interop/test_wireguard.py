"""Plain WireGuard against Debian's wireguard-go: names, restarts, moves of either end. See ``wireguard_lab.py``.

What crosses which link, and how much of it, is in ``test_wireguard_matrix.py``.
"""

import time
from collections.abc import Iterator

import pytest

from tests.interop.lab import Process, Recorder
from tests.interop.wireguard_lab import (
    BULK,
    K4,
    K6,
    K_IN,
    MOVED4,
    PORT,
    U4,
    U_IN,
    Tunnel,
    last_line,
    rate,
    running_tunnel,
)

FAMILIES = pytest.mark.parametrize("family", [0, 1], ids=["v4", "v6"])


@pytest.fixture(scope="module")
def tunnel(transfers: object) -> Iterator[Tunnel]:
    with running_tunnel() as made:
        yield made


def test_a_name_is_looked_up_through_the_tunnel(tunnel: Tunnel) -> None:
    with tunnel.ours():
        digest, _ = tunnel.sum_of("u", "http://127.0.0.1:8081/small")
    assert digest == tunnel.sums["/small"]


def test_our_restart_is_noticed_at_once(tunnel: Tunnel, record_property: Recorder) -> None:
    """The kernel's end still seals with the old session; one unknown message makes us begin a new one."""
    slowest = 0.0
    for _ in range(3):
        with tunnel.ours():
            start = time.monotonic()
            assert "hello" in tunnel.run("k", ["curl", "-sS", "--max-time", "20", f"http://{U_IN[0]}/hello"])
            slowest = max(slowest, time.monotonic() - start)
    record_property("s to answer", round(slowest, 2))


def test_idle_costs_nothing(tunnel: Tunnel, record_property: Recorder) -> None:
    with tunnel.ours() as process:
        tunnel.sum_of("u", "http://127.0.0.1:8080/small")
        time.sleep(1)
        before, start = process.cpu_seconds(), time.monotonic()
        time.sleep(5)
        share = (process.cpu_seconds() - before) / (time.monotonic() - start)
    assert share < 0.01
    record_property("cpu share", round(share, 4))


@FAMILIES
def test_ping_from_code(tunnel: Tunnel, family: int, record_property: Recorder) -> None:
    endpoint = (f"{K4}:{PORT}", f"[{K6}]:{PORT}")[family]
    result = tunnel.program("ping", tunnel.file(endpoint), *K_IN)
    assert result["addresses"] == list(U_IN)
    record_property("ms", result["ms"])


def test_our_port_changes_in_mid_fetch(tunnel: Tunnel, record_property: Recorder) -> None:
    result = tunnel.program("fetch", tunnel.file(), K_IN[0], "/bulk", str(BULK), "0.01", "20", "40", "60", "80")
    assert result["sha256"] == tunnel.sums["/bulk"]
    ports = result["ports"]
    assert isinstance(ports, list)
    assert len(set(ports)) == 5
    assert f":{ports[-1]}" in tunnel.run("k", ["wg", "show", tunnel.device, "endpoints"])
    record_property("longest gap s", round(float(str(result["longest_gap"])), 2))


def test_our_port_changes_in_mid_send(tunnel: Tunnel, record_property: Recorder) -> None:
    result = tunnel.program("send", tunnel.file(), K_IN[1], str(BULK), "20", "40", "60", "80")
    assert result["sha256"] == result["theirs"]
    record_property("Mbit/s", rate(BULK, float(str(result["seconds"]))))


def start_fetch(tunnel: Tunnel) -> Process:
    argv = ["-m", "tests.interop.tunnel", "fetch", tunnel.file(), K_IN[0], "/bulk", str(BULK), "0.04"]
    process = tunnel.start_plain("fetch", "u", argv)
    process.wait_for("under way", 60)
    return process


def finish(process: Process) -> dict[str, object]:
    assert process.popen.wait(300) == 0, process.output()
    return last_line(process.output())


def test_the_peer_moves_in_mid_fetch(tunnel: Tunnel, record_property: Recorder) -> None:
    """Another address and another port; the peer says nothing about it, its next data does."""
    process = start_fetch(tunnel)
    tunnel.address("k", f"{MOVED4}/24", "v0")
    tunnel.address("k", f"{K4}/24", "v0", "del")
    tunnel.run("k", ["wg", "set", tunnel.device, "listen-port", str(PORT + 1)])
    try:
        result = finish(process)
    finally:
        tunnel.address("k", f"{K4}/24", "v0")
        tunnel.address("k", f"{MOVED4}/24", "v0", "del")
        tunnel.run("k", ["wg", "set", tunnel.device, "listen-port", str(PORT)])
    assert result["sha256"] == tunnel.sums["/bulk"]
    assert (result["first"], result["last"]) == (f"{K4}:{PORT}", f"{MOVED4}:{PORT + 1}")
    record_property("longest gap s", round(float(str(result["longest_gap"])), 2))


def test_the_peer_restarts_in_mid_fetch(tunnel: Tunnel, record_property: Recorder) -> None:
    """It comes back without our address and without keys; we begin anew when it has not answered for 15 s."""
    process = start_fetch(tunnel)
    tunnel.kernel_down()
    tunnel.kernel_up()
    result = finish(process)
    assert result["sha256"] == tunnel.sums["/bulk"]
    record_property("longest gap s", round(float(str(result["longest_gap"])), 1))


def test_our_wall_clock_jumps_by_hours(tunnel: Tunnel, record_property: Recorder) -> None:
    """In one process no handshake suffers. After a restart with an older clock only the peer can begin one."""
    port = 41002
    result = tunnel.program("clocks", tunnel.file(interface=f"ListenPort = {port}"), K_IN[0], "-5", "5")
    assert len(str(result["ages"]).split(",")) == 2
    try:
        # rebind() took the last process to another port; the peer must know the one that the next process has.
        tunnel.run("k", ["wg", "set", tunnel.device, "peer", tunnel.our_key, "endpoint", f"{U4}:{port}"])
        with tunnel.ours(port=port):
            start = time.monotonic()
            assert "hello" in tunnel.run(
                "k", ["curl", "-sS", "--max-time", "60", f"http://{U_IN[0]}/hello"], timeout=90
            )
            waited = time.monotonic() - start
    finally:
        tunnel.kernel_down()  # it forgets that it has heard from the future
        tunnel.kernel_up()
    assert waited > 5  # ours was refused, as whitepaper section 5.1 has it
    record_property("s until the peer began", round(waited, 1))
