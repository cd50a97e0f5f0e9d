"""What an application holds: TCP, UDP and echo sockets of one stack.

None of them blocks. A call does its work on the engine at once and returns; packets leave with the next
``Stack.egress``, and readiness comes from ``Stack.take_ready``.
"""

from collections import deque
from typing import Final, Protocol, TypeAlias, final

from tsnetpy.base.addr import Endpoint, IpBytes
from tsnetpy.base.errors import LocalProtocolError
from tsnetpy.base.instant import Duration, Instant
from tsnetpy.base.packet import Buffer, PeerId
from tsnetpy.tcp import Connection, Listener

from .addresses import is_martian
from .errors import InvalidAddress, InvalidOption, NotConnected, SendAfterShutdown
from .ports import check_port

DEFAULT_IP: Final = 64 << 8
"""Hop limit 64 and traffic class 0, as :attr:`IpSocket.ip_fields` has them."""
_ECN: Final = 3


class IpSocket:
    """A socket that may choose two fields of the IP headers of what it sends.

    Attributes:
        ip_fields: hop limit << 8 | traffic class.
    """

    __slots__ = ("ip_fields",)

    def __init__(self) -> None:
        self.ip_fields = DEFAULT_IP

    @property
    def hop_limit(self) -> int:
        """The hop limit (IPv6) or time to live (IPv4) of packets sent, 1-255.

        Raises (when set):
            InvalidOption: another number.
        """
        return self.ip_fields >> 8

    @hop_limit.setter
    def hop_limit(self, value: int) -> None:
        if not 1 <= value <= 255:
            raise InvalidOption(f"no hop limit: {value}")
        self.ip_fields = value << 8 | self.ip_fields & 0xFF

    @property
    def traffic_class(self) -> int:
        """The traffic class (IPv6) or type of service (IPv4): a DSCP << 2. The two ECN bits stay 0, as RFC 3168 has it.

        Raises (when set):
            InvalidOption: not a number from 0 to 255.
        """
        return self.ip_fields & 0xFF

    @traffic_class.setter
    def traffic_class(self, value: int) -> None:
        if not 0 <= value <= 255:
            raise InvalidOption(f"no traffic class: {value}")
        self.ip_fields = self.ip_fields & 0xFF00 | value & ~_ECN


class TcpHost(Protocol):
    """What TCP sockets need of their stack (:class:`.connections.Connections`)."""

    def tcp_touched(self, socket: "TcpSocket") -> None:
        """Note that *socket* may have something to send or to report."""
        ...

    def listener_closed(self, socket: "TcpListenerSocket", orphans: list["TcpSocket"]) -> None:
        """Forget *socket* and let the resets of *orphans* go out."""
        ...

    def tcp_accepted(self, socket: "TcpSocket") -> None:
        """Note that the application now holds *socket*."""
        ...


class DatagramHost(Protocol):
    """What UDP and echo sockets need of their stack (:class:`.datagrams.Datagrams`)."""

    def udp_send(
        self,
        socket: "UdpSocket",
        data: Buffer,
        remote: Endpoint,
        now: Instant,
        source: IpBytes | None,
        segment: int,
    ) -> None:
        """Queue one datagram, or several of *segment* bytes each."""
        ...

    def udp_closed(self, socket: "UdpSocket") -> None:
        """Free the port of *socket*."""
        ...

    def echo_send(self, socket: "IcmpSocket", dst: IpBytes, seq: int, payload: bytes, now: Instant) -> None:
        """Queue one echo request."""
        ...

    def icmp_closed(self, socket: "IcmpSocket") -> None:
        """Free the identifier of *socket*."""
        ...


