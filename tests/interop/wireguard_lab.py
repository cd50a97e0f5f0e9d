"""Two namespaces for plain WireGuard: the kernel's TCP behind Debian's wireguard-go, and our process as a plain user.

``k`` (192.0.2.1 and 2001:db8::1; 10.9.0.1 and fd00:9::1 in the tunnel) has wireguard-go, wg, nginx and curl; ``u``
(.2 and ::2 everywhere) has us. A good cable joins them, and if a test asks for it a bad one (198.51.100.1 and .2,
2001:db8:1::1 and ::2), in whose middle a relay of ours loses, delays and reorders. Every tunnel has a preshared key.

``TSNETPY_WG_MB`` and ``TSNETPY_WG_BAD_MB`` set the sizes of transfers; ``TSNETPY_INTEROP_FULL=1`` makes them 1 GiB.
"""

import base64
import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

from tests.interop.backend import PATTERN
from tests.interop.lab import PLAIN_UID, ROOT, Lab, Process, eventually
from tsnetpy.base.entropy import SystemEntropy
from tsnetpy.crypto import dh

MEBIBYTE = 1 << 20
FULL = os.environ.get("TSNETPY_INTEROP_FULL", "") not in ("", "0")
BULK = int(os.environ.get("TSNETPY_WG_MB", "1024" if FULL else "32")) * MEBIBYTE
BAD_CABLE_BULK = int(os.environ.get("TSNETPY_WG_BAD_MB", "1024" if FULL else "3")) * MEBIBYTE
SMALL = 100_000
K4, U4, MOVED4 = "192.0.2.1", "192.0.2.2", "192.0.2.3"
K6, U6 = "2001:db8::1", "2001:db8::2"
BAD_K4, BAD_U4 = "198.51.100.1", "198.51.100.2"
BAD_K6, BAD_U6 = "2001:db8:1::1", "2001:db8:1::2"
K_IN, U_IN = ("10.9.0.1", "fd00:9::1"), ("10.9.0.2", "fd00:9::2")
PORT = 51820
DELAY_MS, JITTER_MS = 20, 20
"""Of the bad cable, one way."""
TOOLS = ("ip", "wireguard-go", "wg", "nginx", "curl", "ping", "setpriv", "unshare")


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
    """Return a key as wg(8) writes it."""
    return base64.b64encode(raw).decode()


def host(ip: str) -> str:
    """Return an address as it stands in a URL or an endpoint."""
    return f"[{ip}]" if ":" in ip else ip


def rate(size: int, seconds: float) -> float:
    """Return Mbit/s."""
    return round(size * 8e-6 / seconds, 1)


def zeros(size: int) -> str:
    """Return the SHA-256 of what ``/zeros?size`` of the backend sends."""
    digest = hashlib.sha256()
    for at in range(0, size, len(PATTERN)):
        digest.update(PATTERN[: size - at])
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Link:
    """A way between the two ends."""

    name: str
    endpoint: str
    """Where wireguard-go is on it."""
    bad: bool

    @property
    def bulk(self) -> int:
        """Bytes of one transfer."""
        return BAD_CABLE_BULK if self.bad else BULK

    @property
    def body(self) -> str:
        """The file of that size on nginx."""
        return "/part" if self.bad else "/bulk"

    def patience(self, size: int) -> float:
        """Return the seconds after which a transfer of *size* bytes has failed: 0.5 Mbit/s, or 10 on a good cable."""
        return 60 + size / (62_500 if self.bad else 1_250_000)


LINKS = (
    Link("clean IPv4", f"{K4}:{PORT}", False),
    Link("clean IPv6", f"[{K6}]:{PORT}", False),
    Link("bad IPv4", f"{BAD_K4}:{PORT}", True),
    Link("bad IPv6", f"[{BAD_K6}]:{PORT}", True),
)


