"""Our Serve, as a plain user without capabilities, seen by official clients over Headscale."""

import hashlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.interop.backend import PATTERN
from tests.interop.lab import ALLOW_ALL, CONTROL_URL, ROOT, Lab, Official, Process, Recorder, eventually

MEBIBYTE = 1 << 20
BULK = 100 * 1000 * 1000


@dataclass
class Ours:
    """Our serving process and the official client that looks at it."""

    process: Process
    client: Official
    ip4: str
    ip6: str
    join_s: float


@pytest.fixture(scope="module")
def ours(lab: Lab) -> Iterator[Ours]:
    client = lab.official("off", "a")
    backend = lab.start("backend", "b", [sys.executable, str(ROOT / "tests/interop/backend.py"), "3000"])
    backend.wait_for("ready")
    state = lab.plain_dir("serve-state")
    start = time.monotonic()
    process = lab.start_plain(
        "serve",
        "b",
        ["-m", "tsnetpy.serve", "3000", "--hostname", "web", "--state", str(state), "--json"],
        {"TS_AUTHKEY": lab.key, "TS_CONTROL_URL": CONTROL_URL},
    )
    process.wait_for('"event": "running"')
    join_s = time.monotonic() - start
    line = next(line for line in process.output().splitlines() if '"running"' in line)
    ip4, ip6 = json.loads(line)["addresses"]
    client.reach("web")
    client.cli("ping", "--until-direct", "-c", "20", "web")
    yield Ours(process, client, ip4, ip6, join_s)
    assert process.stop() in (0, 130)
    backend.stop()


def test_process_has_no_capability_and_a_plain_uid(ours: Ours, record_property: Recorder) -> None:
    status = pathlib.Path(f"/proc/{ours.process.popen.pid}/status").read_text(encoding="ascii")
    assert "CapEff:\t0000000000000000" in status
    assert "Uid:\t65534\t65534" in status
    record_property("join", f"{ours.join_s:.2f} s with interpreter start")


@pytest.mark.parametrize("how", ["name", "full name", "ipv4", "ipv6"])
def test_curl(ours: Ours, how: str) -> None:
    host = {"name": "web", "full name": "web.lab.test", "ipv4": ours.ip4, "ipv6": f"[{ours.ip6}]"}[how]
    assert ours.client.curl(f"http://{host}/hello") == "hello from GET /hello\n"


def test_identity_headers_reach_the_backend_and_spoofed_ones_do_not(ours: Ours) -> None:
    seen = json.loads(ours.client.curl("-H", "Tailscale-User-Login: eve", "http://web/headers"))
    assert seen["tailscale-user-login"] == "lab"
    assert seen["x-forwarded-for"].startswith("100.64.")
    assert seen["host"] == "web"


