"""In-memory byte streams, a listener of them, and a node host for tests of features that serve streams."""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import anyio
from anyio.abc import ByteStream, Listener, SocketAttribute, TaskGroup

from tsnetpy.base.addr import IpBytes, parse_ip
from tsnetpy.base.errors import DialError
from tsnetpy.netstack.attributes import WhoIs
from tsnetpy.netstack.udp import UdpSocket
from tsnetpy.runtime.watch import Watch
from tsnetpy.tailcfg import NetMap

PIPE_BYTES = 64 * 1024


class _Pipe:
    """One direction: a bounded buffer, its end, and a breakage."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.ended = False
        self.broken = False
        self.changed = anyio.Event()

    def wake(self) -> None:
        event, self.changed = self.changed, anyio.Event()
        event.set()


class MemoryStream(ByteStream):
    """One end of a duplex stream; behaves like a TCP connection, back-pressure included."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe, local: tuple[str, int], remote: tuple[str, int]) -> None:
        self._in, self._out = incoming, outgoing
        self._local, self._remote = local, remote
        self._closed = False
        self.sends = 0
        """Calls of send(): a coalesced response needs one."""

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await anyio.lowlevel.checkpoint()
        while True:
            if self._closed:
                raise anyio.ClosedResourceError
            if self._in.broken:
                raise anyio.BrokenResourceError
            if self._in.buffer:
                data = bytes(self._in.buffer[:max_bytes])
                del self._in.buffer[:max_bytes]
                self._in.wake()
                return data
            if self._in.ended:
                raise anyio.EndOfStream
            await self._in.changed.wait()

    async def send(self, item: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        self.sends += 1
        view = memoryview(item)
        while True:
            if self._closed or self._out.ended:
                raise anyio.ClosedResourceError
            if self._out.broken:
                raise anyio.BrokenResourceError
            space = PIPE_BYTES - len(self._out.buffer)
            if space > 0 and view:
                self._out.buffer += view[:space]
                view = view[space:]
                self._out.wake()
            if not view:
                return
            await self._out.changed.wait()

    async def send_eof(self) -> None:
        self._out.ended = True
        self._out.wake()
        await anyio.lowlevel.checkpoint()

    def abort(self) -> None:
        """Reset: both directions break at once for the other end."""
        self._closed = True
        for pipe in (self._in, self._out):
            pipe.broken = True
            pipe.wake()

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._out.ended = True
            # What the other end still sends has nowhere to go, as after a kernel's RST.
            self._in.broken = True
            self._out.wake()
            self._in.wake()
        await anyio.lowlevel.checkpoint()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {
            SocketAttribute.local_address: lambda: self._local,
            SocketAttribute.remote_address: lambda: self._remote,
            SocketAttribute.remote_port: lambda: self._remote[1],
            SocketAttribute.local_port: lambda: self._local[1],
        }


def stream_pair(
    client: tuple[str, int] = ("100.64.0.3", 40000), server: tuple[str, int] = ("100.64.0.1", 80)
) -> tuple[MemoryStream, MemoryStream]:
    """Return the client's and the server's end of a new connection."""
    up, down = _Pipe(), _Pipe()
    return MemoryStream(down, up, client, server), MemoryStream(up, down, server, client)


class MemoryListener(Listener[ByteStream]):
    """Accepts the connections that :meth:`connect` makes."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self._waiting: deque[MemoryStream] = deque()
        self._event = anyio.Event()
        self.closed = False

    def connect(self, client: tuple[str, int] = ("100.64.0.3", 40000)) -> MemoryStream:
        if self.closed:
            raise ConnectionRefusedError
        near, far = stream_pair(client, self.address)
        self._waiting.append(far)
        self._event.set()
        return near

    async def serve(self, handler: Callable[[ByteStream], Any], task_group: TaskGroup | None = None) -> None:
        assert task_group is not None
        while True:
            while self._waiting:
                task_group.start_soon(handler, self._waiting.popleft())
            await self._event.wait()
            self._event = anyio.Event()

    async def aclose(self) -> None:
        self.closed = True
        await anyio.lowlevel.checkpoint()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {SocketAttribute.local_address: lambda: self.address}


class MemoryHost:
    """A node host whose listeners are in memory."""

    def __init__(self, name: str = "server.lab.test", who: Mapping[str, WhoIs] | None = None) -> None:
        self.name = name
        self.addresses: tuple[IpBytes, ...] = (parse_ip("100.64.0.1"), parse_ip("fd7a:115c:a1e0::1"))
        self.netmap: Watch[NetMap | None] = Watch(None)
        self.listeners: dict[int, MemoryListener] = {}
        self._who = who or {}

    async def connect_tcp(self, host: str, port: int) -> ByteStream:
        return self.listeners[port].connect()

    async def create_tcp_listener(self, port: int, *, host: str | None = None) -> Listener[ByteStream]:
        await anyio.lowlevel.checkpoint()
        if port in self.listeners and not self.listeners[port].closed:
            raise DialError(f"port {port} is taken")
        self.listeners[port] = MemoryListener(("100.64.0.1", port))
        return self.listeners[port]

    async def create_udp_socket(self, port: int = 0, *, host: str | None = None) -> UdpSocket:
        raise DialError("no datagrams here")

    def whois(self, address: str) -> WhoIs | None:
        return self._who.get(address)


async def settle(rounds: int = 60) -> None:
    """Let every task that can run do so. In memory each step takes a few turns of the loop, never time."""
    for _ in range(rounds):
        await anyio.lowlevel.checkpoint()


async def receive_all(stream: ByteStream) -> bytes:
    """Receive until the end."""
    data = b""
    try:
        while True:
            data += await stream.receive()
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        return data
