"""TCP over the tailnet as anyio streams.

The application waits here and nowhere else: every method first asks the engine, and only if the engine has nothing (or
no room) creates an event, waits for the pump to set it, and asks again. An event exists only while somebody waits.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, final

import anyio
from anyio import BrokenResourceError, BusyResourceError, ClosedResourceError, EndOfStream
from anyio.abc import ByteStream, Listener, SocketAttribute, TaskGroup
from anyio.lowlevel import cancel_shielded_checkpoint, checkpoint, checkpoint_if_cancelled

from tsnetpy.base.addr import Endpoint, IpBytes, format_ip
from tsnetpy.base.errors import LocalProtocolError
from tsnetpy.base.instant import SECOND
from tsnetpy.ipstack import TcpListenerSocket, TcpSocket
from tsnetpy.runtime.loop import Wakeup
from tsnetpy.tcp import State
from tsnetpy.tcp.flags import CLOSED, EOF, ERROR, ESTABLISHED, READABLE, WRITABLE
from tsnetpy.tcp.states import HANDSHAKE

from .attributes import TsnetAttribute, WhoIs
from .errors import broken, dial_error, from_local_error
from .pump import Pump

_IN: Final = READABLE | EOF | CLOSED | ERROR
_OUT: Final = WRITABLE | ESTABLISHED | CLOSED | ERROR


@final
class TcpStream(ByteStream):
    """A TCP connection over the tailnet: an :class:`anyio.abc.ByteStream`.

    One task may send while another receives; two tasks in the same direction get ``BusyResourceError``. Cancelling
    ``send()`` leaves it open how much of the data was taken, cancelling ``receive()`` loses nothing.

    Typed attributes: ``SocketAttribute.local_address``, ``remote_address``, ``remote_port``, ``local_port``, and
    :attr:`TsnetAttribute.peer`, the authenticated identity of the other end.
    """

    __slots__ = (
        "_closed",
        "_identity",
        "_pump",
        "_reader",
        "_receiving",
        "_send_closed",
        "_sending",
        "_socket",
        "_writer",
    )

    def __init__(self, pump: Pump, socket: TcpSocket) -> None:
        self._pump = pump
        self._socket = socket
        self._reader: Wakeup | None = None
        self._writer: Wakeup | None = None
        self._receiving = False
        self._sending = False
        self._send_closed = False
        self._closed = False
        self._identity: WhoIs | None = None
        socket.owner = self
        pump.sockets[socket] = None

    def on_ready(self, bits: int) -> None:
        """Wake the tasks that wait for any of *bits* (called by the pump)."""
        if bits & _IN and self._reader is not None:
            self._reader.set()
            self._reader = None
        if bits & _OUT and self._writer is not None:
            self._writer.set()
            self._writer = None
        if bits & CLOSED and self._socket.closed:
            self._pump.sockets.pop(self._socket, None)
            self._socket.owner = None  # no more news; without the cycle both go as soon as nobody uses them

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Return up to *max_bytes* that have arrived, waiting for the first.

        Raises:
            EndOfStream: the peer has ended its sending side, and everything was read.
            ClosedResourceError: this stream was closed here.
            BrokenResourceError: the connection was reset or timed out; the cause is an ``OSError`` with errno.
            BusyResourceError: another task is receiving.
        """
        if max_bytes < 1:
            raise ValueError("max_bytes must be positive")
        if self._receiving:
            await checkpoint_if_cancelled()
            raise BusyResourceError("receiving from")
        self._receiving = True
        waited = False
        connection = self._socket.connection
        try:
            while True:
                if self._closed or self._pump.stopped:
                    if not waited:
                        await checkpoint_if_cancelled()
                    raise ClosedResourceError
                if not self.readable:
                    self._reader = self._pump.wakeup()
                    waited = True
                    await self._reader.wait()
                    continue
                if not waited:
                    # Before taking anything: a cancellation here loses nothing, so it need not be kept out.
                    waited = True
                    await checkpoint()
                    continue
                if connection.readable_bytes:
                    now = self._pump.now()
                    data = self._socket.read(max_bytes, now)
                    # Reading opens the receive window; only if the engine wants to say so there is something to send.
                    if connection.tcb.ack_now:
                        self._pump.flush(now)
                    return data
                if connection.error is not None:
                    raise broken(connection.error)
                if connection.eof_received:
                    raise EndOfStream
                raise broken("reset")
        finally:
            self._receiving = False
            self._reader = None

    @property
    def readable(self) -> bool:
        """Whether :meth:`receive` has something to return or to raise at once: bytes, the end, an error."""
        connection = self._socket.connection
        return bool(
            connection.readable_bytes
            or connection.eof_received
            or connection.error is not None
            or connection.state is State.CLOSED
        )

    async def send(self, item: bytes) -> None:
        """Send all of *item*; return when the send buffer has taken it (not when the peer has it).

        Raises:
            ClosedResourceError: this stream, or its sending side, was closed here.
            BrokenResourceError: the connection was reset or timed out.
            BusyResourceError: another task is sending.
        """
        await checkpoint_if_cancelled()
        if self._sending:
            raise BusyResourceError("sending to")
        self._sending = True
        waited = False
        try:
            taken = 0
            total = len(item)
            view: bytes | memoryview = item
            while True:
                if self._closed or self._send_closed or self._pump.stopped:
                    raise ClosedResourceError
                error = self._socket.connection.error
                if error is not None:
                    raise broken(error)
                now = self._pump.now()
                try:
                    count = self._socket.send(view, now)
                except LocalProtocolError as failure:
                    raise BrokenResourceError("the connection is closed") from failure
                if count:
                    self._pump.flush(now)
                taken += count
                if taken == total:
                    if not waited:
                        await checkpoint()
                    return
                if self._socket.send_space:
                    view = memoryview(item)[taken:]
                    continue
                self._writer = self._pump.wakeup()
                waited = True
                await self._writer.wait()
                view = memoryview(item)[taken:]
        finally:
            self._sending = False
            self._writer = None

    async def wait_writable(self) -> None:
        """Wait until :meth:`send` would take something at once; raises like it."""
        await checkpoint_if_cancelled()
        if self._sending:
            raise BusyResourceError("sending to")
        self._sending = True
        try:
            while True:
                if self._closed or self._send_closed or self._pump.stopped:
                    raise ClosedResourceError
                if self._socket.connection.error is not None or self._socket.send_space:
                    break
                self._writer = self._pump.wakeup()
                await self._writer.wait()
        finally:
            self._sending = False
            self._writer = None
        await cancel_shielded_checkpoint()

    async def send_eof(self) -> None:
        """End the sending side after what was sent; receiving goes on.

        Raises:
            ClosedResourceError: this stream was closed here.
            BusyResourceError: another task is sending.
        """
        await checkpoint_if_cancelled()
        if self._closed:
            raise ClosedResourceError
        if self._sending:
            raise BusyResourceError("sending to")
        if not self._send_closed:
            self._send_closed = True
            if self._socket.connection.error is None:
                now = self._pump.now()
                self._socket.shutdown(now)
                self._pump.flush(now)
        await cancel_shielded_checkpoint()

    async def aclose(self) -> None:
        """Close both directions. Data already taken by :meth:`send` is still delivered in the background.

        If the peer sent data that was never read, it sees a reset (RFC 2525 §2.17), as with any kernel.
        """
        if not self._closed:
            self._closed = True
            now = self._pump.now()
            self._socket.close(now)
            self._pump.flush(now)
            self.on_ready(CLOSED)
        await anyio.lowlevel.checkpoint()

    def abort(self) -> None:
        """Reset the connection at once; what was not yet delivered is lost."""
        if not self._closed:
            self._closed = True
            now = self._pump.now()
            self._socket.abort(now)
            self._pump.flush(now)
            self.on_ready(CLOSED)

    def set_options(
        self,
        *,
        nodelay: bool | None = None,
        cork: bool | None = None,
        keepalive_s: float | None = None,
        keepalive_interval_s: float = 15.0,
        keepalive_probes: int = 4,
        user_timeout_s: float | None = None,
        hop_limit: int | None = None,
        traffic_class: int | None = None,
    ) -> None:
        """Change what ``setsockopt`` would change on the operating system's sockets; ``None`` leaves an option alone.

        Args:
            nodelay: False lets small writes wait for each other while data is in flight (Nagle's algorithm; off at
                first).
            cork: True sends full packets only, until it is False again; less than one waits 200 ms at most.
            keepalive_s: probe a silent peer after so many seconds; 0 for never.
            keepalive_interval_s: seconds between probes.
            keepalive_probes: unanswered ones until the stream is broken (``ETIMEDOUT``).
            user_timeout_s: break the stream when nothing was acknowledged for so long; 0 for never.
            hop_limit: of the packets sent, 1-255 (IPv4: time to live).
            traffic_class: a DSCP << 2; the two ECN bits are not the application's and stay 0.

        Raises:
            ClosedResourceError: this stream was closed here.
            DialError: a value that the option cannot have (``EINVAL``).
        """
        if self._closed or self._pump.stopped:
            raise ClosedResourceError
        socket = self._socket
        now = self._pump.now()
        try:
            if nodelay is not None:
                socket.set_nodelay(nodelay)
            if cork is not None:
                socket.set_cork(cork)
            if keepalive_s is not None:
                interval = round(keepalive_interval_s * SECOND)
                socket.set_keepalive(round(keepalive_s * SECOND), interval, keepalive_probes, now)
            if user_timeout_s is not None:
                socket.set_user_timeout(round(user_timeout_s * SECOND))
            if hop_limit is not None:
                socket.hop_limit = hop_limit
            if traffic_class is not None:
                socket.traffic_class = traffic_class
        except LocalProtocolError as failure:
            raise from_local_error(failure, "socket option") from failure
        self._pump.flush(now)

    @property
    def local(self) -> Endpoint:
        """This end: raw address and port."""
        return self._socket.local

    @property
    def remote(self) -> Endpoint:
        """The other end: raw address and port."""
        return self._socket.remote

    @property
    def peer(self) -> WhoIs | None:
        """The authenticated identity of the other end, or ``None`` if no peer owns its address.

        Fixed when first known: a later owner of the same address does not inherit the connection's identity.
        """
        if self._identity is None:
            self._identity = self._pump.identify(self.remote.ip)
        return self._identity

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """The typed attributes; see the class."""
        attributes = _address_attributes(self.local, self.remote)
        identity = self.peer
        if identity is not None:
            attributes[TsnetAttribute.peer] = lambda: identity
        return attributes

    async def _wait_connected(self) -> str | None:
        """Wait until the handshake is over; return why it failed, or ``None``."""
        while True:
            connection = self._socket.connection
            if connection.error is not None:
                return connection.error
            if self._pump.closing:
                return "stopped"
            if connection.state is State.CLOSED:
                return "reset"
            if connection.state not in HANDSHAKE:
                return None
            self._writer = self._pump.wakeup()
            await self._writer.wait()


