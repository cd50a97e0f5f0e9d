"""HTTP/2 with prior knowledge over any byte stream: concurrent requests for a client, and a server of handlers."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Final, final

import anyio
from anyio.abc import ByteStream

from tsnetpy.base.errors import RemoteProtocolError

from ._h2mux import Fields, Mux, MuxStream

MAX_BODY_BYTES: Final = 1024 * 1024
"""What :meth:`Http2Response.read` and :meth:`Http2Request.read` take unless told otherwise."""
MAX_CONCURRENT_REQUESTS: Final = 100


async def _read_all(stream: MuxStream, max_bytes: int) -> bytes:
    collected = bytearray()
    while True:
        try:
            collected += await stream.receive()
        except anyio.EndOfStream:
            return bytes(collected)
        if len(collected) > max_bytes:
            stream.release()
            raise RemoteProtocolError(f"body of more than {max_bytes} bytes")


@final
class Http2Response:
    """An answer whose body is read as it comes."""

    __slots__ = ("_stream", "headers", "status")

    def __init__(self, stream: MuxStream, status: int, headers: Fields) -> None:
        self._stream = stream
        self.status = status
        self.headers = headers

    def header(self, name: str) -> str:
        """Return the first header called *name*, or ``""``."""
        wanted = name.lower()
        return next((value for key, value in self.headers if key == wanted), "")

    async def receive(self) -> bytes:
        """Return the next piece of the body.

        Raises:
            anyio.EndOfStream: the body is complete.
            RemoteProtocolError: the stream was reset or the connection ended.
        """
        return await self._stream.receive()

    async def read(self, max_bytes: int = MAX_BODY_BYTES) -> bytes:
        """Return the whole body.

        Raises:
            RemoteProtocolError: longer than *max_bytes*, reset, or the connection ended.
        """
        return await _read_all(self._stream, max_bytes)


@final
class _OpenRequest(AbstractAsyncContextManager[Http2Response]):
    """``async with client.stream(...) as response``; leaving it early resets the stream."""

    def __init__(self, client: "Http2Client", fields: Fields, body: bytes) -> None:
        self._client = client
        self._fields = fields
        self._body = body
        self._stream: MuxStream | None = None

    async def __aenter__(self) -> Http2Response:
        await self._client._limiter.acquire()
        try:
            stream = self._stream = self._client._mux.open_stream(self._fields, end=not self._body)
            if self._body:
                await stream.send(self._body, end=True)
            headers = await stream.wait_headers()
            pairs = dict(headers)
            status = pairs.get(":status", "")
            if not status.isascii() or not status.isdigit():
                raise RemoteProtocolError("answer without a status")
            return Http2Response(stream, int(status), [pair for pair in headers if not pair[0].startswith(":")])
        except BaseException:
            self._release()
            raise

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def _release(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.release()
        self._client._limiter.release()


@final
class Http2Client:
    """Concurrent requests over one connection. Start :meth:`run` in a task group first.

    Args:
        stream: connected; closed when :meth:`run` ends.
        authority: for ``:authority``.
        scheme: for ``:scheme``.
    """

    def __init__(self, stream: ByteStream, *, authority: str, scheme: str = "https") -> None:
        self._mux = Mux(stream, client_side=True)
        self._authority = authority
        self._scheme = scheme
        self._limiter = anyio.Semaphore(MAX_CONCURRENT_REQUESTS)

    @property
    def closed_reason(self) -> str:
        """Why no more requests are possible, or ``""``."""
        return self._mux.closed_reason

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Do the I/O until the connection ends; requests then raise ``RemoteProtocolError``."""
        await self._mux.run(task_status=task_status)

    def stream(
        self, method: str, path: str, *, headers: Sequence[tuple[str, str]] = (), body: bytes = b"", authority: str = ""
    ) -> AbstractAsyncContextManager[Http2Response]:
        """Return a context manager that sends a request and gives the answer once its headers are there.

        Raises:
            RemoteProtocolError: on entering: the connection ended or the stream was reset.
        """
        fields: Fields = [
            (":method", method),
            (":authority", authority or self._authority),
            (":scheme", self._scheme),
            (":path", path),
            *((name.lower(), value) for name, value in headers),
        ]
        if body:
            fields.append(("content-length", str(len(body))))
        return _OpenRequest(self, fields, body)

    async def request(
        self,
        method: str,
        path: str,
        *,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        authority: str = "",
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> tuple[Http2Response, bytes]:
        """Send a request and return the answer and its whole body.

        Raises:
            RemoteProtocolError: the connection ended, the stream was reset, or the body is too long.
        """
        async with self.stream(method, path, headers=headers, body=body, authority=authority) as response:
            return response, await response.read(max_body_bytes)


@final
class Http2Request:
    """One request on the server's side; the handler answers through it.

    Attributes:
        method, path, authority: pseudo headers (*path* with its query).
        headers: the others, names in lower case.
    """

    __slots__ = ("_mux", "_stream", "answered", "authority", "headers", "method", "path")

    def __init__(self, mux: Mux, stream: MuxStream) -> None:
        fields = stream.headers or []
        pseudo = dict(fields)
        self._mux = mux
        self._stream = stream
        self.method = pseudo.get(":method", "")
        self.path = pseudo.get(":path", "")
        self.authority = pseudo.get(":authority", "")
        self.headers: Fields = [pair for pair in fields if not pair[0].startswith(":")]
        self.answered = False

    def header(self, name: str) -> str:
        """Return the first header called *name*, or ``""``."""
        wanted = name.lower()
        return next((value for key, value in self.headers if key == wanted), "")

    async def read(self, max_bytes: int = MAX_BODY_BYTES) -> bytes:
        """Return the whole body.

        Raises:
            RemoteProtocolError: longer than *max_bytes*, reset, or the connection ended.
        """
        return await _read_all(self._stream, max_bytes)

    async def respond(self, status: int, body: bytes = b"", headers: Sequence[tuple[str, str]] = ()) -> None:
        """Send a whole answer.

        Raises:
            RemoteProtocolError: the client is gone.
        """
        await self.start(status, [*headers, ("content-length", str(len(body)))], end=not body)
        if body:
            await self.send(body, end=True)

    async def start(self, status: int, headers: Sequence[tuple[str, str]] = (), *, end: bool = False) -> None:
        """Send the head of an answer; follow with :meth:`send`."""
        self.answered = True
        fields = [(":status", str(status)), *((name.lower(), value) for name, value in headers)]
        self._mux.send_headers(self._stream, fields, end=end)
        await self._mux.drain()

    async def send(self, data: bytes, *, end: bool = False) -> None:
        """Send a piece of the body; waits while the client does not read.

        Raises:
            RemoteProtocolError: the client is gone.
        """
        await self._stream.send(data, end=end)


Handler = Callable[[Http2Request], Awaitable[None]]


async def serve_http2(stream: ByteStream, handler: Handler) -> None:
    """Serve one connection until it ends: *handler* runs in a task of its own per request.

    A handler is cancelled when its client resets the stream or the connection ends. One that returns without an answer
    leaves a 500; one that finds its client gone (``RemoteProtocolError``) just ends. Other exceptions pass through, and
    the connection ends.
    """
    async with anyio.create_task_group() as group:

        def start(stream_of_request: MuxStream) -> None:
            group.start_soon(_handle, mux, stream_of_request, handler)

        mux = Mux(stream, client_side=False, on_request=start)
        await mux.run()
        group.cancel_scope.cancel()


async def _handle(mux: Mux, stream: MuxStream, handler: Handler) -> None:
    with anyio.CancelScope() as scope:
        stream.on_lost = scope.cancel
        request = Http2Request(mux, stream)
        try:
            await handler(request)
            if not request.answered:
                await request.respond(500)
        except RemoteProtocolError:
            return
        finally:
            stream.release()


__all__ = ["Handler", "Http2Client", "Http2Request", "Http2Response", "serve_http2"]
