"""UDP over the tailnet: datagrams with addresses, a bounded receive ring in the engine, no real socket."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import anyio
from anyio import BusyResourceError, ClosedResourceError
from anyio.abc import SocketAttribute, UnreliableObjectStream
from anyio.lowlevel import cancel_shielded_checkpoint, checkpoint_if_cancelled

from tsnetpy.base.addr import Endpoint, IpBytes, format_ip, parse_ip
from tsnetpy.base.errors import LocalProtocolError
from tsnetpy.ipstack import UdpSocket as StackUdpSocket
from tsnetpy.runtime.loop import Wakeup

from .attributes import WhoIs
from .errors import from_local_error
from .pump import Pump

UdpPacket = tuple[bytes, tuple[str, int]]
"""A datagram's payload and the other end, ``(address, port)``; to send, the address may be a name."""


@dataclass(frozen=True, slots=True)
class Datagram:
    """One received datagram with both of its addresses."""

    data: bytes
    remote: tuple[str, int]
    """Who sent it."""
    local_address: str
    """Which of our addresses it was sent to."""
    peer: WhoIs | None
    """The sender's authenticated identity."""


@final
class UdpSocket(UnreliableObjectStream[UdpPacket]):
    """A UDP socket on the tailnet, named as anyio names things.

    ``receive()`` gives ``(data, (host, port))`` and ``send()`` takes the same, so ``async for data, address in socket``
    works. The engine keeps a bounded number of received datagrams and drops the oldest when nobody reads.
    """

    __slots__ = ("_closed", "_event", "_pump", "_receiving", "_resolve", "_socket")

    def __init__(self, pump: Pump, socket: StackUdpSocket, resolve: Callable[[str], IpBytes] = parse_ip) -> None:
        self._pump = pump
        self._socket = socket
        self._resolve = resolve
        self._event: Wakeup | None = None
        self._receiving = False
        self._closed = False
        socket.owner = self
        pump.others.add(self)

    def on_ready(self, bits: int) -> None:
        """Wake the receiving task (called by the pump)."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def receive(self) -> UdpPacket:
        """Return the next datagram as ``(data, (host, port))``.

        Raises:
            ClosedResourceError: the socket was closed.
            BusyResourceError: another task is receiving.
        """
        data, remote, _ = await self._receive()
        return data, (format_ip(remote.ip), remote.port)

    async def receive_datagram(self) -> Datagram:
        """Return the next datagram with its destination and the sender's identity; raises like :meth:`receive`."""
        data, remote, local = await self._receive()
        return Datagram(data, (format_ip(remote.ip), remote.port), format_ip(local), self._pump.identify(remote.ip))

    async def send(self, item: UdpPacket) -> None:
        """Send ``(data, (host, port))``. Like any datagram it may be lost, and there is no word of it.

        Raises:
            ClosedResourceError: the socket was closed.
            DialError: the name does not resolve, or the datagram is too long (``EMSGSIZE``).
        """
        data, (host, port) = item
        await self.sendto(data, host, port)

    async def sendto(self, data: bytes, host: str, port: int) -> None:
        """Send *data* to *port* of *host*; see :meth:`send`."""
        await checkpoint_if_cancelled()
        if self._closed:
            raise ClosedResourceError
        remote = Endpoint(self._resolve(host), port)
        now = self._pump.now()
        try:
            self._socket.send_to(data, remote, now)
        except LocalProtocolError as failure:
            raise from_local_error(failure, remote) from failure
        self._pump.flush(now)
        await cancel_shielded_checkpoint()

    async def aclose(self) -> None:
        """Close the socket; datagrams that wait are dropped."""
        if not self._closed:
            self._closed = True
            self._pump.others.discard(self)
            self._socket.close()
            self.on_ready(0)
        await anyio.lowlevel.checkpoint()

    @property
    def local(self) -> Endpoint:
        """The port bound to; the address is empty for "each of our own"."""
        return self._socket.local

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """``SocketAttribute.local_address`` and ``local_port``."""
        local = self.local
        return {
            SocketAttribute.local_address: lambda: (format_ip(local.ip) if local.ip else "", local.port),
            SocketAttribute.local_port: lambda: local.port,
        }

    async def _receive(self) -> tuple[bytes, Endpoint, IpBytes]:
        await checkpoint_if_cancelled()
        if self._receiving:
            raise BusyResourceError("receiving from")
        self._receiving = True
        waited = False
        try:
            while True:
                if self._closed or self._pump.stopped:
                    raise ClosedResourceError
                found = self._socket.recv_from()
                if found is not None:
                    if not waited:
                        await cancel_shielded_checkpoint()
                    return found
                self._event = self._pump.wakeup()
                waited = True
                await self._event.wait()
        finally:
            self._receiving = False
            self._event = None


def bind(
    pump: Pump, port: int = 0, *, ip: IpBytes | None = None, resolve: Callable[[str], IpBytes] = parse_ip
) -> UdpSocket:
    """Bind to *port* (0: a free one) of *ip* (``None``: each of our own addresses).

    Raises:
        DialError: the port is taken (``EADDRINUSE``), or *ip* is not ours (``EADDRNOTAVAIL``).
    """
    try:
        socket = pump.stack.udp_bind(port, ip)
    except LocalProtocolError as failure:
        raise from_local_error(failure, f"port {port}") from failure
    return UdpSocket(pump, socket, resolve)
