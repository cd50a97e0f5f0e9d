"""The backend's side of the reverse proxy: connections, a pool of idle ones, and responses parsed by llhttp."""

import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias, final

import anyio
from anyio.abc import ByteStream
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from tsnetpy.runtime import clock
from tsnetpy.runtime.dial import connect_tcp
from tsnetpy.runtime.tls import connect_tls

from .config import ProxyTarget
from .headers import HeaderList
from .http1 import MAX_HEAD_BYTES, MAX_TRAILER_BYTES, RECEIVE_BYTES

CONNECT_TIMEOUT_S: Final = 10.0
CLOSE_S: Final = 1.0
MAX_IDLE: Final = 100
"""Idle connections kept per backend, and how long: what Go's transport keeps for the official Serve."""
IDLE_NS: Final = 90 * 1_000_000_000
FRESH_NS: Final = 1_000_000_000
"""A request that must not be sent twice takes no connection that was idle for longer than this."""

Dial: TypeAlias = Callable[[ProxyTarget], Awaitable[ByteStream]]
"""How to reach a backend; raises OSError."""


class BackendError(Exception):
    """The backend gave no usable response.

    Attributes:
        status: 502, or 504 when it took too long.
    """

    def __init__(self, why: str, status: int = 502) -> None:
        super().__init__(why)
        self.status = status


class StaleConnection(Exception):
    """A reused connection ended before the first byte of a response: it had been closed by the backend meanwhile."""


async def dial(target: ProxyTarget) -> ByteStream:
    """Connect to a backend through this host's own network.

    Raises:
        OSError: no connection.
        ssl.SSLError: the backend's certificate or its TLS is not acceptable.
    """
    if target.scheme == "unix":
        return await anyio.connect_unix(target.host)
    stream = await connect_tcp(target.host, target.port)
    if target.scheme == "http":
        return stream
    insecure = target.scheme == "https+insecure"
    return await connect_tls(stream, server_hostname=target.host, verify="none" if insecure else "system")


