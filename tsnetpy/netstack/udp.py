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
from .errors import bind_address, dial_error, from_local_error
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

    async def sendto(self, data: bytes, host: str, port: int, *, source: str | None = None, segment: int = 0) -> None:
        """Send *data* to *port* of *host*; see :meth:`send`.

        Args:
            data: the datagram.
            host: an address, or a name if the socket knows any.
            port: where to.
            source: which of our addresses to send from; a server on all of them answers from where it was asked
                (:attr:`Datagram.local_address`).
            segment: if not 0, send *data* as several datagrams of so many bytes; the last may be shorter.
        """
        await checkpoint_if_cancelled()
        await self._send(data, Endpoint(self._resolve(host), port), bind_address(source), segment)

    async def _send(self, data: bytes, remote: Endpoint, source: IpBytes | None, segment: int) -> None:
        if self._closed or self._pump.stopped:
            raise ClosedResourceError
        self._raise_error(remote)
        now = self._pump.now()
        try:
            self._socket.send_to(data, remote, now, source, segment)
        except LocalProtocolError as failure:
            raise from_local_error(failure, remote) from failure
        self._pump.flush(now)
        await cancel_shielded_checkpoint()

    def _raise_error(self, remote: Endpoint | None) -> None:
        """Raise what an ICMP error said about the connected end, once."""
        reason = self._socket.take_error()
        if reason is not None and remote is not None:
            raise dial_error(reason, remote)

    def set_options(self, *, hop_limit: int | None = None, traffic_class: int | None = None) -> None:
        """Choose fields of the IP headers of what is sent.

        Args:
            hop_limit: 1-255 (IPv4: time to live).
            traffic_class: a DSCP << 2; the two ECN bits are not the application's and stay 0.

        Raises:
            ClosedResourceError: the socket was closed.
            DialError: a number that the field cannot have (``EINVAL``).
        """
        if self._closed or self._pump.stopped:
            raise ClosedResourceError
        _set_fields(self._socket, hop_limit, traffic_class)

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
                self._raise_error(self._socket.remote)
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


@final
class ConnectedUdpSocket(UnreliableObjectStream[bytes]):
    """A UDP socket that talks to one end only, and hears of it when that end cannot be reached.

    ``send()`` and ``receive()`` raise ``DialError`` with the errno that the operating system's sockets would give:
    after a datagram to a port where nobody listens the next call says ``ECONNREFUSED``.
    """

    __slots__ = ("_remote", "_socket")

    def __init__(self, socket: UdpSocket, remote: Endpoint) -> None:
        self._socket = socket
        self._remote = remote

    async def receive(self) -> bytes:
        """Return the next datagram of the other end.

        Raises:
            DialError: a router, or the other end, says that there is nobody (``ECONNREFUSED``, ``EHOSTUNREACH``).
            ClosedResourceError: the socket was closed.
            BusyResourceError: another task is receiving.
        """
        return (await self._socket.receive())[0]

    async def send(self, item: bytes, *, segment: int = 0) -> None:
        """Send a datagram, or several of *segment* bytes each; raises like :meth:`receive`, or ``EMSGSIZE``."""
        await checkpoint_if_cancelled()
        await self._socket._send(item, self._remote, None, segment)

    def set_options(self, *, hop_limit: int | None = None, traffic_class: int | None = None) -> None:
        """See :meth:`UdpSocket.set_options`."""
        self._socket.set_options(hop_limit=hop_limit, traffic_class=traffic_class)

    async def aclose(self) -> None:
        """Close the socket; datagrams that wait are dropped."""
        await self._socket.aclose()

    @property
    def local(self) -> Endpoint:
        """The port bound to; the address is empty for "each of our own"."""
        return self._socket.local

    @property
    def remote(self) -> Endpoint:
        """The other end: raw address and port."""
        return self._remote

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """``SocketAttribute.local_address``, ``local_port``, ``remote_address`` and ``remote_port``."""
        remote = (format_ip(self._remote.ip), self._remote.port)
        return {
            **self._socket.extra_attributes,
            SocketAttribute.remote_address: lambda: remote,
            SocketAttribute.remote_port: lambda: remote[1],
        }


def connect(pump: Pump, remote: Endpoint) -> ConnectedUdpSocket:
    """Return a socket on a free port that talks to *remote* only.

    Raises:
        DialError: *remote* cannot be talked to (``EINVAL``), or we have no address of its family (``ENETUNREACH``).
    """
    try:
        inner = pump.stack.udp_connect(remote)
    except LocalProtocolError as failure:
        raise from_local_error(failure, remote) from failure
    return ConnectedUdpSocket(UdpSocket(pump, inner), remote)


def _set_fields(socket: StackUdpSocket, hop_limit: int | None, traffic_class: int | None) -> None:
    try:
        if hop_limit is not None:
            socket.hop_limit = hop_limit
        if traffic_class is not None:
            socket.traffic_class = traffic_class
    except LocalProtocolError as failure:
        raise from_local_error(failure, "socket option") from failure


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
