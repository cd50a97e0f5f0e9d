"""HTTP/2 over one byte stream, both roles: what :mod:`.http2` builds client and server from.

One task reads, one writes; requests only touch the ``h2`` state machine between awaits. A request that is cancelled
therefore never leaves half a frame on the wire.
"""

from collections import deque
from collections.abc import Callable
from typing import Final, final

import anyio
import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
from anyio.abc import ByteStream

from tsnetpy.base.errors import LocalProtocolError, RemoteProtocolError

from .queues import Kick

CLIENT_WINDOWS: Final = (4 * 1024 * 1024, 16 * 1024 * 1024)
"""What the peer may send before we read it, on one stream and on all together; the bounds of what is buffered.

The default of 64 KiB would cost a round trip for each 64 KiB of a large network map.
"""
SERVER_WINDOWS: Final = (1024 * 1024, 2 * 1024 * 1024)
"""The same for a server, which anybody may talk to."""
MAX_STREAMS: Final = 250
MAX_UNSENT_BYTES: Final = 1024 * 1024
"""Senders wait while more than this is on its way to the socket."""
_DEFAULT_WINDOW: Final = 65535
_READ_BYTES: Final = 64 * 1024

_FRAME_HEADER_BYTES: Final = 9
_MAX_FRAME_BYTES: Final = 16384  # what our SETTINGS leave it at (RFC 9113 section 6.5.2)
_PREFACE_BYTES: Final = 24

Fields = list[tuple[str, str]]


@final
class _FrameGuard:
    """Looks at frame lengths as they come in.

    ``h2`` judges a frame when all of it has arrived: a peer that announces 16 MiB would be buffered, and one that does
    not speak HTTP/2 at all would be waited for.
    """

    __slots__ = ("_head", "_skip")

    def __init__(self, preface: int) -> None:
        self._skip = preface
        self._head = bytearray()

    def check(self, data: bytes) -> None:
        """Raise ``RemoteProtocolError`` if a frame that begins in *data* is longer than we allow."""
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at += step
                continue
            take = data[at : at + _FRAME_HEADER_BYTES - len(self._head)]
            self._head += take
            at += len(take)
            if len(self._head) == _FRAME_HEADER_BYTES:
                self._skip = int.from_bytes(self._head[:3], "big")
                self._head.clear()
                if self._skip > _MAX_FRAME_BYTES:
                    raise RemoteProtocolError(f"HTTP/2 frame of {self._skip} bytes")


@final
class MuxStream:
    """One request and its answer."""

    __slots__ = ("_changed", "_mux", "buffered", "chunks", "ended", "error", "headers", "id", "on_lost", "sent_end")

    def __init__(self, mux: "Mux", number: int) -> None:
        self.id = number
        self.headers: Fields | None = None
        """What the peer sent; ``None`` until it did."""
        self.chunks: deque[tuple[bytes, int]] = deque()
        """Data not read yet, with the flow-controlled length of each piece."""
        self.buffered = 0
        self.ended = False
        """The peer is done sending."""
        self.sent_end = False
        """We are done sending."""
        self.error = ""
        self.on_lost: Callable[[], None] | None = None
        """Called once when the stream is reset or the connection ends."""
        self._mux = mux
        self._changed = anyio.Event()

    def wake(self) -> None:
        """Wake every task that waits for something of this stream."""
        self._changed.set()
        self._changed = anyio.Event()

    def fail(self, reason: str) -> None:
        """End the stream for its users."""
        if not self.error:
            self.error = reason
            if self.on_lost is not None:
                self.on_lost()
        self.wake()

    async def wait_headers(self) -> Fields:
        """Return the peer's headers once they are there.

        Raises:
            RemoteProtocolError: the stream was reset or the connection ended.
        """
        while self.headers is None:
            self._check()
            await self._changed.wait()
        return self.headers

    async def receive(self) -> bytes:
        """Return the next piece of the body.

        Raises:
            anyio.EndOfStream: the body is complete.
            RemoteProtocolError: the stream was reset or the connection ended.
        """
        while not self.chunks:
            if self.ended:
                raise anyio.EndOfStream
            self._check()
            await self._changed.wait()
        data, flow_bytes = self.chunks.popleft()
        self.buffered -= flow_bytes
        self._mux.acknowledge(self, flow_bytes)
        return data

    async def send(self, data: bytes, *, end: bool = False) -> None:
        """Send a piece of the body, as the peer's window allows.

        Raises:
            RemoteProtocolError: the stream was reset or the connection ended.
        """
        view = memoryview(data)
        while True:
            self._check()
            room = self._mux.send_room(self)
            if len(view) > room <= 0:
                await self._changed.wait()
                continue
            piece = view[:room]
            view = view[len(piece) :]
            self._mux.send_data(self, bytes(piece), end=end and not view)
            await self._mux.drain()
            if not view:
                return

    def release(self) -> None:
        """Be done with the stream: unread data is dropped, and what is not complete on both sides is reset."""
        self._mux.release(self)

    def _check(self) -> None:
        if self.error:
            raise RemoteProtocolError(self.error)


