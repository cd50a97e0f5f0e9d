"""Plain WireGuard: our process, a plain user without capabilities, and the kernel's TCP behind Debian's wireguard-go.

Two namespaces with one cable: ``k`` (192.0.2.1, and 10.9.0.1 in the tunnel) has wireguard-go, wg, nginx and curl; ``u``
(192.0.2.2, 10.9.0.2) has us. Every tunnel here uses a preshared key. ``TSNETPY_WG_MB`` sets the size of transfers.
"""

import base64
import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import pytest

from tests.interop.backend import PATTERN
from tests.interop.lab import PLAIN_UID, ROOT, Lab, Process, Recorder, eventually
from tsnetpy.base.entropy import SystemEntropy
from tsnetpy.crypto import dh

MEBIBYTE = 1 << 20
BULK = int(os.environ.get("TSNETPY_WG_MB", "64")) * MEBIBYTE
BAD_CABLE_BULK = int(os.environ.get("TSNETPY_WG_BAD_MB", "3")) * MEBIBYTE
K4, U4, MOVED4 = "192.0.2.1", "192.0.2.2", "192.0.2.3"
K6, U6 = "2001:db8::1", "2001:db8::2"
K_IN, U_IN = ("10.9.0.1", "fd00:9::1"), ("10.9.0.2", "fd00:9::2")
PORT = 51820
TOOLS = ("ip", "wireguard-go", "wg", "nginx", "curl", "ping", "setpriv", "unshare")
FAMILIES = pytest.mark.parametrize("family", [0, 1], ids=["v4", "v6"])


