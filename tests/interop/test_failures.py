"""Failures that need a network of their own: dead addresses and name servers, outages, floods; Headscale's refusals."""

import contextlib
import hashlib
import json
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.interop.backend import PATTERN
from tests.interop.lab import CONTROL_URL, HUB4, PLAIN_UID, ROOT, Lab, Official, Process, Recorder, eventually

PROMISE_S = 2.0
BULK = 20 * 1000 * 1000


def digest_of(size: int) -> str:
    return hashlib.sha256((PATTERN * (size // len(PATTERN) + 1))[:size]).hexdigest()


def events(process: Process) -> list[dict[str, Any]]:
    return [json.loads(line) for line in process.output().splitlines() if line.startswith("{")]


def up(lab: Lab, ns: str, *argv: str, key: str = "k", url: str = CONTROL_URL) -> Process:
    """Start ``tsnetpy up --json`` as a plain user."""
    env = {"TS_AUTHKEY": key, "TS_CONTROL_URL": url}
    return lab.start_plain("up", ns, ["-m", "tsnetpy", "up", "--json", *argv], env)


def ends(process: Process, code: int, within: float) -> dict[str, Any]:
    """Wait for the end, check the exit code and the time; return the last event."""
    start = time.monotonic()
    assert process.popen.wait(within + 10) == code, process.output()
    assert time.monotonic() - start < within, process.output()
    assert "Traceback" not in process.output()
    return events(process)[-1]


def interrupted(process: Process, number: int = signal.SIGINT) -> float:
    """Send a signal; check the exit code and return the seconds it took."""
    start = time.monotonic()
    assert process.stop(number) == 130, process.output()
    seconds = time.monotonic() - start
    assert seconds < PROMISE_S
    assert "Traceback" not in process.output()
    return seconds


@contextlib.contextmanager
def dropped(lab: Lab, ns: str, match: str) -> Iterator[None]:
    """Let packets that *match* vanish on their way into and out of a namespace."""
    table = (
        f"table inet hole {{\nchain out {{ type filter hook output priority 0; oifname v0 {match} drop; }}\n"
        f"chain in {{ type filter hook input priority 0; iifname v0 {match} drop; }}\n}}"
    )
    lab.run(ns, ["nft", table])
    try:
        yield
    finally:
        lab.run(ns, ["nft", "delete", "table", "inet", "hole"])


# ---- the way to the coordination server


def test_a_server_address_that_swallows_everything(lab: Lab, record_property: Recorder) -> None:
    with dropped(lab, "c", "tcp dport 4444"):
        url = f"http://{HUB4}:4444"
        error = ends(up(lab, "c", "--timeout", "3", url=url), 4, 6.0)
        assert (error["kind"], error["exit_code"]) == ("ControlError", 4)
        assert "within 3 s" in error["message"]
        assert error["hint"]
        process = up(lab, "c", url=url)
        process.wait_for('"joining"')
        time.sleep(0.5)
        record_property("Ctrl-C", f"{interrupted(process):.2f} s")


@pytest.mark.parametrize("mode", ["nxdomain", "silent"])
def test_a_name_server_without_an_answer(lab: Lab, mode: str, record_property: Recorder) -> None:
    resolver = lab.start("resolver", "hub", [sys.executable, str(ROOT / "tests/interop/silence.py"), mode])
    resolver.wait_for("ready")
    (lab.dir / "resolv.conf").write_text(f"nameserver {HUB4}\n")
    # The file is put over the real one in a mount namespace of this program alone.
    command = f"mount --bind {lab.dir}/resolv.conf /etc/resolv.conf && exec {sys.executable} -m tsnetpy up --json"
    env = {"PYTHONPATH": str(ROOT), "TS_CONTROL_URL": "https://control.nowhere.test", "TS_AUTHKEY": "k"}

    def start(*argv: str) -> Process:
        return lab.start("up", "c", ["unshare", "--mount", "sh", "-c", f'{command} "$@"', "sh", *argv], env)

    try:
        error = ends(start("--timeout", "3"), 4, 6.0)
        assert "within 3 s" in error["message"]
        assert ("not known" in error["message"]) == (mode == "nxdomain"), error
        asked = resolver.output().count("asked")
        process = start()
        eventually(lambda: resolver.output().count("asked") > asked)
        record_property("Ctrl-C", f"{interrupted(process):.2f} s")
    finally:
        resolver.stop()


# ---- the state


def test_a_state_directory_that_a_plain_user_may_not_write(lab: Lab) -> None:
    closed = lab.dir / "closed-state"
    closed.mkdir(mode=0o755)
    error = ends(up(lab, "c", "--state", str(closed), key=lab.key), 5, 15.0)
    assert error["kind"] == "StateError"
    assert str(closed) in error["message"]
    assert "Permission denied" in error["message"]
    assert error["hint"]
    # It was written once, and then made read-only together with the files in it.
    state = lab.plain_dir("frozen-state")
    process = up(lab, "c", "--state", str(state), "--hostname", "frozen", key=lab.key)
    process.wait_for('"running"')
    interrupted(process)
    for path in (*state.iterdir(), state):
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert state.stat().st_uid == PLAIN_UID
    error = ends(up(lab, "c", "--state", str(state), key=lab.key), 5, 15.0)
    assert "Permission denied" in error["message"]


def test_a_full_disk(lab: Lab) -> None:
    mount = lab.dir / "full"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k,mode=0777", "none", str(mount)], check=True)
    try:
        (mount / "filler").write_bytes(bytes(12 * 1024))
        error = ends(up(lab, "c", "--state", str(mount / "state"), key=lab.key), 5, 15.0)
        assert error["kind"] == "StateError"
        assert "No space left" in error["message"]
        left = sorted(path.name for path in mount.rglob("*") if path.is_file())
        assert not [name for name in left if name.endswith(".tmp")], "half a file is no state"
    finally:
        subprocess.run(["umount", str(mount)], check=True)


# ---- Headscale's refusals, and leaving it


def test_headscale_refuses_keys(lab: Lab) -> None:
    error = ends(up(lab, "b", key="hskey-auth-000000000000-" + "0" * 64), 3, 15.0)
    assert (error["kind"], error["exit_code"]) == ("AuthError", 3)
    assert "auth key" in error["hint"]
    once = lab.make_key()
    process = up(lab, "b", "--hostname", "once", key=once)
    process.wait_for('"running"')
    interrupted(process)
    error = ends(up(lab, "c", "--hostname", "twice", key=once), 3, 15.0)
    assert "already used" in error["message"]
    assert error["hint"]


def node_names(lab: Lab) -> set[str]:
    return {str(node["name"]) for node in lab.nodes()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_headscale_forgets_an_ephemeral_node(lab: Lab, number: int, record_property: Recorder) -> None:
    key = lab.make_key("--ephemeral", "--reusable")
    process = up(lab, "b", "--hostname", "gone", key=key)
    process.wait_for('"running"')
    assert "gone" in node_names(lab)
    record_property("ended after", f"{interrupted(process, number):.2f} s")
    assert "gone" not in node_names(lab)


def test_leaving_while_headscale_is_down(lab: Lab, record_property: Recorder) -> None:
    process = up(lab, "b", "--hostname", "orphan", key=lab.make_key("--ephemeral"))
    process.wait_for('"running"')
    lab.headscale_down()
    try:
        record_property("ended after", f"{interrupted(process):.2f} s")
    finally:
        lab.headscale_up()


def test_leaving_a_network_that_swallows_everything(lab: Lab, record_property: Recorder) -> None:
    """The server and all peers vanish without a word, with data on its way; nothing of it may hold the end up."""
    process = up(lab, "b", "--hostname", "unplugged", key=lab.make_key("--ephemeral"))
    process.wait_for('"running"')
    with dropped(lab, "b", ""):
        record_property("ended after", f"{interrupted(process):.2f} s")


# ---- a serving node in trouble


@dataclass
class Served:
    """Our serving node, its web app, and an official client."""

    serve: Process
    client: Official
    ip4: str
    port: int


@pytest.fixture(scope="module")
def served(lab: Lab) -> Iterator[Served]:
    backend = lab.start("backend", "b", [sys.executable, str(ROOT / "tests/interop/backend.py"), "3100"])
    backend.wait_for("ready")
    argv = ["-m", "tsnetpy.serve", "3100", "--hostname", "tough", "--udp-port", "41700", "--json"]
    serve = lab.start_plain("serve", "b", argv, {"TS_AUTHKEY": lab.key, "TS_CONTROL_URL": CONTROL_URL})
    serve.wait_for('"running"')
    address = next(event for event in events(serve) if event["event"] == "running")["addresses"][0]
    client = lab.official("tester", "a")
    client.reach("tough")
    yield Served(serve, client, address, 41700)
    serve.stop()
    client.process.stop()
    backend.stop()


def download(served: Served) -> str:
    """Fetch BULK bytes; return their digest."""
    command = f"curl -sS --socks5-hostname 127.0.0.1:{served.client.socks_port} http://tough/zeros?{BULK} | sha256sum"
    return served.client.lab.run("a", ["sh", "-c", command], timeout=120).split()[0]


FLOOD = r"""
import os, random, socket, sys, time
target, seconds = (sys.argv[1], int(sys.argv[2])), float(sys.argv[3])
rng = random.Random(1)
types = ((1, 144), (2, 88), (3, 60), (4, 1228), (4, 28))
kinds = [bytes([kind, 0, 0, 0]) + rng.randbytes(size) for kind, size in types]
kinds += [rng.randbytes(size) for size in (1, 19, 20, 100, 1400)]
kinds += [b"TS\xf0\x9f\x92\xac" + rng.randbytes(120), b"\0\1\0\0" + b"\x21\x12\xa4\x42" + rng.randbytes(12)]
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sent, end = 0, time.monotonic() + seconds
while time.monotonic() < end:
    for kind in kinds:
        sock.sendto(kind[:8] + os.urandom(8) + kind[16:], target)
    sent += len(kinds)
    time.sleep(0.001)
print(sent)
"""


def test_a_flood_of_garbage(served: Served, lab: Lab, record_property: Recorder) -> None:
    argv = [sys.executable, "-c", FLOOD, "192.0.2.11", str(served.port), "60"]
    flood = lab.start("flood", "c", argv)
    try:
        start = time.monotonic()
        assert download(served) == digest_of(BULK)
        seconds = time.monotonic() - start
        assert "via DERP" not in served.client.cli("ping", "--c=1", "tough")
    finally:
        flood.stop()
    record_property("Mbit/s during the flood", round(BULK * 8e-6 / seconds))


def test_an_outage_of_five_seconds(served: Served, lab: Lab, record_property: Recorder) -> None:
    curl = ["curl", "-sS", "--limit-rate", "4M", "--socks5-hostname", f"127.0.0.1:{served.client.socks_port}"]
    out = pathlib.Path(lab.dir / "outage")
    process = lab.start("curl", "a", [*curl, "-o", str(out), f"http://tough/zeros?{BULK}"])
    eventually(lambda: out.exists() and out.stat().st_size > 1_000_000)
    with dropped(lab, "b", ""):
        time.sleep(5)
    back = time.monotonic()
    size = out.stat().st_size
    eventually(lambda: out.stat().st_size > size + 1_000_000, 30)
    record_property("again after", f"{time.monotonic() - back:.1f} s")
    assert process.popen.wait(60) == 0, process.output()
    assert hashlib.sha256(out.read_bytes()).hexdigest() == digest_of(BULK)


def test_a_backend_that_swallows_everything(served: Served, lab: Lab, record_property: Recorder) -> None:
    env = {"TS_AUTHKEY": lab.key, "TS_CONTROL_URL": CONTROL_URL}
    argv = ["-m", "tsnetpy.serve", f"http://{HUB4}:4445", "--hostname", "hollow", "--json"]
    serve = lab.start_plain("serve", "b", argv, env)
    serve.wait_for('"running"')
    served.client.reach("hollow")
    with dropped(lab, "b", "tcp dport 4445"):
        start = time.monotonic()
        answer = served.client.curl("-i", "http://hollow/")
        record_property("504 after", f"{time.monotonic() - start:.1f} s")
        assert answer.startswith("HTTP/1.1 504 ")
        assert f"the backend http://{HUB4}:4445 does not accept connections within 10 s" in answer
        curl = ["curl", "-sS", "--socks5-hostname", f"127.0.0.1:{served.client.socks_port}", "http://hollow/"]
        waiting = lab.start("curl", "a", curl)
        time.sleep(0.5)
        record_property("Ctrl-C during a request", f"{interrupted(serve):.2f} s")
        waiting.stop()


def test_ctrl_c_during_a_transfer_and_an_ssh_session(served: Served, lab: Lab, record_property: Recorder) -> None:
    state = lab.plain_dir("ssh-interrupted")
    env = {"TS_AUTHKEY": lab.make_key("--ephemeral"), "TS_CONTROL_URL": CONTROL_URL, "SHELL": "/bin/sh"}
    argv = [
        "-m",
        "tsnetpy.serve",
        "3100",
        "--ssh",
        "--hostname",
        "busy",
        "--state",
        str(state),
        "--ephemeral",
        "--json",
    ]
    serve = lab.start_plain("serve", "b", [*argv, "--json"], {**env, "HOME": str(state)})
    serve.wait_for('"running"')
    served.client.reach("busy")
    options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
    proxy = " ".join(served.client.argv("nc", "%h", "%p"))
    ssh = lab.start(
        "ssh", "a", ["ssh", *options, "-o", f"ProxyCommand={proxy}", "nobody@busy", "echo started; sleep 600"]
    )
    ssh.wait_for("started")
    curl = ["curl", "-sS", "--limit-rate", "1M", "--socks5-hostname", f"127.0.0.1:{served.client.socks_port}"]
    transfer = lab.start("curl", "a", [*curl, "-o", str(lab.dir / "part"), f"http://busy/zeros?{BULK}"])
    eventually(lambda: (lab.dir / "part").exists() and (lab.dir / "part").stat().st_size > 100_000)
    record_property("ended after", f"{interrupted(serve):.2f} s")
    assert "busy" not in node_names(lab)
    # Both clients hear of it at once, instead of waiting for a node that is no more.
    start = time.monotonic()
    assert ssh.popen.wait(10) != 0
    assert transfer.popen.wait(10) != 0
    record_property("clients told after", f"{time.monotonic() - start:.2f} s")
    out = subprocess.run(["pgrep", "-u", str(PLAIN_UID), "-f", "sleep 600"], capture_output=True, check=False).stdout
    assert not out, "a session's program does not outlive the server"