@final
class Mux:
    """The connection. :meth:`run` does the I/O; everything else is synchronous.

    Args:
        stream: connected; closed at the end of :meth:`run`.
        client_side: our role.
        on_request: for a server, called with each new stream.
    """

    def __init__(
        self, stream: ByteStream, *, client_side: bool, on_request: Callable[[MuxStream], None] | None = None
    ) -> None:
        self._stream = stream
        self._client = client_side
        self._on_request = on_request
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=client_side, header_encoding="utf-8")
        )
        stream_window, self._connection_window = CLIENT_WINDOWS if client_side else SERVER_WINDOWS
        values = {
            h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: stream_window,
            h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
            h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: 64 * 1024,
        }
        if client_side:
            values[h2.settings.SettingCodes.ENABLE_PUSH] = 0
        self._h2.local_settings = h2.settings.Settings(client=client_side, initial_values=values)
        self._guard = _FrameGuard(0 if client_side else _PREFACE_BYTES)
        self._streams: dict[int, MuxStream] = {}
        self._outgoing: deque[bytes] = deque()
        self._unsent = 0
        self._kick = Kick()
        self._drained = anyio.Event()
        self.closed_reason = ""
        """Why no new request is possible, or ``""``."""
        self.last_error: BaseException | None = None

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Do the I/O until the peer closes or breaks the protocol; never raises for either (see *closed_reason*)."""
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(self._connection_window - _DEFAULT_WINDOW)
        self._flush()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._write_loop)
                task_status.started()
                await self._read_loop()
                group.cancel_scope.cancel()
        finally:
            self._shut("the connection was closed")
            with anyio.move_on_after(1, shield=True):
                await self._stream.aclose()

    def open_stream(self, fields: Fields, *, end: bool) -> MuxStream:
        """Send request headers and return the new stream.

        Raises:
            RemoteProtocolError: the connection is closed.
            LocalProtocolError: too many streams are open, or a header is illegal.
        """
        if self.closed_reason:
            raise RemoteProtocolError(self.closed_reason)
        try:
            number = self._h2.get_next_available_stream_id()
            self._h2.send_headers(number, fields, end_stream=end)
        except h2.exceptions.ProtocolError as error:
            raise LocalProtocolError(f"cannot open an HTTP/2 stream: {error}") from error
        stream = self._streams[number] = MuxStream(self, number)
        stream.sent_end = end
        self._flush()
        return stream

    def send_headers(self, stream: MuxStream, fields: Fields, *, end: bool) -> None:
        """Send response headers.

        Raises:
            RemoteProtocolError: the stream is gone.
        """
        try:
            self._h2.send_headers(stream.id, fields, end_stream=end)
        except h2.exceptions.ProtocolError as error:
            raise RemoteProtocolError(f"the HTTP/2 stream is gone: {error}") from error
        stream.sent_end = end
        self._flush()

    def send_room(self, stream: MuxStream) -> int:
        """Return how many bytes may be sent on *stream* now."""
        try:
            return min(self._h2.local_flow_control_window(stream.id), self._h2.max_outbound_frame_size)
        except h2.exceptions.ProtocolError as error:
            raise RemoteProtocolError("the HTTP/2 stream is gone") from error

    def send_data(self, stream: MuxStream, data: bytes, *, end: bool) -> None:
        """Send one DATA frame within the window."""
        try:
            self._h2.send_data(stream.id, data, end_stream=end)
        except h2.exceptions.ProtocolError as error:
            raise RemoteProtocolError("the HTTP/2 stream is gone") from error
        stream.sent_end = end
        self._flush()

    async def drain(self) -> None:
        """Wait until little enough is unsent."""
        while self._unsent > MAX_UNSENT_BYTES and not self.closed_reason:
            await self._drained.wait()

    def acknowledge(self, stream: MuxStream, flow_bytes: int) -> None:
        """Open the peer's windows again by what was read."""
        if not flow_bytes or self.closed_reason:
            return
        try:
            self._h2.acknowledge_received_data(flow_bytes, stream.id)
        except h2.exceptions.ProtocolError:
            return  # the stream is over; h2 counted the bytes for the connection
        self._flush()

    def release(self, stream: MuxStream) -> None:
        """Forget *stream* and free what it holds; reset it unless both sides are complete."""
        known = self._streams.pop(stream.id, None)
        stream.on_lost = None
        left, stream.buffered = stream.buffered, 0
        stream.chunks.clear()
        self.acknowledge(stream, left)
        if known is None or self.closed_reason or (stream.ended and stream.sent_end):
            return
        # An answer that is complete before the request is (RFC 9113 section 8.1) is no error.
        code = h2.errors.ErrorCodes.NO_ERROR if stream.sent_end and not self._client else h2.errors.ErrorCodes.CANCEL
        try:
            self._h2.reset_stream(stream.id, code)
        except h2.exceptions.ProtocolError:
            return
        self._flush()

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data:
            self._outgoing.append(data)
            self._unsent += len(data)
            self._kick.kick()

    async def _write_loop(self) -> None:
        try:
            while True:
                await self._kick.wait()
                while self._outgoing:
                    data = b"".join(self._outgoing)
                    self._outgoing.clear()
                    await self._stream.send(data)
                    self._unsent -= len(data)
                    self._drained.set()
                    self._drained = anyio.Event()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            self.last_error = error
            self._unsent = 0
            self._shut("the connection broke")
            await self._stream.aclose()  # wakes the reader

    async def _read_loop(self) -> None:
        while True:
            try:
                data = await self._stream.receive(_READ_BYTES)
                self._guard.check(data)
                events = self._h2.receive_data(data)
            except anyio.EndOfStream as error:
                self.last_error = error
                self._shut("the peer closed the connection")
                return
            except (anyio.BrokenResourceError, anyio.ClosedResourceError, RemoteProtocolError) as error:
                self.last_error = error
                self._shut(f"the connection broke ({str(error) or type(error).__name__})")
                return
            except (h2.exceptions.ProtocolError, UnicodeDecodeError) as error:
                self.last_error = error
                self._flush()
                self._shut(f"the peer broke HTTP/2: {error}")
                with anyio.move_on_after(1):
                    while self._unsent:  # the GOAWAY that says why
                        await self._drained.wait()
                return
            for event in events:
                self._handle(event)
            self._flush()

    def _handle(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.DataReceived):
            stream = self._streams.get(event.stream_id or 0)
            flow_bytes = event.flow_controlled_length or 0
            if stream is None or not event.data:
                if flow_bytes:  # nobody reads it; the connection's window must not leak away
                    self._acknowledge_id(event.stream_id or 0, flow_bytes)
                return
            stream.chunks.append((event.data, flow_bytes))
            stream.buffered += flow_bytes
            stream.wake()
        elif isinstance(event, h2.events.RequestReceived):
            number = event.stream_id or 0
            stream = self._streams[number] = MuxStream(self, number)
            stream.headers = _text(event.headers)
            if self._on_request is not None:
                self._on_request(stream)
        elif isinstance(event, h2.events.ResponseReceived):
            stream = self._streams.get(event.stream_id or 0)
            if stream is not None:
                stream.headers = _text(event.headers)
                stream.wake()
        elif isinstance(event, h2.events.StreamEnded):
            stream = self._streams.get(event.stream_id or 0)
            if stream is not None:
                stream.ended = True
                stream.wake()
        elif isinstance(event, h2.events.StreamReset):
            stream = self._streams.pop(event.stream_id or 0, None)
            if stream is not None:
                stream.fail(f"the peer reset the stream (error {int(event.error_code or 0)})")
        elif isinstance(event, (h2.events.WindowUpdated, h2.events.RemoteSettingsChanged)):
            for stream in self._streams.values():
                stream.wake()
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.closed_reason = self.closed_reason or "the peer is going away"
            last = event.last_stream_id or 0
            for number in [number for number in self._streams if number > last and number % 2]:
                self._streams.pop(number).fail(self.closed_reason)

    def _acknowledge_id(self, number: int, flow_bytes: int) -> None:
        try:
            self._h2.acknowledge_received_data(flow_bytes, number)
        except (h2.exceptions.ProtocolError, ValueError):
            return

    def _shut(self, reason: str) -> None:
        self.closed_reason = self.closed_reason or reason
        streams = list(self._streams.values())
        self._streams.clear()
        for stream in streams:
            stream.fail(self.closed_reason)
        self._drained.set()
        self._drained = anyio.Event()


def _text(headers: object) -> Fields:
    fields: Fields = []
    if isinstance(headers, list):
        for name, value in headers:
            fields.append((str(name), str(value)))
    return fields
