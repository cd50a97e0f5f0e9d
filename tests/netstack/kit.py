"""Two nodes on an internet in memory: data planes, pumps, no control plane."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio

from tsnetpy.base.addr import Endpoint, IpPrefix, parse_ip
from tsnetpy.crypto import dh
from tsnetpy.dataplane import DataPlane, DataPlaneConfig, PeerSpec
from tsnetpy.ipstack.filter import ANY_IP, DstRange, FilterRule
from tsnetpy.netstack import tcp
from tsnetpy.netstack.pump import Pump
from tsnetpy.netstack.tcp import TcpListener, TcpStream
from tsnetpy.runtime.underlay import UnderlayConfig, UnderlayPeer
from tsnetpy.tcp import TcpConfig
from tsnetpy.testing.entropy import SeededEntropy
from tsnetpy.testing.internet import Internet, Link, MemoryUnderlay

ALLOW_ALL = (FilterRule(ANY_IP, tuple(DstRange(r, 0, 65535) for r in ANY_IP)),)
BLOCKED_PORT = 999
# What the tests' policy lets in: all but one port.
RULES = (
    FilterRule(
        ANY_IP, tuple(DstRange(r, a, b) for r in ANY_IP for a, b in ((0, BLOCKED_PORT - 1), (BLOCKED_PORT + 1, 65535)))
    ),
)


@dataclass
class Host:
    """One node without a control plane."""

    pump: Pump
    underlay: MemoryUnderlay
    ip: bytes
    ip6: bytes
    key: bytes
    """Public node key."""

    def at(self, port: int) -> Endpoint:
        return Endpoint(self.ip, port)


@dataclass
class Pair:
    """Two hosts that know each other."""

    internet: Internet
    a: Host
    b: Host

    async def connected(self, port: int = 80) -> tuple[TcpStream, TcpStream]:
        """Return both ends of a new connection from a to b."""
        listener = tcp.listen(self.b.pump, port)
        accepted: list[TcpStream] = []

        async def accept() -> None:
            accepted.append(await listener.accept())

        async with anyio.create_task_group() as group:
            group.start_soon(accept)
            stream = await tcp.connect(self.a.pump, self.b.at(port))
        await listener.aclose()
        return stream, accepted[0]

    def listen(self, port: int, backlog: int = 128) -> TcpListener:
        return tcp.listen(self.b.pump, port, backlog=backlog)


@asynccontextmanager
async def pair(link: Link | None = None, *, seed: int = 7, tcp_config: TcpConfig | None = None) -> AsyncIterator[Pair]:
    """Run two hosts until the block ends."""
    internet = Internet(seed, link)
    entropy = [SeededEntropy(f"{seed}/{n}") for n in range(2)]
    keys = [dh.generate(e) for e in entropy]
    ips = [parse_ip("100.64.0.1"), parse_ip("100.64.0.2")]
    ips6 = [parse_ip("fd7a:115c:a1e0::1"), parse_ip("fd7a:115c:a1e0::2")]
    hosts = []
    for n in range(2):
        other = dh.public_key(keys[1 - n])
        underlay = internet.underlay()
        underlay.configure(UnderlayConfig(keys[n], (UnderlayPeer(other, None),)))
        plane = DataPlane(entropy[n], tcp_config=tcp_config)
        pump = Pump(plane, underlay)
        pump.configure(
            DataPlaneConfig(
                private_key=keys[n],
                addresses=(ips[n], ips6[n]),
                peers=(PeerSpec(other, (IpPrefix(ips[1 - n], 32), IpPrefix(ips6[1 - n], 128))),),
                filter_rules=RULES,
            )
        )
        hosts.append(Host(pump, underlay, ips[n], ips6[n], dh.public_key(keys[n])))
    async with anyio.create_task_group() as group:
        for host in hosts:
            await group.start(host.pump.run)
            await group.start(_run_underlay, host)
        yield Pair(internet, hosts[0], hosts[1])
        group.cancel_scope.cancel()


async def _run_underlay(host: Host, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    await host.underlay.run(host.pump.deliver, task_status=task_status)
