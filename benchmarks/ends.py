"""Both ends of a pair, made afresh in the lab's namespaces: peers of a tailnet, and of plain WireGuard tunnels.

Servers are in the namespace ``a`` and clients in ``b``; those of plain tunnels have a pair of their own, because nodes
of a tailnet would take a tunnel between their hosts for one more way. An end of the kind ``kernel`` is a wireguard-go
with a TUN, and the Go peer on the kernel's sockets; what it uses is what both use.
"""

import base64
import json
import os
import pathlib
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from benchmarks.figures import COMPILED, KERNEL, TSNET, Pair
from tests.interop.lab import BIN, CONTROL_URL, PLAIN_UID, Lab, Process, eventually
from tsnetpy.base.entropy import SystemEntropy
from tsnetpy.crypto import dh

PLAIN_SERVER, PLAIN_CLIENT = ("ks", 20), ("kc", 21)
"""Name and number of the hosts of plain tunnels."""
MTU: Final = 1280
"""Of every tunnel: a tailnet's, so that all pairs cut the same packets."""
READY_SECONDS: Final = 90.0


def kernel_missing() -> str | None:
    """Return why there can be no ends of the kind ``kernel``, or ``None``."""
    for tool in ("wireguard-go", "wg"):
        if shutil.which(tool) is None:
            return f"needs {tool}"
    if not pathlib.Path("/dev/net/tun").exists():
        return "needs /dev/net/tun for wireguard-go"
    return None


@dataclass(slots=True)
class End:
    """One end: the peer, and the programs that work for it."""

    kind: str
    process: Process
    helpers: tuple[Process, ...] = ()
    _answers: int = 0

    def address(self) -> str:
        """Wait until it is up; return its first address in the network."""
        self.process.wait_for('"ready"', READY_SECONDS)
        ready = json.loads(_objects(self.process)[0])
        if ready.get("compiled", False) is not (self.kind == COMPILED):
            raise AssertionError(f"{self.process.name} runs on the wrong core")
        self._answers = 1
        ip: str = ready["ips"][0]
        return ip

    def ask(self, mode: str, seconds: float, parallel: int) -> dict[str, float]:
        """Let a client do one load; return its figures."""
        pipe = self.process.popen.stdin
        assert pipe is not None
        try:
            pipe.write(f"{mode} {seconds} {parallel}\n".encode())
            pipe.flush()
        except BrokenPipeError:
            raise AssertionError(f"has ended: {self.process.output()[-500:]}") from None
        deadline = time.monotonic() + seconds + 30
        while len(found := _objects(self.process)) <= self._answers:
            if self.process.popen.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"no answer: {self.process.output()[-500:]}")
            time.sleep(0.02)
        self._answers = len(found)
        figures: dict[str, float] = json.loads(found[-1])
        return figures

    def complaint(self) -> str:
        """Return the last thing that it said of its own accord."""
        lines = [line for line in self.process.output().splitlines() if not line.startswith("{")]
        return lines[-1] if lines else ""

    def cpu_seconds(self) -> float:
        """Return the processor time used so far."""
        return sum(process.cpu_seconds() for process in (self.process, *self.helpers))

    def max_rss_mib(self) -> float:
        """Return the memory high-water mark."""
        return sum(process.max_rss_kib() for process in (self.process, *self.helpers)) / 1024


def _objects(process: Process) -> list[str]:
    """Return the lines with JSON objects that *process* printed and ended."""
    return [line for line in process.output().rpartition("\n")[0].splitlines() if line.startswith("{")]


@dataclass(slots=True)
class Tunnel:
    """Keys, names and addresses of one plain WireGuard tunnel."""

    number: int
    keys: list[bytes] = field(default_factory=lambda: [dh.generate(SystemEntropy()) for _ in range(2)])

    @property
    def port(self) -> int:
        return 51900 + self.number

    def inner(self, side: int) -> str:
        """Return the address inside of the server (0) or the client (1)."""
        return f"10.99.{self.number}.{1 + side}"

    def device(self, side: int) -> str:
        return f"tb{os.getpid() % 1_000_000}x{self.number}{'sc'[side]}"

    def conf(self, side: int) -> tuple[str, str]:
        """Return the sections of a file of one end: the interface's and the peer's."""
        key, peer = (base64.b64encode(raw).decode() for raw in (self.keys[side], dh.public_key(self.keys[1 - side])))
        where = f"Endpoint = 192.0.2.{PLAIN_SERVER[1]}:{self.port}\n" if side else ""
        listen = "" if side else f"ListenPort = {self.port}\n"
        return (
            f"[Interface]\nPrivateKey = {key}\n{listen}",
            f"[Peer]\nPublicKey = {peer}\nAllowedIPs = {self.inner(1 - side)}/32\n{where}",
        )


@dataclass(slots=True)
class Link:
    """A server, then its client, and the tunnel between them if it is a plain one."""

    server: End
    tunnel: Tunnel | None = None
    client: End | None = None