@final
class TcpSocket(IpSocket):
    """One TCP connection with its addresses.

    Attributes:
        connection: the engine; look (state, error, eof_received, info), but act through this socket.
        local, remote: the two ends.
        peer: whose packet opened it, for inbound connections.
        owner: free for the layer above; the stack never looks at it.
        closed: the connection reached CLOSED and the stack has forgotten it.
    """

    __slots__ = (
        "_host",
        "armed",
        "closed",
        "connection",
        "embryo",
        "held_bits",
        "key",
        "listener",
        "local",
        "owner",
        "peer",
        "remote",
    )

    def __init__(self, host: TcpHost, connection: Connection, local: Endpoint, remote: Endpoint, peer: PeerId) -> None:
        super().__init__()
        self._host = host
        self.connection = connection
        self.local = local
        self.remote = remote
        self.peer = peer
        self.owner: object | None = None
        self.closed = False
        # The stack's own notes: demultiplexing key, earliest entry in its timer heap, and, until the application
        # accepted it, the listening socket and the readiness that waits for the application.
        self.key: tuple[bytes, int] = (remote.ip + local.ip, remote.port << 16 | local.port)
        self.armed: Instant | None = None
        self.listener: TcpListenerSocket | None = None
        self.embryo = False
        self.held_bits = 0

    @property
    def send_space(self) -> int:
        """Bytes that :meth:`send` would take now."""
        return self.connection.send_space

    @property
    def readable_bytes(self) -> int:
        """Bytes that :meth:`read` could return now."""
        return self.connection.readable_bytes

    def send(self, data: Buffer, now: Instant) -> int:
        """Queue bytes; return how many were taken (0 when the buffer is full: wait for WRITABLE).

        Raises:
            SendAfterShutdown: after :meth:`shutdown`, or when the connection is over.
        """
        try:
            count = self.connection.send(data, now)
        except LocalProtocolError as error:
            raise SendAfterShutdown(str(error)) from error
        self._host.tcp_touched(self)
        return count

    def read(self, max_bytes: int, now: Instant) -> bytes:
        """Return up to *max_bytes* received bytes; empty when there are none (look at ``connection.eof_received``)."""
        data = self.connection.read(max_bytes, now)
        if self.connection.tcb.ack_now:  # the window opened so far that the peer should hear of it
            self._host.tcp_touched(self)
        return data

    def shutdown(self, now: Instant) -> None:
        """Send FIN behind what is queued; receiving goes on."""
        self.connection.shutdown(now)
        self._host.tcp_touched(self)

    def close(self, now: Instant) -> None:
        """Close both directions: FIN, or RST if received bytes were never read."""
        self.connection.close(now)
        self._host.tcp_touched(self)

    def abort(self, now: Instant) -> None:
        """Reset the connection."""
        self.connection.abort(now)
        self._host.tcp_touched(self)

    def set_nodelay(self, on: bool) -> None:
        """False lets small writes wait for each other while data is in flight (Nagle's algorithm)."""
        self.connection.set_nodelay(on)
        self._host.tcp_touched(self)

    def set_cork(self, on: bool) -> None:
        """Send full packets only, until uncorked; what does not fill one waits for 200 ms at most."""
        self.connection.set_cork(on)
        self._host.tcp_touched(self)

    def set_keepalive(self, idle: Duration, interval: Duration, probes: int, now: Instant) -> None:
        """Probe after *idle* of silence, then every *interval*; after *probes* unanswered ones give up.

        *idle* 0 turns it off.

        Raises:
            InvalidOption: negative times, or no interval or probe to go with *idle*.
        """
        if idle < 0 or (idle and (interval <= 0 or probes < 1)):
            raise InvalidOption("keep-alive needs a positive interval and at least one probe")
        self.connection.set_keepalive(idle, interval, probes, now)
        self._host.tcp_touched(self)

    def set_user_timeout(self, duration: Duration) -> None:
        """Give up when nothing was acknowledged for *duration*; 0 for never.

        Raises:
            InvalidOption: a negative time.
        """
        if duration < 0:
            raise InvalidOption("a timeout is not negative")
        self.connection.set_user_timeout(duration)
        self._host.tcp_touched(self)

    def __repr__(self) -> str:
        return f"<TcpSocket {self.local} - {self.remote} {self.connection.state.value}>"