def describe(error: BaseException) -> str:
    """Return what went wrong in a few words that fit into an error message."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    cause = error.__cause__
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and isinstance(cause, BaseException):
        return describe(cause)
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, FileNotFoundError):
        return "no such socket"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not acceptable ({error.verify_message or error})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


@final
class ResponseHead:
    """Status line and fields of a response."""

    __slots__ = ("chunked", "content_length", "headers", "keep_alive", "reason", "status")

    def __init__(self, status: int, reason: bytes, headers: HeaderList, keep_alive: bool) -> None:
        self.status = status
        self.reason = reason
        self.headers = headers
        self.keep_alive = keep_alive
        self.content_length: int | None = None
        self.chunked = False
        for lower, _, value in headers:
            if lower == b"content-length":
                self.content_length = int(value)  # digits, checked by llhttp
            elif lower == b"transfer-encoding":
                self.chunked = True


@final
class _Sink:
    """What llhttp calls back for one backend connection."""

    __slots__ = (
        "body",
        "broken",
        "complete",
        "current",
        "head_request",
        "headers",
        "heads",
        "parser",
        "reason",
        "trailers",
    )

    def __init__(self) -> None:
        self.parser: HttpResponseParser
        self.reset(head_request=False)

    def reset(self, *, head_request: bool) -> None:
        self.head_request = head_request
        self.heads: deque[ResponseHead] = deque()
        self.current: ResponseHead | None = None
        self.body: list[bytes] = []
        self.trailers: list[tuple[bytes, bytes]] = []
        self.complete = False
        self.broken = ""
        self.reason = b""
        self.headers: HeaderList = []

    def on_message_begin(self) -> None:
        if self.complete:
            self.broken = "more than one response"
        self.reason = b""
        self.headers = []
        self.current = None

    def on_status(self, data: bytes) -> None:
        self.reason += data

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.current is None:
            self.headers.append((name.lower(), name, value.rstrip(b" \t")))
        elif len(self.trailers) * 64 < MAX_TRAILER_BYTES and len(value) < MAX_TRAILER_BYTES:
            self.trailers.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        parser = self.parser
        head = ResponseHead(parser.get_status_code(), self.reason, self.headers, parser.should_keep_alive())
        self.current = head
        self.heads.append(head)
        if head.status >= 200 and (self.head_request or head.status in (204, 304)):
            self.complete = True

    def on_body(self, data: bytes) -> None:
        if self.complete:
            self.broken = "a body where none belongs"
        else:
            self.body.append(data)

    def on_message_complete(self) -> None:
        if self.current is not None and self.current.status >= 200:
            self.complete = True


@final
class BackendConnection:
    """One connection to a backend; carries one request at a time."""

    __slots__ = ("_head_bytes", "_parser", "_reused", "_sink", "answered", "idle_since", "rest", "stream")

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.idle_since = 0
        self.answered = False
        self.rest = b""
        """After a switch of protocols: what came behind the head."""
        self._reused = False
        self._head_bytes = 0
        self._new_parser()

    def _new_parser(self) -> None:
        self._sink = _Sink()
        self._parser = HttpResponseParser(self._sink)
        self._sink.parser = self._parser

    def begin(self, *, head_request: bool) -> None:
        """Get ready for the response to a request; *head_request* when that is HEAD."""
        self._sink.reset(head_request=head_request)
        self._head_bytes = 0
        self._reused = self.answered
        self.answered = False

    async def send(self, data: bytes) -> None:
        """Send a part of the request.

        Raises:
            StaleConnection: the connection was a used one, and is closed.
            BackendError: the connection broke.
        """
        try:
            await self.stream.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise self._ended("closed the connection") from error

    def _ended(self, how: str) -> Exception:
        if self._reused and not self.answered:
            return StaleConnection()
        return BackendError(how)

    async def receive(self) -> None:
        """Receive once and parse.

        Raises:
            StaleConnection: a used connection ended before the response began.
            BackendError: the response is broken, or ended too early.
        """
        sink = self._sink
        try:
            data = await self.stream.receive(RECEIVE_BYTES)
        except anyio.EndOfStream:
            head = sink.current
            if head is not None and head.content_length is None and not head.chunked and head.status >= 200:
                sink.complete = True  # RFC 9112 §6.3: the end of the connection is the end of the body
                head.keep_alive = False
                return
            raise self._ended(
                "closed the connection in the middle of its response"
                if self.answered
                else "closed the connection without a response"
            ) from None
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise self._ended("reset the connection") from error
        self.answered = True
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as pause:
            self.rest = data[pause.args[0] :]
        except HttpParserError as error:
            if sink.current is not None and sink.current.status == 101:
                sink.broken = "switched protocols without saying to which"
            else:
                sink.broken = f"sent no valid HTTP response ({error})"
            if not sink.complete:
                raise BackendError(sink.broken) from None
        if sink.current is None and not sink.complete:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                raise BackendError("sent too large a response head")
        else:
            self._head_bytes = 0

    def next_head(self) -> ResponseHead | None:
        """Return the next head that has come, informational ones too."""
        heads = self._sink.heads
        return heads.popleft() if heads else None

    def take_body(self) -> bytes:
        """Return what has come of the body since the last call."""
        body = self._sink.body
        if not body:
            return b""
        data = body[0] if len(body) == 1 else b"".join(body)
        body.clear()
        return data

    @property
    def complete(self) -> bool:
        """True when the whole response is there."""
        return self._sink.complete

    @property
    def trailers(self) -> list[tuple[bytes, bytes]]:
        """Fields behind a chunked body."""
        return self._sink.trailers

    @property
    def reusable(self) -> bool:
        """True when the connection can carry the next request."""
        sink = self._sink
        head = sink.current
        return sink.complete and not sink.broken and head is not None and head.keep_alive

    def rearm(self) -> None:
        """Forget a parser that waits for the body which a HEAD response announced."""
        if self._sink.head_request:
            self._new_parser()


@final
class BackendPool:
    """The connections to one backend."""

    __slots__ = ("_dial", "_idle", "target")

    def __init__(self, target: ProxyTarget, dial: Dial = dial) -> None:
        self.target = target
        self._dial = dial
        self._idle: deque[BackendConnection] = deque()

    async def acquire(self, *, repeatable: bool, fresh: bool = False) -> BackendConnection:
        """Return a connection, an idle one if there is.

        Args:
            repeatable: the request may be sent again if the connection turns out to be dead.
            fresh: take a new connection.

        Raises:
            BackendError: no connection can be made.
        """
        now = clock.monotonic_ns()
        oldest = now - (IDLE_NS if repeatable else FRESH_NS)
        if not fresh:
            await self._expire(now)
            if self._idle and self._idle[-1].idle_since >= oldest:
                return self._idle.pop()
        try:
            with anyio.fail_after(CONNECT_TIMEOUT_S):
                return BackendConnection(await self._dial(self.target))
        except TimeoutError:
            raise BackendError(f"does not accept connections within {CONNECT_TIMEOUT_S:.0f} s", 504) from None
        except (OSError, anyio.BrokenResourceError, anyio.EndOfStream) as error:
            raise BackendError(f"cannot be reached: {describe(error)}") from error

    def release(self, connection: BackendConnection) -> bool:
        """Take a connection back after a complete response; False when the caller has to close it."""
        if not connection.reusable or len(self._idle) >= MAX_IDLE:
            return False
        connection.rearm()
        connection.idle_since = clock.monotonic_ns()
        self._idle.append(connection)
        return True

    async def _expire(self, now: int) -> None:
        while self._idle and self._idle[0].idle_since < now - IDLE_NS:
            await self._idle.popleft().stream.aclose()

    async def aclose(self) -> None:
        """Close the idle connections, also when the caller has been cancelled."""
        with anyio.move_on_after(CLOSE_S, shield=True):
            while self._idle:
                await self._idle.popleft().stream.aclose()