def test_download_100_mb(ours: Ours, record_property: Recorder) -> None:
    start = time.monotonic()
    command = f"curl -sS --socks5-hostname 127.0.0.1:{ours.client.socks_port} http://web/zeros?{BULK} | sha256sum"
    out = ours.client.lab.run("a", ["sh", "-c", command], timeout=120)
    expected = hashlib.sha256((PATTERN * (BULK // len(PATTERN) + 1))[:BULK]).hexdigest()
    assert out.split()[0] == expected
    record_property("Mbit/s", round(BULK * 8e-6 / (time.monotonic() - start)))


def test_upload_100_mb(ours: Ours, tmp_path: pathlib.Path, record_property: Recorder) -> None:
    data = os.urandom(MEBIBYTE) * (BULK // MEBIBYTE)
    (tmp_path / "up").write_bytes(data)
    start = time.monotonic()
    answer = ours.client.curl("-H", "Expect:", "--data-binary", f"@{tmp_path}/up", "http://web/sha256")
    assert answer == hashlib.sha256(data).hexdigest()
    record_property("Mbit/s", round(len(data) * 8e-6 / (time.monotonic() - start)))


def test_200_requests_at_once(ours: Ours) -> None:
    out = ours.client.curl(
        "--parallel", "--parallel-immediate", "--parallel-max", "200", "http://web/n/[1-200]", timeout=120
    )
    assert sorted(out.splitlines()) == sorted(f"hello from GET /n/{n}" for n in range(1, 201))


WEBSOCKET_CLIENT = r"""
import base64, os, socket, struct, sys
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 10)
s.sendall(b"\5\1\0"); assert s.recv(2) == b"\5\0"
s.sendall(b"\5\1\0\3\3web" + struct.pack(">H", 80)); assert s.recv(262)[:2] == b"\5\0"
key = base64.b64encode(os.urandom(16))
s.sendall(b"GET /ws HTTP/1.1\r\nHost: web\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
          b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + b"\r\n\r\n")
f = s.makefile("rb")
assert f.readline().startswith(b"HTTP/1.1 101"), "no upgrade"
while f.readline() != b"\r\n": pass
for size in (5, 125, 126, 40000):
    data, mask = os.urandom(size), os.urandom(4)
    length = bytes([128 | size]) if size < 126 else bytes([254]) + size.to_bytes(2, "big")
    s.sendall(bytes([130]) + length + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(data)))
    head = f.read(2); n = head[1] if head[1] < 126 else int.from_bytes(f.read(2), "big")
    assert f.read(n) == data, size
print("echoed")
"""


def test_websocket_echo(ours: Ours) -> None:
    argv = [sys.executable, "-c", WEBSOCKET_CLIENT, str(ours.client.socks_port)]
    assert ours.client.lab.run("a", argv) == "echoed\n"


def test_official_ping_is_direct(ours: Ours, record_property: Recorder) -> None:
    out = ours.client.cli("ping", "--c=5", "web")
    assert "via 192.0.2.11:" in out or "via [2001:db8::11]:" in out
    record_property("ping", out.splitlines()[-1].split(" via ")[1])
    assert "pong" in ours.client.cli("ping", "--icmp", "--c=1", "web")
    assert "pong" in ours.client.cli("ping", "--tsmp", "--c=1", "web")


def test_derp_only(ours: Ours, lab: Lab, record_property: Recorder) -> None:
    lab.drop_udp("b")
    try:
        eventually(lambda: "via DERP(lab)" in ours.client.cli("ping", "--c=1", "web", check=False), 30)
        assert ours.client.curl("http://web/hello") == "hello from GET /hello\n"
        start = time.monotonic()
        command = f"curl -sS --socks5-hostname 127.0.0.1:{ours.client.socks_port} http://web/zeros?{BULK} | sha256sum"
        out = lab.run("a", ["sh", "-c", command], timeout=300)
        assert out.split()[0] == hashlib.sha256((PATTERN * (BULK // len(PATTERN) + 1))[:BULK]).hexdigest()
        record_property("Mbit/s", round(BULK * 8e-6 / (time.monotonic() - start)))
    finally:
        lab.allow_udp("b")
    seconds = eventually(lambda: "via DERP" not in ours.client.cli("ping", "--c=1", "web", check=False), 30)
    record_property("direct again after", f"{seconds:.1f} s")


def test_policy_forbids_and_permits_a_port(ours: Ours, lab: Lab, record_property: Recorder) -> None:
    narrow = {"acls": [{"action": "accept", "src": ["*"], "dst": ["*:7"]}], "ssh": ALLOW_ALL["ssh"]}
    lab.set_policy(narrow)
    try:
        eventually(lambda: "hello" not in _hello(ours), 10)
        # Headscale keeps the peers visible, since port 7 is allowed; the SYN to port 80 is refused, not ignored.
        start = time.monotonic()
        assert "hello" not in _hello(ours)
        record_property("refused after", f"{time.monotonic() - start:.2f} s")
    finally:
        lab.set_policy(ALLOW_ALL)
        start = time.monotonic()
        eventually(lambda: "hello" in _hello(ours), 10)
        record_property("open after", f"{time.monotonic() - start:.2f} s (Headscale gathers changes for 0.8 s)")


def _hello(ours: Ours) -> str:
    return ours.client.curl("--max-time", "3", f"http://{ours.ip4}/hello", check=False)


def test_headscale_restart_breaks_nothing(ours: Ours, lab: Lab) -> None:
    lab.headscale_down()
    assert ours.client.curl("http://web/hello") == "hello from GET /hello\n"
    lab.headscale_up()
    assert ours.client.curl("http://web/hello") == "hello from GET /hello\n"
    # The map stream is open again once a change reaches us: a new peer that we can be seen by.
    late = lab.official("late", "c")
    eventually(lambda: late.knows("web"), 30)
    eventually(lambda: "hello" in late.curl("--max-time", "3", "http://web/hello", check=False), 30)
    late.process.stop()


def test_stops_within_two_seconds(lab: Lab) -> None:
    process = lab.start_plain(
        "short",
        "c",
        ["-m", "tsnetpy.serve", "3000", "--hostname", "short", "--json"],
        {"TS_AUTHKEY": lab.key, "TS_CONTROL_URL": CONTROL_URL},
    )
    process.wait_for('"event": "running"')
    assert any(node["name"] == "short" for node in lab.nodes())
    start = time.monotonic()
    assert process.stop(2) in (0, 130)
    assert time.monotonic() - start < 2.0
