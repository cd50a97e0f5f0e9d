"""A UDP port whose system calls move batches: ``UDP_SEGMENT`` on send, ``UDP_GRO`` on receive (udp(7)).

One call carries up to 64 datagrams each way, which is what makes an interpreter keep up. Where the kernel or a
network card cannot do it, the same interface falls back to a call per datagram without a word.

The sockets are raw and non-blocking: event-loop transports queue single datagrams and carry no ancillary data.
"""

import errno
import socket
import struct
import sys
from collections.abc import Callable
from typing import Final, NamedTuple, final

import anyio

from tsnetpy.base.addr import Endpoint
from tsnetpy.base.packet import Buffer
from tsnetpy.base.ring import Ring
from tsnetpy.base.stats import Drops

from .loop import Reader

SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33

MAX_SEGMENTS: Final = 64
"""Datagrams in one GSO call (``UDP_MAX_SEGMENTS`` of older kernels)."""
MAX_PAYLOAD_V4: Final = 65_507
MAX_PAYLOAD_V6: Final = 65_527
SOCKET_BUFFER: Final = 7 << 20
RECEIVE_BUFFER: Final = 1 << 18
MAX_RECEIVE_CALLS: Final = 64
PENDING_BATCHES: Final = 128

_SLOT: Final = 1 << 16
_ONE_BY_ONE: Final = 32
_LOOK_BEHIND: Final = 7
"""After so many datagrams that came one by one, a call to see that nothing is behind one is worth it only every eighth
time; if something is, the loop calls again at once. Sooner would cost more than it saves: with a few connections at
work single datagrams alternate with groups, and for a group that is taken apart everything turns once for each part."""
_MSG_TRUNC: Final = int(socket.MSG_TRUNC)  # arithmetic on the enumeration takes longer than the system call's return
_NO_GSO_HERE: Final = frozenset({errno.EIO, errno.ENOPROTOOPT, errno.EOPNOTSUPP})
_NO_GSO_THERE: Final = frozenset({errno.EINVAL, errno.EMSGSIZE})
_WOULD_BLOCK: Final = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS})
_CACHE_LIMIT: Final = 4096
_KEPT: Final = -1
"""In place of an ``errno``: the kernel takes no more, and what it did not take is first in the queue."""


class Received(NamedTuple):
    """Datagrams from one sender, back to back; valid until the next :meth:`UdpSocket.receive`."""

    data: memoryview
    segment_size: int
    """Length of each datagram; the last may be shorter."""
    source: Endpoint