def missing() -> str | None:
    """Return why this cannot run here."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux for network namespaces"
    for tool in TOOLS:
        if shutil.which(tool) is None:
            return f"needs {tool}"
    if not pathlib.Path("/dev/net/tun").exists():
        return "needs /dev/net/tun for wireguard-go"
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode != 0:
        return "may not make network namespaces"
    return None


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


class Tunnel(Lab):
    """Both namespaces, the keys, and the kernel's end."""

    def __init__(self, directory: pathlib.Path, prefix: str) -> None:
        super().__init__(directory, prefix)
        self.device = f"wgt{os.getpid() % 1_000_000}"
        self.keys = [dh.generate(SystemEntropy()) for _ in range(2)]
        self.psk = b64(SystemEntropy().bytes(32))
        self.body = os.urandom(BULK)
        self.digest = hashlib.sha256(self.body).hexdigest()

    def up(self) -> None:
        for name in "ku":
            self._sh(["ip", "netns", "add", self.ns(name)])
            self._sh(["ip", "-n", self.ns(name), "link", "set", "lo", "up"])
        self.cable("v0", self.ns("u"), "v0")
        for name, ip4, ip6 in (("k", K4, K6), ("u", U4, U6)):
            self.address(name, f"{ip4}/24", "v0")
            self.address(name, f"{ip6}/64", "v0")
        www = self.dir / "www"
        www.mkdir()
        (www / "bulk").write_bytes(self.body)
        (www / "small").write_bytes(self.body[:100_000])
        (www / "part").write_bytes(self.body[:BAD_CABLE_BULK])
        promote = "echo 1 > /proc/sys/net/ipv4/conf/all/promote_secondaries"  # a test takes the first address away
        self.run("k", ["sh", "-c", promote])
        self.kernel_up()
        (self.dir / "nginx.conf").write_text(_nginx(self.dir), encoding="utf-8")
        self.start("nginx", "k", ["nginx", "-c", f"{self.dir}/nginx.conf", "-e", f"{self.dir}/nginx.log"])
        for name in "ku":
            self.start("backend", name, [sys.executable, f"{ROOT}/tests/interop/backend.py", "3000"]).wait_for("ready")
        self.start("echo", "k", [sys.executable, "-m", "tests.interop.tunnel", "echo", "7"]).wait_for("ready")
        self.start("echo", "u", [sys.executable, "-m", "tests.interop.tunnel", "echo", "7"]).wait_for("ready")
        dns = [sys.executable, "-m", "tests.interop.tunnel", "dns", "web.lab.example", *K_IN]
        self.start("dns", "k", dns).wait_for("ready")
        eventually(lambda: "200" in self.run("k", ["curl", "-sI", f"http://{K_IN[0]}/small"], check=False))

    def down(self) -> None:
        for process in reversed(self.processes):
            process.stop(timeout=3)
        for name in "kum":
            subprocess.run(["ip", "netns", "del", self.ns(name)], capture_output=True, check=False)

    def cable(self, here: str, there_ns: str, there: str) -> None:
        """Join ``k`` with another namespace."""
        peer = ["peer", "name", there, "netns", there_ns]
        self._sh(["ip", "-n", self.ns("k"), "link", "add", here, "type", "veth", *peer])
        self._sh(["ip", "-n", self.ns("k"), "link", "set", here, "up"])
        self._sh(["ip", "-n", there_ns, "link", "set", there, "up"])

    def bad_cable(self) -> Process:
        """Lay a second cable, with the relay of ours in the middle; its ends are 198.51.100.1 and .2."""
        middle = self.ns("m")
        self._sh(["ip", "netns", "add", middle])
        relay = [sys.executable, f"{ROOT}/tests/interop/relay.py"]
        for end, name in (("left", "k"), ("right", "u")):
            self._sh(["ip", "-n", self.ns(name), "link", "add", "v1", "type", "veth", "peer", end, "netns", middle])
            self._sh(["ip", "-n", self.ns(name), "link", "set", "v1", "up"])
            self._sh(["ip", "-n", middle, "link", "set", end, "up"])
            self.run(name, [*relay, "wire", "v1"])
        self.address("k", "198.51.100.1/24", "v1")
        self.address("u", "198.51.100.2/24", "v1")
        process = self.start("relay", "m", [*relay, "run", "left", "right", "--delay-ms", "20", "--jitter-ms", "20"])
        process.wait_for("ready")
        return process

    def address(self, name: str, prefix: str, device: str, verb: str = "add") -> None:
        extra = ["nodad"] if ":" in prefix and verb == "add" else []
        self._sh(["ip", "-n", self.ns(name), "addr", verb, prefix, "dev", device, *extra])

    def kernel_up(self) -> None:
        """Start wireguard-go; it does not know where we are."""
        self.start("wireguard-go", "k", ["wireguard-go", "-f", self.device], {"LOG_LEVEL": "error"})
        eventually(pathlib.Path(f"/var/run/wireguard/{self.device}.sock").exists)
        conf = self.dir / "kernel.conf"
        allowed = ", ".join(f"{ip}/{128 if ':' in ip else 32}" for ip in U_IN)
        conf.write_text(
            f"[Interface]\nPrivateKey = {b64(self.keys[0])}\nListenPort = {PORT}\n[Peer]\n"
            f"PublicKey = {b64(dh.public_key(self.keys[1]))}\nPresharedKey = {self.psk}\nAllowedIPs = {allowed}\n",
            encoding="utf-8",
        )
        self.run("k", ["wg", "setconf", self.device, str(conf)])
        self.address("k", f"{K_IN[0]}/24", self.device)
        self.address("k", f"{K_IN[1]}/64", self.device)
        self._sh(["ip", "-n", self.ns("k"), "link", "set", self.device, "mtu", "1420", "up"])

    def kernel_down(self) -> None:
        """Kill wireguard-go; its interface goes with it."""
        process = self.process("wireguard-go")
        process.popen.kill()
        process.popen.wait(10)
        self.processes.remove(process)
        pathlib.Path(f"/var/run/wireguard/{self.device}.sock").unlink(missing_ok=True)

    def file(self, endpoint: str = f"{K4}:{PORT}", interface: str = "", peer: str = "") -> str:
        """Write a wg-quick file for our end; return its name."""
        path = self.plain_dir("conf") / "wg0.conf"
        path.write_text(
            f"[Interface]\nPrivateKey = {b64(self.keys[1])}\nAddress = {U_IN[0]}/24, {U_IN[1]}/64\n{interface}\n"
            f"[Peer]\nPublicKey = {b64(dh.public_key(self.keys[0]))}\nPresharedKey = {self.psk}\n"
            f"AllowedIPs = 10.9.0.0/24, fd00:9::/64\nEndpoint = {endpoint}\n{peer}\n",
            encoding="utf-8",
        )
        os.chown(path, PLAIN_UID, PLAIN_UID)
        path.chmod(0o600)
        return str(path)

    def wg(self, file: str, *arguments: str) -> Process:
        """Start ``python -m tsnetpy wg`` as the plain user."""
        process = self.start_plain("wg", "u", ["-m", "tsnetpy", "wg", file, "--json", *arguments])
        process.wait_for('"event": "running"')
        return process

    def program(self, *arguments: str, ns: str = "u", timeout: float = 120.0) -> dict[str, object]:
        """Run ``tunnel.py`` as the plain user and return what it says at the end."""
        out = self.run_plain(ns, ["-m", "tests.interop.tunnel", *arguments], timeout=timeout)
        result: dict[str, object] = json.loads(out.splitlines()[-1])
        return result

    def sum_of(self, ns: str, url: str, *arguments: str) -> tuple[str, float]:
        """Fetch *url* with curl; return the SHA-256 and the seconds."""
        start = time.monotonic()
        command = ["sh", "-c", 'curl -sSg "$@" | sha256sum', "sh", *arguments, url]
        return self.run(ns, command, timeout=300).split()[0], time.monotonic() - start