async def connect(pump: Pump, remote: Endpoint) -> TcpStream:
    """Open a TCP connection to *remote*.

    Raises:
        DialError: refused, reset, timed out or unreachable; ``errno`` tells which.
    """
    await checkpoint_if_cancelled()
    now = pump.now()
    try:
        socket = pump.stack.tcp_connect(remote, now)
    except LocalProtocolError as failure:
        raise from_local_error(failure, remote) from failure
    stream = TcpStream(pump, socket)
    try:
        pump.flush(now)
        reason = await stream._wait_connected()
    except BaseException:
        stream.abort()
        raise
    if reason is not None:
        stream.abort()
        raise dial_error(reason, remote)
    return stream


@final
class TcpListener(Listener[TcpStream]):
    """Accepts TCP connections from the tailnet.

    The engine holds at most *backlog* finished handshakes that nobody has accepted; beyond that new ones are refused.
    """

    __slots__ = ("_accepting", "_closed", "_event", "_pump", "_socket")

    def __init__(self, pump: Pump, socket: TcpListenerSocket) -> None:
        self._pump = pump
        self._socket = socket
        self._event: Wakeup | None = None
        self._accepting = False
        self._closed = False
        socket.owner = self
        pump.others.add(self)

    def on_ready(self, bits: int) -> None:
        """Wake the accepting task (called by the pump)."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def accept(self) -> TcpStream:
        """Return the next connection.

        Raises:
            ClosedResourceError: the listener was closed.
            BusyResourceError: another task is accepting.
        """
        await checkpoint_if_cancelled()
        if self._accepting:
            raise BusyResourceError("accepting from")
        self._accepting = True
        waited = False
        try:
            while True:
                if self._closed or self._pump.stopped:
                    raise ClosedResourceError
                socket = self._socket.accept()
                if socket is not None:
                    stream = TcpStream(self._pump, socket)
                    # Bound to the connection now, while the netmap is the one under which it was let in.
                    _ = stream.peer
                    if not waited:
                        await cancel_shielded_checkpoint()
                    return stream
                self._event = self._pump.wakeup()
                waited = True
                await self._event.wait()
        finally:
            self._accepting = False
            self._event = None

    async def serve(self, handler: Callable[[TcpStream], Any], task_group: TaskGroup | None = None) -> None:
        """Call *handler* in a new task for each connection, until cancelled or the listener is closed.

        When the listener is closed this returns, once the handlers in its own group are done.

        Args:
            handler: ``async def handler(stream)``; it owns the stream and closes it.
            task_group: where handlers run; by default a group that ends with this call.
        """
        if task_group is None:
            async with anyio.create_task_group() as group:
                await self._serve(handler, group)
        else:
            await self._serve(handler, task_group)

    async def _serve(self, handler: Callable[[TcpStream], Any], group: TaskGroup) -> None:
        while True:
            try:
                stream = await self.accept()
            except ClosedResourceError:
                return
            group.start_soon(handler, stream)

    async def aclose(self) -> None:
        """Stop listening; connections that wait to be accepted are reset."""
        if not self._closed:
            self._closed = True
            self._pump.others.discard(self)
            now = self._pump.now()
            self._socket.close(now)
            self._pump.flush(now)
            self.on_ready(CLOSED)
        await anyio.lowlevel.checkpoint()

    @property
    def local(self) -> Endpoint:
        """Where this listens; the address is empty for "each of our own"."""
        return self._socket.local

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """``SocketAttribute.local_address`` and ``local_port``."""
        return _address_attributes(self.local, None)


def listen(pump: Pump, port: int, *, ip: IpBytes | None = None, backlog: int = 128) -> TcpListener:
    """Listen on *port* (0: a free one) of *ip* (``None``: each of our own addresses).

    Raises:
        DialError: the port is taken (``EADDRINUSE``), or *ip* is not ours (``EADDRNOTAVAIL``).
    """
    try:
        socket = pump.stack.tcp_listen(port, pump.now(), ip, backlog)
    except LocalProtocolError as failure:
        raise from_local_error(failure, f"port {port}") from failure
    return TcpListener(pump, socket)


def address_tuple(endpoint: Endpoint) -> tuple[str, int]:
    """Return ``(text, port)``; an empty address becomes ``""``."""
    return (format_ip(endpoint.ip) if endpoint.ip else "", endpoint.port)


def _address_attributes(local: Endpoint, remote: Endpoint | None) -> dict[Any, Callable[[], Any]]:
    attributes: dict[Any, Callable[[], Any]] = {
        SocketAttribute.local_address: lambda: address_tuple(local),
        SocketAttribute.local_port: lambda: local.port,
    }
    if remote is not None:
        attributes[SocketAttribute.remote_address] = lambda: address_tuple(remote)
        attributes[SocketAttribute.remote_port] = lambda: remote.port
    return attributes


__all__ = ["TcpListener", "TcpStream", "address_tuple", "connect", "listen"]