@final
class UdpSocket:
    """One family's socket.

    Attributes:
        drops: datagrams lost here, by reason.
        gso: whether sends use ``UDP_SEGMENT``.
        gro: whether receives use ``UDP_GRO``.
        send_calls: system calls made to send.
        receive_calls: system calls made to receive.
        on_pending: called when the kernel has refused something that is kept for :meth:`flush`.
    """

    def __init__(self, sock: socket.socket, *, offload: bool = True) -> None:
        self.sock = sock
        self.drops = Drops()
        self.is_ipv6 = sock.family == socket.AF_INET6
        self.send_calls = 0
        self.receive_calls = 0
        self.on_pending: Callable[[], None] | None = None
        self.gso = offload and sys.platform == "linux"
        self.gro = False
        self._max_payload = MAX_PAYLOAD_V6 if self.is_ipv6 else MAX_PAYLOAD_V4
        self._buffer = memoryview(bytearray(RECEIVE_BUFFER))
        self._alone = 0  # calls of receive() in a row that found one datagram and nothing behind it
        self._ancillary = socket.CMSG_SPACE(4) if hasattr(socket, "CMSG_SPACE") else 0
        self._pending: Ring[tuple[Buffer, int, Endpoint]] = Ring(PENDING_BATCHES)
        self._sources: dict[tuple[str, int], Endpoint] = {}
        self._targets: dict[Endpoint, tuple[str, int]] = {}
        self._no_gso: set[Endpoint] = set()
        self._reader: Reader | None = None
        sock.setblocking(False)
        _enlarge_buffers(sock)
        if self.gso:
            try:
                sock.setsockopt(SOL_UDP, UDP_GRO, 1)
                self.gro = True
            except OSError:
                self.gro = False

    @property
    def port(self) -> int:
        """The local port."""
        return int(self.sock.getsockname()[1])

    # -- receiving ----------------------------------------------------------------------------------------------

    async def wait_readable(self) -> None:
        """Wait until there is something to receive."""
        await anyio.wait_readable(self.sock)

    async def run_reader(self, on_readable: Callable[[], None]) -> None:
        """Call *on_readable*, which should :meth:`receive`, whenever there is something to receive.

        Once per turn of the event loop, however much there is: a flood must not starve the applications.

        Raises:
            anyio.ClosedResourceError: the socket was closed.
            Exception: what *on_readable* raised.
        """
        self._reader = Reader(self.sock.fileno(), on_readable)
        try:
            await self._reader.run()
        finally:
            self._reader = None

    def receive(self) -> list[Received]:
        """Return what the kernel holds, up to the size of the receive buffer; empty if there is nothing.

        The views point into one buffer that the next call overwrites.
        """
        batches: list[Received] = []
        buffer, at = self._buffer, 0
        sock, ancillary_size = self.sock, self._ancillary
        for _ in range(MAX_RECEIVE_CALLS):
            if at + _SLOT > RECEIVE_BUFFER:
                break
            self.receive_calls += 1
            try:
                size, ancillary, flags, address = sock.recvmsg_into([buffer[at : at + _SLOT]], ancillary_size)
            except OSError as error:
                if error.errno not in _WOULD_BLOCK:
                    # An asynchronous error (say, an ICMP unreachable) belongs to an earlier send.
                    self.drops.add("receive_error")
                break
            if flags & _MSG_TRUNC:
                self.drops.add("truncated")
                continue
            if not size:
                continue
            segment_size = size
            for level, kind, data in ancillary:
                if level == SOL_UDP and kind == UDP_GRO and len(data) >= 2:
                    segment_size = int.from_bytes(data, sys.byteorder) or size
            key = (address[0], address[1])
            source = self._sources.get(key)
            if source is None:
                source = self._learn_source(key)
            batches.append(Received(buffer[at : at + size], segment_size, source))
            at += size
            if self._alone > _ONE_BY_ONE and self._alone & _LOOK_BEHIND and size == segment_size:
                break
        self._alone = self._alone + 1 if len(batches) == 1 else 0
        return batches

    def _learn_source(self, key: tuple[str, int]) -> Endpoint:
        host = key[0].partition("%")[0]  # link-local sources carry a zone
        source = Endpoint(socket.inet_pton(self.sock.family, host), key[1])
        if len(self._sources) >= _CACHE_LIMIT:
            self._sources.clear()
        self._sources[key] = source
        return source

    # -- sending ------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """How many batches wait for the socket to become writable."""
        return len(self._pending)

    @property
    def pending_dropped(self) -> int:
        """Batches that made room for newer ones while the socket was not writable."""
        return self._pending.dropped

    def send(self, data: Buffer, segment_size: int, to: Endpoint) -> int:
        """Send the datagrams in *data*, each *segment_size* bytes but the last; never blocks.

        What the socket has no room for is kept (bounded, oldest dropped) until :meth:`flush`.

        Returns:
            0 if it was sent or kept, else the ``errno`` of the host's refusal.
        """
        if not data:
            return 0
        if self._pending.items:
            self._pending.push((data, segment_size, to))
            return 0
        code = self._send(data, segment_size, to)
        return 0 if code == _KEPT else code

    async def wait_writable(self) -> None:
        """Wait until the socket takes data."""
        await anyio.wait_writable(self.sock)

    def flush(self) -> bool:
        """Send what was kept, in order; return whether nothing is left."""
        while (item := self._pending.pop()) is not None:
            if self._send(*item) == _KEPT:
                return False
        return True

    def _send(self, data: Buffer, segment_size: int, to: Endpoint) -> int:
        target = self._targets.get(to)
        if target is None:
            target = self._learn_target(to)
        total = len(data)
        if total <= segment_size:
            code = self._send_one(data, target)
            return self._keep(data, segment_size, to) if code in _WOULD_BLOCK else code
        if not self.gso or to in self._no_gso:
            return self._send_each(data, segment_size, to, target)
        per_call = min(MAX_SEGMENTS, self._max_payload // segment_size) * segment_size
        if not per_call:
            self.drops.add("oversized")
            return errno.EMSGSIZE
        view = memoryview(data) if total > per_call else data
        ancillary = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", segment_size))]
        for at in range(0, total, per_call):
            chunk = view[at : at + per_call] if total > per_call else data
            if len(chunk) <= segment_size:
                return self._send_each(chunk, segment_size, to, target)
            try:
                self.send_calls += 1
                self.sock.sendmsg([chunk], ancillary, 0, target)
            except OSError as error:
                rest = view[at:]
                code = error.errno or 0
                if code in _WOULD_BLOCK:
                    return self._keep(rest, segment_size, to)
                if code in _NO_GSO_HERE:
                    # No checksum offload on the route's device (EIO), or a kernel without GSO: never again.
                    self.gso = False
                elif code in _NO_GSO_THERE:
                    # Segments larger than the MTU towards this peer; single datagrams may be fragmented.
                    if len(self._no_gso) >= _CACHE_LIMIT:
                        self._no_gso.clear()
                    self._no_gso.add(to)
                else:
                    return self._refused(code, -(-len(rest) // segment_size))
                return self._send_each(rest, segment_size, to, target)
        return 0

    def _send_each(self, data: Buffer, segment_size: int, to: Endpoint, target: tuple[str, int]) -> int:
        view = memoryview(data)
        for at in range(0, len(view), segment_size):
            code = self._send_one(view[at : at + segment_size], target)
            if code in _WOULD_BLOCK:
                return self._keep(view[at:], segment_size, to)
            if code:
                return code
        return 0

    def _send_one(self, data: Buffer, target: tuple[str, int]) -> int:
        try:
            self.send_calls += 1
            self.sock.sendto(data, target)
        except OSError as error:
            code = error.errno or 0
            return code if code in _WOULD_BLOCK else self._refused(code, 1)
        except OverflowError:
            return self._refused(errno.EINVAL, 1)
        return 0

    def _keep(self, data: Buffer, segment_size: int, to: Endpoint) -> int:
        self._pending.put_back((data, segment_size, to))
        if self.on_pending is not None:
            self.on_pending()
        return _KEPT

    def _refused(self, code: int, datagrams: int) -> int:
        self.drops.add("send_" + errno.errorcode.get(code, "error").lower(), datagrams)
        return code or errno.EIO

    def _learn_target(self, to: Endpoint) -> tuple[str, int]:
        target = (socket.inet_ntop(self.sock.family, to.ip), to.port)
        if len(self._targets) >= _CACHE_LIMIT:
            self._targets.clear()
        self._targets[to] = target
        return target

    def close(self) -> None:
        """Close the socket; tasks that wait on it are woken first."""
        if self.sock.fileno() >= 0:
            anyio.notify_closing(self.sock)
            if self._reader is not None:
                self._reader.close()
            self.sock.close()


@final
class UdpPort:
    """One port number on both families (IPv6 where the host has it)."""

    def __init__(self, v4: UdpSocket | None, v6: UdpSocket | None) -> None:
        self.v4 = v4
        self.v6 = v6

    @classmethod
    def open(cls, port: int = 0, *, ipv4: bool = True, ipv6: bool = True, offload: bool = True) -> "UdpPort":
        """Bind to all addresses of the host.

        Args:
            port: local port; 0 takes a free one. Both families share it where possible, since peers are told the
                addresses of both with one port.
            ipv4: open an IPv4 socket.
            ipv6: open an IPv6 socket if the host can.
            offload: try GSO and GRO.

        Raises:
            OSError: neither family could be opened, or *port* is taken.
        """
        v4: socket.socket | None = None
        v6: socket.socket | None = None
        for last in (False, False, False, False, True):
            v4 = _bind(socket.AF_INET, port) if ipv4 else None
            if not ipv6:
                break
            shared = v4.getsockname()[1] if v4 is not None else port
            try:
                v6 = _bind(socket.AF_INET6, shared)
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    if v4 is None:
                        raise
                    break
                if port or last or v4 is None:
                    # The number is taken on IPv6 only: another one there is better than no IPv6.
                    v6 = _bind(socket.AF_INET6, 0)
                    break
                v4.close()
        return cls(
            UdpSocket(v4, offload=offload) if v4 is not None else None,
            UdpSocket(v6, offload=offload) if v6 is not None else None,
        )

    @property
    def sockets(self) -> list[UdpSocket]:
        """The sockets that are open."""
        return [sock for sock in (self.v4, self.v6) if sock is not None]

    def send(self, data: Buffer, segment_size: int, to: Endpoint) -> int:
        """Send by the socket of *to*'s family; see :meth:`UdpSocket.send`."""
        sock = self.v4 if len(to.ip) == 4 else self.v6
        if sock is None:
            return errno.EAFNOSUPPORT
        return sock.send(data, segment_size, to)

    def close(self) -> None:
        """Close both sockets."""
        for sock in self.sockets:
            sock.close()


def _bind(family: socket.AddressFamily, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(("::", port))
        else:
            sock.bind(("0.0.0.0", port))  # noqa: S104 - an underlay port must be reachable on every interface
    except BaseException:
        sock.close()
        raise
    return sock


def _enlarge_buffers(sock: socket.socket) -> None:
    """Ask for big buffers: past the administrator's limit if we may, up to it otherwise."""
    for forced, plain in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        for option in (forced, plain) if sys.platform == "linux" else (plain,):
            try:
                sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
                break
            except OSError:
                continue