@final
class TcpListenerSocket(IpSocket):
    """A listening TCP port, on one address or (``local.ip`` empty) on all of this node's.

    Attributes:
        local: address and port.
        owner: free for the layer above.
        closed: :meth:`close` was called.
    """

    __slots__ = ("_ends", "_host", "_order", "closed", "local", "owner", "v4", "v6")

    def __init__(self, host: TcpHost, local: Endpoint, v4: Listener, v6: Listener) -> None:
        super().__init__()
        self._host = host
        self.local = local
        self.owner: object | None = None
        self.closed = False
        # One engine per family: the segment sizes differ.
        self.v4 = v4
        self.v6 = v6
        self._order: deque[Listener] = deque()
        self._ends: dict[IpBytes, Endpoint] = {}

    def local_end(self, ip: IpBytes) -> Endpoint:
        """Return our end for a connection to *ip*, one of our addresses; all connections to it share the object."""
        end = self._ends.get(ip)
        if end is None:
            end = self._ends[ip] = Endpoint(ip, self.local.port)
        return end

    def engine(self, ip: IpBytes) -> Listener:
        """Return the listener engine for the family of *ip*."""
        return self.v4 if len(ip) == 4 else self.v6

    def set_backlog(self, backlog: int) -> None:
        """Let *backlog* finished connections (at least 1) wait from now on; those that wait already stay."""
        self.v4.backlog = self.v6.backlog = max(1, backlog)

    def finished(self, socket: TcpSocket) -> None:
        """Queue a connection whose handshake is over (called by the stack)."""
        engine = self.engine(socket.local.ip)
        engine.on_established(socket.connection)
        self._order.append(engine)

    def accept(self) -> TcpSocket | None:
        """Return the oldest connection that waits, or ``None``."""
        while self._order:
            connection = self._order.popleft().accept()
            if connection is not None:
                socket = connection.owner
                assert isinstance(socket, TcpSocket)
                self._host.tcp_accepted(socket)
                return socket
        return None

    def close(self, now: Instant) -> None:
        """Stop listening; connections that nobody accepted are reset."""
        if self.closed:
            return
        self.closed = True
        self._order.clear()
        orphans: list[TcpSocket] = []
        for connection in [*self.v4.close(now), *self.v6.close(now)]:
            socket = connection.owner
            if isinstance(socket, TcpSocket):
                orphans.append(socket)
        self._host.listener_closed(self, orphans)

    def __repr__(self) -> str:
        return f"<TcpListenerSocket {self.local if self.local.ip else f'*:{self.local.port}'}>"


@final
class UdpSocket(IpSocket):
    """A UDP port, on one address or (``local.ip`` empty) on all of this node's.

    Attributes:
        local: address and port.
        remote: the one end that :meth:`connect` fixed, or ``None``.
        owner: free for the layer above.
        closed: :meth:`close` was called.
        dropped: datagrams lost because nobody read them in time.
    """

    __slots__ = (
        "_error",
        "_host",
        "_limit",
        "_queue",
        "_queued_bytes",
        "closed",
        "dropped",
        "local",
        "owner",
        "remote",
    )

    _OVERHEAD = 256

    def __init__(self, host: DatagramHost, local: Endpoint, limit: int) -> None:
        super().__init__()
        self._host = host
        self._limit = limit
        self._queue: deque[tuple[bytes, Endpoint, IpBytes]] = deque()
        self._queued_bytes = 0
        self._error: str | None = None
        self.local = local
        self.remote: Endpoint | None = None
        self.owner: object | None = None
        self.closed = False
        self.dropped = 0

    def connect(self, remote: Endpoint) -> None:
        """Talk to *remote* only: others' datagrams are no longer received, and ICMP errors reach this socket.

        Raises:
            InvalidPort: port 0, or none at all.
            InvalidAddress: no unicast address, or not of the bound address's family.
            NotConnected: the socket is closed.
        """
        if self.closed:
            raise NotConnected("this UDP socket is closed")
        check_port(remote.port, zero=False)
        if len(remote.ip) not in (4, 16) or is_martian(remote.ip):
            raise InvalidAddress("the remote address is no unicast address")
        if self.local.ip and len(self.local.ip) != len(remote.ip):
            raise InvalidAddress("local and remote address are of different families")
        self.remote = remote

    def send(self, data: Buffer, now: Instant, segment: int = 0) -> None:
        """Send to the connected end; see :meth:`send_to`.

        Raises:
            NotConnected: :meth:`connect` was not called.
            SocketError: as for :meth:`send_to`.
        """
        if self.remote is None:
            raise NotConnected("this UDP socket has no remote end")
        self.send_to(data, self.remote, now, segment=segment)

    def send_to(
        self, data: Buffer, remote: Endpoint, now: Instant, source: IpBytes | None = None, segment: int = 0
    ) -> None:
        """Send one datagram; what does not fit the MTU is fragmented. Like any datagram it may be lost on the way.

        With *segment* the bytes leave as several datagrams (UDP segmentation offload): one walk through the stack
        for many, which is worth most to QUIC.

        Args:
            data: up to 65,507 bytes (IPv4) or 65,527 (IPv6).
            remote: where to.
            now: the current instant.
            source: which of our addresses to send from, where there is a choice.
            segment: bytes per datagram, the last of which may be shorter; 0 for a single one.

        Raises:
            MessageTooLong: more than one IP packet can carry, or a *segment* that does not fit the MTU.
            NoRoute: no address of our own in that family.
            InvalidPort: port 0.
            InvalidOption: *segment* is negative.
            InvalidAddress: *remote* is no unicast address, or of another family than the socket's.
            AddressNotAvailable: *source* is not ours.
            NotConnected: the socket is closed.
        """
        if self.closed:
            raise NotConnected("this UDP socket is closed")
        self._host.udp_send(self, data, remote, now, source, segment)

    def recv_from(self) -> tuple[bytes, Endpoint, IpBytes] | None:
        """Return the oldest datagram, its sender and the address of ours that it was sent to, or ``None``."""
        if not self._queue:
            return None
        item = self._queue.popleft()
        self._queued_bytes -= len(item[0]) + self._OVERHEAD
        return item

    def take_error(self) -> str | None:
        """Return and clear what an ICMP error said about the connected end (``"refused"``, ``"unreachable"``)."""
        error = self._error
        self._error = None
        return error

    def deliver(self, data: bytes, source: Endpoint, local: IpBytes) -> None:
        """Queue a received datagram (called by the stack); the oldest make room for it."""
        self._queue.append((data, source, local))
        self._queued_bytes += len(data) + self._OVERHEAD
        while self._queued_bytes > self._limit and len(self._queue) > 1:
            victim = self._queue.popleft()
            self._queued_bytes -= len(victim[0]) + self._OVERHEAD
            self.dropped += 1

    def fail(self, reason: str) -> None:
        """Remember an ICMP error (called by the stack)."""
        self._error = reason

    def close(self) -> None:
        """Free the port; datagrams that wait are dropped."""
        if not self.closed:
            self.closed = True
            self._queue.clear()
            self._queued_bytes = 0
            self._host.udp_closed(self)

    def __repr__(self) -> str:
        return f"<UdpSocket {self.local if self.local.ip else f'*:{self.local.port}'}>"


