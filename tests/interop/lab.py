"""A small internet in network namespaces, with the real peers in it. Root only; no route leads out.

    hub 192.0.2.1  2001:db8::1     Headscale on 8080, its TLS front on 443, derper on 8443, STUN on 3478
    a   192.0.2.10 2001:db8::10    b .11 ::11    c .12 ::12        all on one bridge in hub

Official clients look for the internet, so they run only in these namespaces. The Go programs are built once into
``.interop/bin`` from ``tests/interop/peers`` by their module versions.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
PEERS = pathlib.Path(__file__).parent / "peers"
BIN = ROOT / ".interop" / "bin"
HUB4, HUB6 = "192.0.2.1", "2001:db8::1"
CONTROL_URL = f"http://{HUB4}:8080"
PLAIN_UID = 65534  # nobody: no capability, no home, no shell of its own
QUIET = {"TS_NO_LOGS_NO_SUPPORT": "true", "TS_DEBUG_FIREWALL_MODE": "nftables"}
GO_PROGRAMS = {
    "tspeer": "./tspeer",
    "headscale": "github.com/juanfont/headscale/cmd/headscale",
    **{name: f"tailscale.com/cmd/{name}" for name in ("derper", "tailscale", "tailscaled")},
}
"""What the lab runs, and the Go packages that it is built from."""

Recorder = Callable[[str, object], None]
"""pytest's ``record_property``: a figure for the table at the end."""

ALLOW_ALL: dict[str, Any] = {
    "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
    "ssh": [
        {
            "action": "accept",
            "src": ["autogroup:member"],
            "dst": ["autogroup:self"],
            "users": ["autogroup:nonroot", "root"],
        }
    ],
}


def missing() -> str | None:
    """Return why the lab cannot run here, or ``None``."""
    if sys.platform != "linux":
        return "needs Linux network namespaces"
    if os.geteuid() != 0:
        return "needs root for network namespaces"
    for tool in ("ip", "nft", "socat", "setpriv", "curl", "openssl", "ssh", "sftp"):
        if shutil.which(tool) is None:
            return f"needs {tool}"
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode != 0:
        return "may not make network namespaces"
    if not all((BIN / name).exists() for name in GO_PROGRAMS) and shutil.which("go") is None:
        return "needs Go to build Headscale and the official clients"
    return None


def build() -> None:
    """Build the Go peers into ``.interop/bin`` unless they are there (about 5 minutes with an empty Go cache).

    ``go build`` checks every module against the hashes in ``go.sum``. Our own program is built again when it changed;
    without Go the old one has to do.
    """
    stamp, source = BIN / "tspeer.sha256", _digest(PEERS / "tspeer")
    packages = [GO_PROGRAMS[name] for name in GO_PROGRAMS if not (BIN / name).exists()]
    fresh = stamp.exists() and stamp.read_text(encoding="ascii") == source
    if not fresh and GO_PROGRAMS["tspeer"] not in packages and shutil.which("go") is not None:
        packages.append(GO_PROGRAMS["tspeer"])
    if not packages:
        return
    BIN.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:  # -mod=mod may touch go.mod; the project's own stays as it is
        work = pathlib.Path(scratch) / "peers"
        shutil.copytree(PEERS, work)
        subprocess.run(
            ["go", "build", "-o", f"{BIN}/", *packages], cwd=work, env={**os.environ, "GOFLAGS": "-mod=mod"}, check=True
        )
    stamp.write_text(source, encoding="ascii")


def _digest(folder: pathlib.Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.glob("*.go")))).hexdigest()


