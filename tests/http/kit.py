"""Hosts of features on two pumps in memory: names, dials and listeners that go through a tunnel."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.abc import ByteStream, Listener, TaskGroup

from tests.netstack.kit import Pair, pair
from tsnetpy.base.addr import Endpoint, IpBytes, parse_ip
from tsnetpy.base.errors import DialError
from tsnetpy.netstack import tcp
from tsnetpy.netstack.attributes import WhoIs
from tsnetpy.netstack.pump import Pump
from tsnetpy.netstack.tcp import TcpListener, TcpStream
from tsnetpy.netstack.udp import UdpSocket
from tsnetpy.runtime.watch import Watch
from tsnetpy.serve import ServeConfig, run
from tsnetpy.tailcfg import NetMap
from tsnetpy.testing.internet import Link

NAMES = {"client": "100.64.0.1", "server": "100.64.0.2", "server6": "fd7a:115c:a1e0::2"}


class TunnelHost:
    """A node host without a control plane."""

    def __init__(self, pump: Pump, name: str) -> None:
        self.pump = pump
        self.name = name
        self.addresses: tuple[IpBytes, ...] = (parse_ip(NAMES[name]),)
        self.netmap: Watch[NetMap | None] = Watch(None)
        self.dialled: list[TcpStream] = []

    async def connect_tcp(self, host: str, port: int) -> ByteStream:
        if host not in NAMES:
            raise DialError(f"{host}: no such name in the tailnet", errno=113)
        stream = await tcp.connect(self.pump, Endpoint(parse_ip(NAMES[host]), port))
        self.dialled.append(stream)
        return stream

    async def create_tcp_listener(self, port: int, *, host: str | None = None) -> TcpListener:
        await anyio.lowlevel.checkpoint()
        return tcp.listen(self.pump, port)

    async def create_udp_socket(self, port: int = 0, *, host: str | None = None) -> UdpSocket:
        raise DialError("no datagrams here")

    def whois(self, address: str) -> WhoIs | None:
        return None


class Lab:
    """A client and a server, and a task group for what serves."""

    def __init__(self, net: Pair, group: TaskGroup) -> None:
        self.net = net
        self.group = group
        self.client = TunnelHost(net.a.pump, "client")
        self.server = TunnelHost(net.b.pump, "server")

    async def serve(self, config: ServeConfig) -> None:
        """Run Serve on the server."""

        async def work(*, task_status: anyio.abc.TaskStatus[Any]) -> None:
            await run(self.server, config, task_status=task_status)

        await self.group.start(work)

    def serve_listener(self, listener: Listener[Any], handler: Callable[[Any], Any]) -> None:
        """Run *handler* for what *listener* accepts."""
        self.group.start_soon(listener.serve, handler)

    async def all_forgotten(self) -> None:
        """Wait until neither stack holds a connection that somebody has."""
        with anyio.fail_after(300):
            while self.net.a.pump.sockets or self.net.b.pump.sockets:  # noqa: ASYNC110 - virtual time
                await anyio.sleep(1)


@asynccontextmanager
async def lab(link: Link | None = None) -> AsyncIterator[Lab]:
    async with pair(link) as net, anyio.create_task_group() as group:
        yield Lab(net, group)
        group.cancel_scope.cancel()


async def pieces(parts: Iterable[bytes]) -> AsyncIterator[bytes]:
    """A request body that comes bit by bit."""
    for part in parts:
        yield part
        await anyio.lowlevel.checkpoint()