def _nginx(directory: pathlib.Path) -> str:
    temp = "\n".join(
        f"{kind}_temp_path {directory}/nginx-{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""\
daemon off;
user root;
worker_processes 1;
pid {directory}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  sendfile on;
  {temp}
  server {{
    listen 80;
    listen [::]:80 ipv6only=on;
    root {directory}/www;
    location /sha256 {{ proxy_pass http://127.0.0.1:3000; client_max_body_size 0; proxy_request_buffering off; }}
  }}
}}
"""


@pytest.fixture(scope="module")
def tunnel() -> Iterator[Tunnel]:
    reason = missing()
    if reason:
        pytest.skip(reason)
    directory = pathlib.Path(tempfile.mkdtemp(prefix="tsnetpy-wg-"))
    directory.chmod(0o755)
    made = Tunnel(directory, f"wg{os.getpid()}-")
    try:
        made.up()
        yield made
    finally:
        made.down()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def ours(tunnel: Tunnel) -> Iterator[Process]:
    """The command with every kind of forward; started anew for each test, so each begins with a stale session."""
    with running(tunnel) as process:
        yield process


@contextlib.contextmanager
def running(tunnel: Tunnel, *arguments: str) -> Iterator[Process]:
    file = tunnel.file(interface="DNS = 10.9.0.1, lab.example", peer="PersistentKeepalive = 25")
    process = tunnel.wg(
        file,
        *("--forward", f"8080:{K_IN[0]}:80", "--forward", f"[::1]:8086:[{K_IN[1]}]:80", "--forward", "8081:web:80"),
        *("--reverse", "80:127.0.0.1:3000"),
        *("--udp-forward", f"5007:{K_IN[0]}:7", "--udp-forward", f"[::1]:5007:[{K_IN[1]}]:7"),
        *("--udp-reverse", "7:127.0.0.1:7"),
        *arguments,
    )
    try:
        yield process
    finally:
        assert process.stop() in (0, 130)
        tunnel.processes.remove(process)


def zeros(size: int) -> str:
    return hashlib.sha256((PATTERN * (size // len(PATTERN) + 1))[:size]).hexdigest()


def host(ip: str) -> str:
    return f"[{ip}]" if ":" in ip else ip


def rate(size: int, seconds: float) -> float:
    return round(size * 8e-6 / seconds, 1)


@FAMILIES
def test_fetches_from_nginx(tunnel: Tunnel, ours: Process, family: int, record_property: Recorder) -> None:
    url = ("http://127.0.0.1:8080/bulk", "http://[::1]:8086/bulk")[family]
    before = ours.cpu_seconds()
    digest, seconds = tunnel.sum_of("u", url)
    assert digest == tunnel.digest
    record_property("Mbit/s", rate(BULK, seconds))
    record_property("cpu s", round(ours.cpu_seconds() - before, 2))
    record_property("peak MiB", ours.max_rss_kib() >> 10)


@FAMILIES
def test_serves_curl(tunnel: Tunnel, ours: Process, family: int, record_property: Recorder) -> None:
    before = ours.cpu_seconds()
    digest, seconds = tunnel.sum_of("k", f"http://{host(U_IN[family])}/zeros?{BULK}")
    assert digest == zeros(BULK)
    record_property("Mbit/s", rate(BULK, seconds))
    record_property("cpu s", round(ours.cpu_seconds() - before, 2))


def test_takes_what_curl_sends(tunnel: Tunnel, ours: Process, record_property: Recorder) -> None:
    start = time.monotonic()
    upload = ["curl", "-sS", "-X", "POST", "-H", "Expect:", "-T", f"{tunnel.dir}/www/bulk"]
    assert tunnel.run("k", [*upload, f"http://{U_IN[0]}/sha256"], timeout=300) == tunnel.digest
    record_property("Mbit/s", rate(BULK, time.monotonic() - start))


@FAMILIES
def test_answers_ping(tunnel: Tunnel, ours: Process, family: int, record_property: Recorder) -> None:
    out = tunnel.run("k", ["ping", "-4" if not family else "-6", "-c", "20", "-i", "0.05", "-s", "1000", U_IN[family]])
    assert " 0% packet loss" in out
    found = re.search(r"= [\d.]+/([\d.]+)/", out)
    assert found is not None
    record_property("ms", float(found[1]))


def test_200_connections_at_once(tunnel: Tunnel, ours: Process, record_property: Recorder) -> None:
    small = hashlib.sha256(tunnel.body[:100_000]).hexdigest()
    for name, ns, where, path, digest in (
        ("out", "u", ("127.0.0.1", "8080"), "/small", small),
        ("in", "k", (U_IN[0], "80"), "/zeros?100000", zeros(100_000)),
    ):
        result = tunnel.program("crowd", *where, path, "200", ns=ns)
        assert (result["count"], result["digests"]) == (200, [digest])
        record_property(f"{name}: open s", round(float(str(result["opened"])), 2))
        record_property("all s", round(float(str(result["seconds"])), 2))


def test_udp_both_ways(tunnel: Tunnel, ours: Process, record_property: Recorder) -> None:
    lost = 0
    for ns, where in (("u", "127.0.0.1"), ("u", "::1"), ("k", U_IN[0]), ("k", U_IN[1])):
        # 1372 and 1392 fill a packet of the tunnel; 8000 goes through it in fragments.
        result = tunnel.program("ask", where, "5007" if ns == "u" else "7", "1", "512", "1372", "1392", "8000", ns=ns)
        lost += int(str(result["lost"]))
    record_property("lost", lost)


def test_a_name_is_looked_up_through_the_tunnel(tunnel: Tunnel, ours: Process) -> None:
    digest, _ = tunnel.sum_of("u", "http://127.0.0.1:8081/small")
    assert digest == hashlib.sha256(tunnel.body[:100_000]).hexdigest()


def test_our_restart_is_noticed_at_once(tunnel: Tunnel, record_property: Recorder) -> None:
    """The kernel's end still seals with the old session; one unknown message makes us begin a new one."""
    slowest = 0.0
    for _ in range(3):
        with running(tunnel):
            start = time.monotonic()
            assert "hello" in tunnel.run("k", ["curl", "-sS", "--max-time", "20", f"http://{U_IN[0]}/hello"])
            slowest = max(slowest, time.monotonic() - start)
    record_property("s to answer", round(slowest, 2))


def test_idle_costs_nothing(tunnel: Tunnel, record_property: Recorder) -> None:
    with running(tunnel) as process:
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
    assert result["sha256"] == tunnel.digest
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
    assert process.popen.wait(120) == 0, process.output()
    result: dict[str, object] = json.loads(process.output().splitlines()[-1])
    return result


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
    assert result["sha256"] == tunnel.digest
    assert (result["first"], result["last"]) == (f"{K4}:{PORT}", f"{MOVED4}:{PORT + 1}")
    record_property("longest gap s", round(float(str(result["longest_gap"])), 2))


def test_the_peer_restarts_in_mid_fetch(tunnel: Tunnel, record_property: Recorder) -> None:
    """It comes back without our address and without keys; we begin anew when it has not answered for 15 s."""
    process = start_fetch(tunnel)
    tunnel.kernel_down()
    tunnel.kernel_up()
    result = finish(process)
    assert result["sha256"] == tunnel.digest
    record_property("longest gap s", round(float(str(result["longest_gap"])), 1))


@pytest.fixture(scope="module")
def bad_cable(tunnel: Tunnel) -> Iterator[Process]:
    process = tunnel.bad_cable()
    yield process
    process.stop()


def relay_counts(relay: Process) -> dict[str, int]:
    lines = len(relay.output().splitlines())
    relay.popen.send_signal(signal.SIGUSR1)
    eventually(lambda: len(relay.output().splitlines()) > lines)
    counts: dict[str, int] = json.loads(relay.output().splitlines()[-1])
    return counts


@pytest.mark.parametrize("verb", ["fetch", "send"])
def test_over_a_bad_cable(tunnel: Tunnel, bad_cable: Process, verb: str, record_property: Recorder) -> None:
    """1 % lost, 5 % out of order, 1 % twice, 40 ms round trip; every byte right."""
    file, size = tunnel.file(f"198.51.100.1:{PORT}"), str(BAD_CABLE_BULK)
    before = relay_counts(bad_cable)
    rest = ["/part", size, "0"] if verb == "fetch" else [size]
    result = tunnel.program(verb, file, K_IN[0], *rest, timeout=400)
    assert result["sha256"] == result.get("theirs", hashlib.sha256(tunnel.body[:BAD_CABLE_BULK]).hexdigest())
    counts = {name: n - before[name] for name, n in relay_counts(bad_cable).items()}
    assert counts["udp_bytes"] > BAD_CABLE_BULK
    assert 0.003 < counts["lost"] / counts["udp_frames"] < 0.02
    record_property("Mbit/s", rate(BAD_CABLE_BULK, float(str(result["seconds"]))))
    record_property("frames", f"{counts['udp_frames']}, lost {counts['lost']}, reordered {counts['reordered']}")