class Process:
    """One program of the lab, with its output in a file."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes], log: pathlib.Path) -> None:
        self.name = name
        self.popen = popen
        self.log = log

    def output(self) -> str:
        """Return everything that it printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, text: str, timeout: float = 20.0) -> str:
        """Wait until *text* stands in its output; return the output."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if text in (out := self.output()):
                return out
            if self.popen.poll() is not None:
                raise AssertionError(f"{self.name} ended with {self.popen.returncode}:\n{self.output()[-3000:]}")
            time.sleep(0.02)
        raise AssertionError(f"no {text!r} from {self.name} within {timeout} s:\n{self.output()[-3000:]}")

    def stop(self, sig: int = signal.SIGTERM, timeout: float = 10.0) -> int:
        """Send *sig* and return the exit status; kill after *timeout* seconds."""
        if self.popen.poll() is None:
            self.popen.send_signal(sig)
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            return self.popen.wait(10)

    def cpu_seconds(self) -> float:
        """Return the processor time that it has used."""
        fields = pathlib.Path(f"/proc/{self.popen.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def max_rss_kib(self) -> int:
        """Return its memory high-water mark."""
        for line in pathlib.Path(f"/proc/{self.popen.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1])
        return 0


def eventually(check: Callable[[], bool], timeout: float = 10.0, step: float = 0.05) -> float:
    """Call *check* until it is true; return the seconds that took, or raise after *timeout*."""
    start = time.monotonic()
    while not check():
        if time.monotonic() - start > timeout:
            raise AssertionError(f"not true within {timeout} s")
        time.sleep(step)
    return time.monotonic() - start


class Lab:
    """The namespaces and the programs in them; :meth:`up` starts Headscale and the DERP server."""

    def __init__(self, directory: pathlib.Path, prefix: str) -> None:
        self.dir = directory
        self.prefix = prefix
        self.processes: list[Process] = []
        self._hosts: list[str] = []
        self.policy = directory / "policy.hujson"
        self.key = ""
        self._serial = 0

    # ---- namespaces

    def up(self) -> None:
        """Make the namespaces and start the hub's programs."""
        build()
        ip = ["ip"]
        hub = self.ns("hub")
        self._sh([*ip, "netns", "add", hub])
        self._sh([*ip, "-n", hub, "link", "set", "lo", "up"])
        self._sh([*ip, "-n", hub, "link", "add", "br0", "type", "bridge"])
        self._sh([*ip, "-n", hub, "link", "set", "br0", "up"])
        self._sh([*ip, "-n", hub, "addr", "add", f"{HUB4}/24", "dev", "br0"])
        self._sh([*ip, "-n", hub, "addr", "add", f"{HUB6}/64", "dev", "br0", "nodad"])
        for number, name in enumerate("abc", start=10):
            self.add_host(name, number)
        self._derper_up()
        self.headscale_up()
        self._tls_front_up()
        self.headscale("users", "create", "lab")
        self.key = self.make_key("--reusable")

    def down(self) -> None:
        """End what was started here and remove the namespaces."""
        for process in reversed(self.processes):
            process.stop(timeout=3)
        for name in (*self._hosts, "hub"):
            subprocess.run(["ip", "netns", "del", self.ns(name)], capture_output=True, check=False)

    def add_host(self, name: str, number: int) -> None:
        """Make a namespace on the hub's bridge, with the addresses 192.0.2.*number* and 2001:db8::*number*."""
        ip, hub, ns = ["ip"], self.ns("hub"), self.ns(name)
        self._hosts.append(name)
        self._sh([*ip, "netns", "add", ns])
        self._sh([*ip, "-n", ns, "link", "set", "lo", "up"])
        self._sh([*ip, "-n", ns, "link", "add", "v0", "type", "veth", "peer", "name", f"p{name}", "netns", hub])
        self._sh([*ip, "-n", hub, "link", "set", f"p{name}", "master", "br0", "up"])
        self._sh([*ip, "-n", ns, "link", "set", "v0", "up"])
        self._sh([*ip, "-n", ns, "addr", "add", f"192.0.2.{number}/24", "dev", "v0"])
        self._sh([*ip, "-n", ns, "addr", "add", f"2001:db8::{number}/64", "dev", "v0", "nodad"])

    def ns(self, name: str) -> str:
        """Return the real name of a namespace of this lab."""
        return self.prefix + name

    def drop_udp(self, name: str) -> None:
        """Let no UDP in or out of a namespace (TCP and loopback stay): DERP is all that is left."""
        rules = (
            "table inet lab {\nchain out { type filter hook output priority 0; oifname != lo meta l4proto udp drop; }\n"
            "chain in { type filter hook input priority 0; iifname != lo meta l4proto udp drop; }\n}"
        )
        self._sh(["ip", "netns", "exec", self.ns(name), "nft", rules])

    def allow_udp(self, name: str) -> None:
        """Undo :meth:`drop_udp`."""
        self._sh(["ip", "netns", "exec", self.ns(name), "nft", "delete", "table", "inet", "lab"])

    # ---- programs

    def start(
        self,
        name: str,
        ns: str,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> Process:
        """Start a program in a namespace, as root."""
        return self._popen(name, ["ip", "netns", "exec", self.ns(ns), *argv], env or {}, stdin)

    def start_plain(self, name: str, ns: str, argv: Sequence[str], env: Mapping[str, str] | None = None) -> Process:
        """Start a Python program of ours as an unprivileged user with no capability: ``python *argv``."""
        return self._popen(name, self.plain(ns, argv), env or {})

    def end(self, process: Process) -> None:
        """End a program before the lab does; one that read from a pipe gets its end first."""
        if process.popen.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.popen.stdin.close()
        process.stop(timeout=3)
        self.processes.remove(process)

    def run(self, ns: str, argv: Sequence[str], timeout: float = 60.0, check: bool = True, **env: str) -> str:
        """Run a program in a namespace, as root; return its standard output."""
        return self._run(["ip", "netns", "exec", self.ns(ns), *argv], timeout, check, env)

    def run_plain(self, ns: str, argv: Sequence[str], timeout: float = 60.0, check: bool = True, **env: str) -> str:
        """Run ``python *argv`` as :meth:`start_plain` does; return its standard output."""
        return self._run(self.plain(ns, argv), timeout, check, env)

    def plain(self, ns: str, argv: Sequence[str]) -> list[str]:
        """Return the command that runs ``python *argv`` in a namespace as a plain user without capabilities.

        The interpreter, its packages and this checkout may lie below a home directory that a plain user cannot enter,
        so a private mount namespace shows them at a place that it can.
        """
        mounts = {sys.base_prefix: "py", str(ROOT): "src", _site_packages(): "site"}
        lines = []
        for source, name in mounts.items():
            (self.dir / name).mkdir(exist_ok=True)
            lines.append(f"mount --bind {shlex.quote(source)} {self.dir / name}")
        interpreter = self.dir / "py" / pathlib.Path(os.path.realpath(sys.executable)).relative_to(sys.base_prefix)
        drop = f"setpriv --reuid={PLAIN_UID} --regid={PLAIN_UID} --clear-groups --bounding-set=-all --inh-caps=-all"
        # An interpreter built with a shared library names its own library's place, which the plain user cannot enter.
        run = f'LD_LIBRARY_PATH={self.dir}/py/lib exec {drop} --no-new-privs {interpreter} "$@"'
        script = " && ".join([*lines, f"cd {self.dir}/src", run])
        return ["ip", "netns", "exec", self.ns(ns), "unshare", "--mount", "sh", "-c", script, "sh", *argv]

    def plain_dir(self, name: str) -> pathlib.Path:
        """Make a directory that the plain user owns."""
        path = self.dir / name
        path.mkdir(mode=0o700, exist_ok=True)
        os.chown(path, PLAIN_UID, PLAIN_UID)
        return path

    def official(self, name: str, ns: str, *up_flags: str) -> "Official":
        """Start a userspace ``tailscaled`` and join it."""
        self._serial += 1
        state = self.dir / f"{name}-{self._serial}"
        state.mkdir()
        port = 1054 + self._serial
        argv = [str(BIN / "tailscaled"), "--tun=userspace-networking", "--state=mem:", f"--statedir={state}"]
        argv += [f"--socket={state}/sock", f"--socks5-server=127.0.0.1:{port}", "--port=0"]
        process = self.start(name, ns, argv)
        client = Official(self, ns, name, process, state / "sock", port)
        eventually(lambda: (state / "sock").exists())
        client.cli("up", f"--login-server={CONTROL_URL}", f"--authkey={self.key}", f"--hostname={name}", *up_flags)
        return client

    # ---- Headscale

    def headscale(self, *args: str) -> str:
        """Run Headscale's own command line."""
        command = [str(BIN / "headscale"), "-c", str(self.dir / "hs" / "config.yaml"), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout

    def make_key(self, *flags: str) -> str:
        """Return a new auth key of user ``lab``."""
        return self.headscale("preauthkeys", "create", "-u", "1", "-e", "24h", *flags).split()[-1]

    def nodes(self) -> list[dict[str, Any]]:
        """Return Headscale's list of nodes."""
        found: list[dict[str, Any]] = json.loads(self.headscale("nodes", "list", "-o", "json")) or []
        return found

    def set_policy(self, policy: Mapping[str, Any]) -> None:
        """Write the policy file and make Headscale read it."""
        self.policy.write_text(json.dumps(policy), encoding="utf-8")
        self.process("headscale").popen.send_signal(signal.SIGHUP)

    def headscale_up(self) -> None:
        """Start Headscale, or start it again on the same database."""
        hs = self.dir / "hs"
        hs.mkdir(exist_ok=True)
        if not (hs / "config.yaml").exists():
            self.policy.write_text(json.dumps(ALLOW_ALL), encoding="utf-8")
            (hs / "config.yaml").write_text(_headscale_config(hs, self.policy), encoding="utf-8")
        argv = [str(BIN / "headscale"), "-c", str(hs / "config.yaml"), "serve"]
        self.start("headscale", "hub", argv).wait_for("serving HTTP on")

    def headscale_down(self) -> None:
        """End Headscale."""
        process = self.process("headscale")
        process.stop()
        self.processes.remove(process)

    def process(self, name: str) -> Process:
        """Return the newest program of that name."""
        return next(p for p in reversed(self.processes) if p.name == name)

    # ---- inside

    def _derper_up(self) -> None:
        derp, hs = self.dir / "derp", self.dir / "hs"
        derp.mkdir()
        hs.mkdir(exist_ok=True)
        argv = [str(BIN / "derper"), "-hostname", HUB4, "-certmode", "manual", "-certdir", str(derp), "-a", ":8443"]
        # Official clients insist on TLS to a DERP server; a self-signed certificate is accepted when the map pins it.
        log = self.start("derper", "hub", [*argv, "-http-port", "-1", "-stun", "-c", str(derp / "key")])
        pin = log.wait_for("sha256-raw:").split("sha256-raw:")[1][:64]
        node = f'{{name: 900a, regionid: 900, hostname: {HUB4}, ipv4: {HUB4}, ipv6: "{HUB6}", stunport: 3478'
        (hs / "derp.yaml").write_text(
            "regions:\n  900:\n    regionid: 900\n    regioncode: lab\n    regionname: lab\n    nodes:\n"
            f'      - {node}, derpport: 8443, certname: "sha256-raw:{pin}"}}\n',
            encoding="utf-8",
        )

    def _tls_front_up(self) -> None:
        # A client that lost its control connection dials 443 with TLS for its next attempts; any certificate will do.
        hs = self.dir / "hs"
        make = ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-subj", f"/CN={HUB4}", "-days", "30"]
        self._sh([*make, "-keyout", f"{hs}/tls.key", "-out", f"{hs}/tls.crt"])
        listen = f"OPENSSL-LISTEN:443,reuseaddr,fork,cert={hs}/tls.crt,key={hs}/tls.key,verify=0"
        self.start("front", "hub", ["socat", listen, "TCP:127.0.0.1:8080"])

    def _popen(
        self, name: str, argv: Sequence[str], env: Mapping[str, str], stdin: int = subprocess.DEVNULL
    ) -> Process:
        self._serial += 1
        log = self.dir / f"{name}-{self._serial}.log"
        with log.open("wb") as out:
            popen = subprocess.Popen(argv, stdin=stdin, stdout=out, stderr=subprocess.STDOUT, env=self._env(env))
        process = Process(name, popen, log)
        self.processes.append(process)
        return process

    def _run(self, argv: Sequence[str], timeout: float, check: bool, env: Mapping[str, str]) -> str:
        done = subprocess.run(
            argv, capture_output=True, timeout=timeout, check=False, env=self._env(env), stdin=subprocess.DEVNULL
        )
        if check and done.returncode != 0:
            text = (done.stdout + done.stderr).decode(errors="replace")
            raise AssertionError(f"{shlex.join(argv)} ended with {done.returncode}:\n{text[-3000:]}")
        return done.stdout.decode(errors="replace")

    def _env(self, extra: Mapping[str, str]) -> dict[str, str]:
        keep = {name: os.environ[name] for name in ("PATH", "LANG", "TERM") if name in os.environ}
        path = f"{self.dir}/src:{self.dir}/site"
        return {**keep, **QUIET, "HOME": str(self.dir), "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **extra}

    @staticmethod
    def _sh(argv: Sequence[str]) -> None:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise AssertionError(f"{shlex.join(argv)}: {done.stderr.strip()}")


class Official:
    """An official client: ``tailscaled`` in userspace mode and its command line."""

    def __init__(self, lab: Lab, ns: str, name: str, process: Process, socket: pathlib.Path, port: int) -> None:
        self.lab = lab
        self.ns = ns
        self.name = name
        self.process = process
        self.socket = socket
        self.socks_port = port

    def argv(self, *args: str) -> list[str]:
        """Return the command line of ``tailscale *args`` (to be run in its namespace)."""
        return [str(BIN / "tailscale"), f"--socket={self.socket}", *args]

    def cli(self, *args: str, timeout: float = 60.0, check: bool = True) -> str:
        """Run ``tailscale *args``; return its standard output."""
        return self.lab.run(self.ns, self.argv(*args), timeout, check)

    def curl(self, *args: str, timeout: float = 120.0, check: bool = True) -> str:
        """Run ``curl`` through this client's SOCKS5 server; return its standard output."""
        proxy = f"127.0.0.1:{self.socks_port}"
        return self.lab.run(self.ns, ["curl", "-sS", "--socks5-hostname", proxy, *args], timeout, check)

    def reach(self, name: str) -> None:
        """Wait until a peer of that name answers a ping.

        A dial in the moment between a node's registration and its first report of endpoints costs the five seconds of
        a WireGuard retry.
        """
        eventually(lambda: "pong" in self.cli("ping", "-c", "5", name, check=False), 30)

    def knows(self, name: str) -> bool:
        """Tell whether a peer of that name is in its network map."""
        peers = json.loads(self.cli("status", "--json")).get("Peer") or {}
        return any(peer["DNSName"].startswith(name + ".") for peer in peers.values())


@contextlib.contextmanager
def running_lab() -> Iterator[Lab]:
    """Bring a lab up in a directory that a plain user may enter, and take it down again."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="tsnetpy-lab-"))
    directory.chmod(0o755)
    lab = Lab(directory, f"tp{os.getpid()}-")
    try:
        lab.up()
        yield lab
    finally:
        lab.down()
        shutil.rmtree(directory, ignore_errors=True)


def _site_packages() -> str:
    import anyio

    return str(pathlib.Path(anyio.__file__).parents[1])


def _headscale_config(hs: pathlib.Path, policy: pathlib.Path) -> str:
    return f"""\
server_url: {CONTROL_URL}
listen_addr: 0.0.0.0:8080
metrics_listen_addr: 127.0.0.1:9090
grpc_listen_addr: 127.0.0.1:50443
grpc_allow_insecure: true
noise: {{private_key_path: {hs}/noise.key}}
prefixes: {{v4: 100.64.0.0/10, v6: "fd7a:115c:a1e0::/48", allocation: sequential}}
derp: {{server: {{enabled: false}}, urls: [], paths: [{hs}/derp.yaml], auto_update_enabled: false}}
disable_check_updates: true
database: {{type: sqlite, sqlite: {{path: {hs}/db.sqlite, write_ahead_log: true}}}}
log: {{level: info}}
policy: {{mode: file, path: {policy}}}
dns: {{magic_dns: true, base_domain: lab.test, override_local_dns: false, nameservers: {{global: []}}}}
unix_socket: {hs}/sock
unix_socket_permission: "0770"
logtail: {{enabled: false}}
"""