@final
class IcmpSocket:
    """Sends echo requests under an identifier of its own and receives the replies to them.

    Attributes:
        ident: the identifier.
        owner: free for the layer above.
        closed: :meth:`close` was called.
        dropped: replies lost because nobody read them in time.
    """

    __slots__ = ("_error", "_host", "_queue", "closed", "dropped", "ident", "owner")

    _LIMIT = 256

    def __init__(self, host: DatagramHost, ident: int) -> None:
        self._host = host
        self._queue: deque[tuple[IpBytes, int, bytes, int]] = deque()
        self._error: str | None = None
        self.ident = ident
        self.owner: object | None = None
        self.closed = False
        self.dropped = 0

    def send_echo(self, dst: IpBytes, seq: int, payload: bytes, now: Instant) -> None:
        """Send an echo request with a 16-bit sequence number.

        Raises:
            MessageTooLong: more than one IP packet can carry.
            NoRoute: no address of our own in that family.
            InvalidAddress: *dst* is no unicast address.
            NotConnected: the socket is closed.
        """
        if self.closed:
            raise NotConnected("this echo socket is closed")
        self._host.echo_send(self, dst, seq & 0xFFFF, payload, now)

    def recv(self) -> tuple[IpBytes, int, bytes, int] | None:
        """Return the oldest reply as (sender, sequence number, payload, hop limit), or ``None``."""
        return self._queue.popleft() if self._queue else None

    def take_error(self) -> str | None:
        """Return and clear what an ICMP error said about one of our requests."""
        error = self._error
        self._error = None
        return error

    def deliver(self, src: IpBytes, seq: int, payload: bytes, ttl: int) -> None:
        """Queue a reply (called by the stack); the oldest makes room."""
        if len(self._queue) >= self._LIMIT:
            self._queue.popleft()
            self.dropped += 1
        self._queue.append((src, seq, payload, ttl))

    def fail(self, reason: str) -> None:
        """Remember an ICMP error (called by the stack)."""
        self._error = reason

    def close(self) -> None:
        """Free the identifier."""
        if not self.closed:
            self.closed = True
            self._queue.clear()
            self._host.icmp_closed(self)

    def __repr__(self) -> str:
        return f"<IcmpSocket id {self.ident}>"


Socket: TypeAlias = TcpSocket | TcpListenerSocket | UdpSocket | IcmpSocket