class Ends:
    """Makes ends in a lab.

    Args:
        compiled: folder below the checkout that ends of the kind ``compiled`` take ``tsnetpy`` from.
    """

    def __init__(self, lab: Lab, compiled: str) -> None:
        self._lab = lab
        self._compiled = compiled
        self._serial = 0
        self._tunnels = 0
        # A client of thousands of connections: the kernel keeps a closed one's port for a minute unless told otherwise.
        sysctl = "/proc/sys/net/ipv4"
        reuse = f"echo 1024 65535 > {sysctl}/ip_local_port_range && echo 1 > {sysctl}/tcp_tw_reuse"
        for name, number in (PLAIN_SERVER, PLAIN_CLIENT):
            lab.add_host(name, number)
        lab.run(PLAIN_CLIENT[0], ["sh", "-c", reuse])

    def open(self, pair: Pair, behind: Sequence[str] = ()) -> Link:
        """Start a server; *behind* are more of its flags."""
        if KERNEL not in pair:
            return Link(End(pair.server, self.tailnet(f"{pair.server}-server", pair.server, "a", behind)))
        self._tunnels += 1
        tunnel = Tunnel(self._tunnels)
        helper = self._wireguard_go(tunnel, 0)
        argv = [str(BIN / "tspeer"), "-plain", tunnel.inner(0)]
        return Link(End(KERNEL, self._lab.start("plain-server", PLAIN_SERVER[0], argv), (helper,)), tunnel)

    def dial(self, pair: Pair, link: Link) -> None:
        """Wait until the server is up, and start its client."""
        flags = ["-mode", "load", "-to", link.server.address()]
        tunnel = link.tunnel
        if tunnel is None:
            process = self.tailnet(f"{pair.client}-client", pair.client, "b", flags, subprocess.PIPE)
            link.client = End(pair.client, process)
        elif pair.client == KERNEL:
            helper = self._wireguard_go(tunnel, 1)
            argv = [str(BIN / "tspeer"), "-plain", tunnel.inner(1), *flags]
            process = self._lab.start("plain-client", PLAIN_CLIENT[0], argv, stdin=subprocess.PIPE)
            link.client = End(KERNEL, process, (helper,))
        else:
            name, ns = f"{pair.client}-wg-client", PLAIN_CLIENT[0]
            argv = self.python(pair.client, ns, ["-wg", self._quick(tunnel), *flags])
            link.client = End(pair.client, self._lab.start(name, ns, argv, self.env(), subprocess.PIPE))

    def tailnet(self, name: str, kind: str, ns: str, flags: Sequence[str], stdin: int = subprocess.DEVNULL) -> Process:
        """Start a peer that joins the tailnet."""
        self._serial += 1
        joining = ["-control", CONTROL_URL, "-authkey", self._lab.key, "-hostname", f"{name}-{self._serial}"]
        if kind != TSNET:
            return self._lab.start(name, ns, self.python(kind, ns, [*joining, *flags]), self.env(), stdin)
        # As root: without SO_MARK it binds to the interface of the default route, which the lab does not have.
        state = self._lab.dir / f"state-{self._serial}"
        state.mkdir()
        return self._lab.start(name, ns, [str(BIN / "tspeer"), *joining, "-dir", str(state), *flags], None, stdin)

    def python(self, kind: str, ns: str, flags: Sequence[str]) -> list[str]:
        """Return the command of our peer, as a plain user in *ns*."""
        module = ["-m", "benchmarks.peer"]
        if kind == COMPILED:
            code = f"import runpy, sys; sys.path.insert(0, {self._compiled!r}); "
            module = ["-c", code + "runpy.run_module('benchmarks.peer', run_name='__main__', alter_sys=True)"]
        # Lab.start enters the namespace once more, which does nothing.
        return self._lab.plain(ns, [*module, *flags])

    def env(self) -> dict[str, str]:
        """Let Python keep compiled modules, as an installation has them; the checkout itself stays as it is."""
        return {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(self._lab.plain_dir("pycache"))}

    def _wireguard_go(self, tunnel: Tunnel, side: int) -> Process:
        """Start one end of a tunnel in the kernel."""
        lab, ns, device = self._lab, (PLAIN_SERVER, PLAIN_CLIENT)[side][0], tunnel.device(side)
        process = lab.start("wireguard-go", ns, ["wireguard-go", "-f", device], {"LOG_LEVEL": "error"})
        eventually(pathlib.Path(f"/var/run/wireguard/{device}.sock").exists)
        conf = lab.dir / f"{device}.conf"
        conf.write_text("".join(tunnel.conf(side)), encoding="utf-8")
        conf.chmod(0o600)
        lab.run(ns, ["wg", "setconf", device, str(conf)])
        lab.run(ns, ["ip", "addr", "add", f"{tunnel.inner(side)}/24", "dev", device])
        lab.run(ns, ["ip", "link", "set", device, "mtu", str(MTU), "up"])
        return process

    def _quick(self, tunnel: Tunnel) -> str:
        """Write the file of our end of a tunnel, for the plain user; return its name."""
        interface, peer = tunnel.conf(1)
        path = self._lab.plain_dir("conf") / f"{tunnel.device(1)}.conf"
        path.write_text(f"{interface}Address = {tunnel.inner(1)}/24\nMTU = {MTU}\n{peer}", encoding="utf-8")
        os.chown(path, PLAIN_UID, PLAIN_UID)
        path.chmod(0o600)
        return str(path)