class Tunnel(Lab):
    """Both namespaces, the keys, and the kernel's end."""

    def __init__(self, directory: pathlib.Path, prefix: str, device: str) -> None:
        super().__init__(directory, prefix)
        self.device = device
        self.keys = [dh.generate(SystemEntropy()) for _ in range(2)]
        self.psk = b64(SystemEntropy().bytes(32))
        self.relay: Process | None = None
        self.sums: dict[str, str] = {}

    @property
    def our_key(self) -> str:
        """Our public key, as wg(8) writes it."""
        return b64(dh.public_key(self.keys[1]))

    def up(self) -> None:
        """Make the namespaces, the good cable and the kernel's end of the tunnel."""
        for name in "ku":
            self._sh(["ip", "netns", "add", self.ns(name)])
            self._sh(["ip", "-n", self.ns(name), "link", "set", "lo", "up"])
        self._sh(["ip", "-n", self.ns("k"), "link", "add", "v0", "type", "veth", "peer", "v0", "netns", self.ns("u")])
        for name, ip4, ip6 in (("k", K4, K6), ("u", U4, U6)):
            self._sh(["ip", "-n", self.ns(name), "link", "set", "v0", "up"])
            self.address(name, f"{ip4}/24", "v0")
            self.address(name, f"{ip6}/64", "v0")
        promote = "echo 1 > /proc/sys/net/ipv4/conf/all/promote_secondaries"  # a test takes the first address away
        self.run("k", ["sh", "-c", promote])
        self.kernel_up()

    def down(self) -> None:
        """End what was started here and remove the namespaces."""
        for process in reversed(self.processes):
            process.stop(timeout=3)
        for name in "kum":
            subprocess.run(["ip", "netns", "del", self.ns(name)], capture_output=True, check=False)

    def servers_up(self) -> None:
        """Start nginx, the backends, UDP echo and DNS."""
        www = self.dir / "www"
        www.mkdir()
        block = os.urandom(4 * MEBIBYTE)
        for name, size in (("bulk", BULK), ("part", BAD_CABLE_BULK), ("small", SMALL)):
            digest = hashlib.sha256()
            with (www / name).open("wb") as file:
                for at in range(0, size, len(block)):
                    piece = at.to_bytes(8, "big") + block[8 : size - at]  # no two pieces are equal
                    digest.update(piece)
                    file.write(piece)
            self.sums[f"/{name}"] = digest.hexdigest()
        (self.dir / "nginx.conf").write_text(_nginx(self.dir), encoding="utf-8")
        self.start("nginx", "k", ["nginx", "-c", f"{self.dir}/nginx.conf", "-e", f"{self.dir}/nginx.log"])
        for name in "ku":
            self.start("backend", name, [sys.executable, f"{ROOT}/tests/interop/backend.py", "3000"]).wait_for("ready")
            self.start("echo", name, [sys.executable, "-m", "tests.interop.tunnel", "echo", "7"]).wait_for("ready")
        dns = [sys.executable, "-m", "tests.interop.tunnel", "dns", "web.lab.example", *K_IN]
        self.start("dns", "k", dns).wait_for("ready")
        eventually(lambda: "200" in self.run("k", ["curl", "-sI", f"http://{K_IN[0]}/small"], check=False))

    def bad_cable(self) -> Process:
        """Lay the second cable, with the relay in the middle, unless it is there."""
        if self.relay is not None:
            return self.relay
        middle = self.ns("m")
        self._sh(["ip", "netns", "add", middle])
        relay = [sys.executable, f"{ROOT}/tests/interop/relay.py"]
        for end, name, ip4, ip6 in (("left", "k", BAD_K4, BAD_K6), ("right", "u", BAD_U4, BAD_U6)):
            self._sh(["ip", "-n", self.ns(name), "link", "add", "v1", "type", "veth", "peer", end, "netns", middle])
            self._sh(["ip", "-n", self.ns(name), "link", "set", "v1", "up"])
            self._sh(["ip", "-n", middle, "link", "set", end, "up"])
            self.run(name, [*relay, "wire", "v1"])
            self.address(name, f"{ip4}/24", "v1")
            self.address(name, f"{ip6}/64", "v1")
        times = ["--delay-ms", str(DELAY_MS), "--jitter-ms", str(JITTER_MS)]
        self.relay = self.start("relay", "m", [*relay, "run", "left", "right", *times])
        self.relay.wait_for("ready")
        return self.relay

    def relay_counts(self) -> dict[str, int]:
        """Return the relay's counters."""
        relay = self.bad_cable()
        lines = len(relay.output().splitlines())
        relay.popen.send_signal(signal.SIGUSR1)
        eventually(lambda: len(relay.output().splitlines()) > lines)
        counts: dict[str, int] = json.loads(relay.output().splitlines()[-1])
        return counts

    def address(self, name: str, prefix: str, device: str, verb: str = "add") -> None:
        """Add or remove an address."""
        extra = ["nodad"] if ":" in prefix and verb == "add" else []
        self._sh(["ip", "-n", self.ns(name), "addr", verb, prefix, "dev", device, *extra])

    def kernel_up(self, endpoint: str = "", log_level: str = "error") -> None:
        """Start wireguard-go; it does not know where we are, unless *endpoint* says so."""
        self.start("wireguard-go", "k", ["wireguard-go", "-f", self.device], {"LOG_LEVEL": log_level})
        eventually(pathlib.Path(f"/var/run/wireguard/{self.device}.sock").exists)
        conf = self.dir / "kernel.conf"
        allowed = ", ".join(f"{ip}/{128 if ':' in ip else 32}" for ip in U_IN)
        conf.write_text(
            f"[Interface]\nPrivateKey = {b64(self.keys[0])}\nListenPort = {PORT}\n[Peer]\n"
            f"PublicKey = {self.our_key}\nPresharedKey = {self.psk}\nAllowedIPs = {allowed}\n"
            + (f"Endpoint = {endpoint}\n" if endpoint else ""),
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
            f"AllowedIPs = 10.9.0.0/24, fd00:9::/64\n" + (f"Endpoint = {endpoint}\n" if endpoint else "") + f"{peer}\n",
            encoding="utf-8",
        )
        os.chown(path, PLAIN_UID, PLAIN_UID)
        path.chmod(0o600)
        return str(path)

    @contextlib.contextmanager
    def ours(self, *, endpoint: str = f"{K4}:{PORT}", port: int = 0) -> Iterator[Process]:
        """Run ``python -m tsnetpy wg`` as the plain user, with every kind of forward; UDP *port* 0 means any."""
        interface = "DNS = 10.9.0.1, lab.example" + (f"\nListenPort = {port}" if port else "")
        file = self.file(endpoint, interface=interface, peer="PersistentKeepalive = 25")
        forwards = [
            *("--forward", f"8080:{K_IN[0]}:80", "--forward", f"[::1]:8086:[{K_IN[1]}]:80"),
            *("--forward", "8081:web:80", "--reverse", "80:127.0.0.1:3000"),
            *("--udp-forward", f"5007:{K_IN[0]}:7", "--udp-forward", f"[::1]:5007:[{K_IN[1]}]:7"),
            *("--udp-reverse", "7:127.0.0.1:7"),
        ]
        argv = ["-m", "tsnetpy", "wg", file, "--json", *forwards]
        process = self.start_plain("wg", "u", argv)
        try:
            process.wait_for('"event": "running"')
            yield process
        finally:
            assert process.stop() in (0, 130)
            self.processes.remove(process)

    def program(self, *arguments: str, ns: str = "u", timeout: float = 120.0) -> dict[str, object]:
        """Run ``tunnel.py`` as the plain user and return what it says at the end."""
        out = self.run_plain(ns, ["-m", "tests.interop.tunnel", *arguments], timeout=timeout)
        return last_line(out)

    def sum_of(self, ns: str, url: str, timeout: float = 300.0) -> tuple[str, float]:
        """Fetch *url* with curl; return the SHA-256 and the seconds."""
        start = time.monotonic()
        command = ["sh", "-c", 'curl -sSg "$1" | sha256sum', "sh", url]
        return self.run(ns, command, timeout=timeout).split()[0], time.monotonic() - start


def last_line(output: str) -> dict[str, object]:
    """Return the last line of *output*, JSON."""
    result: dict[str, object] = json.loads(output.splitlines()[-1])
    return result


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


@contextlib.contextmanager
def running_tunnel(tag: str = "a", *, servers: bool = True) -> Iterator[Tunnel]:
    """Make a :class:`Tunnel` and take it down again; *tag*, one letter, tells those of one process apart."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="tsnetpy-wg-"))
    directory.chmod(0o755)
    made = Tunnel(directory, f"wg{tag}{os.getpid()}-", f"wg{tag}{os.getpid() % 1_000_000}")
    try:
        made.up()
        if servers:
            made.servers_up()
        yield made
    finally:
        made.down()
        shutil.rmtree(directory, ignore_errors=True)
