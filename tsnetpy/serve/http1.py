"""HTTP/1.1 on the server's side over any byte stream (RFC 9112), parsed by llhttp.

One :class:`Http1Connection` per client connection, one task, no queue: a request is read, handled and answered before
the next one is looked at, so that pipelined requests cost nothing and a slow handler closes the client's window.

What this refuses and lenient servers accept, because the two ends of a proxy must agree on where a message ends: bare
line feeds, folded lines, ``Transfer-Encoding`` together with ``Content-Length``, and any coding but ``chunked``.
"""

import re
from collections import deque
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, TypeAlias, final

import anyio
from anyio.abc import ByteStream
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from tsnetpy.base.instant import SECOND
from tsnetpy.runtime import clock

from .headers import HeaderList

MAX_HEAD_BYTES: Final = 256 * 1024
"""Longest request line with all fields. A connection may hold this much before anybody has looked at it."""
MAX_TRAILER_BYTES: Final = 16 * 1024
MAX_DISCARD_BYTES: Final = 256 * 1024
"""How much of a body that nobody wanted is read to save the connection."""
RECEIVE_BYTES: Final = 65536
LINGER_S: Final = 1.0

_VALID_HOST: Final = re.compile(rb"[A-Za-z0-9!$%&'()*+,\-.:;=\[\]_~]*")

_PROTOCOL: Final = re.compile(rb"[!-~]+")
_REASONS: Final = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}


def valid_host(host: bytes) -> bool:
    """Tell whether *host* may stand in a ``Host`` field; an empty one may."""
    return _VALID_HOST.fullmatch(host) is not None


def reason_phrase(status: int) -> bytes:
    """Return the customary phrase of a status code."""
    return _REASONS.get(status) or b"status code %d" % status


class BadRequest(Exception):
    """The client sent what cannot be answered but with an error, after which the connection ends."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class ClientGone(Exception):
    """The client's connection ended or broke in the middle of something."""


@final
class Request:
    """A request. The body arrives in *body* piece by piece; :meth:`Http1Connection.read_body` hands it out."""

    __slots__ = (
        "body",
        "chunked",
        "complete",
        "content_length",
        "expects_continue",
        "headers",
        "host",
        "http10",
        "keep_alive",
        "method",
        "target",
        "told_to_continue",
        "trailers",
        "upgrade",
    )

    def __init__(self, method: bytes, target: bytes, headers: HeaderList) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.host = b""
        self.http10 = False
        self.keep_alive = True
        self.content_length: int | None = None
        self.chunked = False
        self.upgrade = b""
        self.expects_continue = False
        self.told_to_continue = False
        self.body: deque[bytes] = deque()
        self.trailers: list[tuple[bytes, bytes]] = []
        self.complete = False

    def header(self, lower: bytes) -> bytes | None:
        """Return the first field of that name (in lower case), or None."""
        for name, _, value in self.headers:
            if name == lower:
                return value
        return None

    @property
    def awaits_continue(self) -> bool:
        """True while the client holds its body back for a 100 response."""
        return self.expects_continue and not self.complete and not self.body and not self.told_to_continue


@final
class _Sink:
    """What llhttp calls back. Raising here would be reported as a callback error only, so errors are kept instead."""

    __slots__ = ("current", "error", "headers", "in_head", "parser", "ready", "trailer_bytes", "url")

    def __init__(self) -> None:
        self.parser: HttpRequestParser
        self.url = b""
        self.headers: HeaderList = []
        self.in_head = True
        self.trailer_bytes = 0
        self.current: Request | None = None
        self.ready: deque[Request] = deque()
        self.error: BadRequest | None = None

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.in_head = True
        self.current = None

    def on_url(self, data: bytes) -> None:
        self.url += data

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.in_head:
            self.headers.append((name.lower(), name, value.rstrip(b" \t")))
            return
        self.trailer_bytes += len(name) + len(value)
        if self.trailer_bytes > MAX_TRAILER_BYTES:
            self.fail(431, "trailers too large")
        elif self.current is not None:
            self.current.trailers.append((name, value))

    def on_headers_complete(self) -> None:
        self.in_head = False
        self.trailer_bytes = 0
        if self.error is None:
            request = self._request()
            if request is not None:
                self.current = request
                self.ready.append(request)

    def on_body(self, data: bytes) -> None:
        if self.current is not None:
            self.current.body.append(data)

    def on_message_complete(self) -> None:
        if self.current is not None:
            self.current.complete = True

    def fail(self, status: int, why: str) -> None:
        if self.error is None:
            self.error = BadRequest(status, why)

    def _request(self) -> Request | None:
        parser = self.parser
        request = Request(parser.get_method(), self.url, self.headers)
        version = parser.get_http_version()
        if version != "1.1":
            request.http10 = True
            if version != "1.0":
                self.fail(505, "unsupported protocol version")
                return None
        hosts = 0
        upgrade = b""
        for lower, _, value in self.headers:
            if lower == b"host":
                hosts += 1
                request.host = value
            elif lower == b"content-length":
                request.content_length = int(value)  # llhttp has checked the digits and that there is one
            elif lower == b"transfer-encoding":
                if value.lower() != b"chunked":
                    self.fail(501, "Unsupported transfer encoding")
                    return None
                request.chunked = True
            elif lower == b"upgrade":
                upgrade = value if _PROTOCOL.fullmatch(value) else b""
            elif lower == b"expect":
                if value.lower() != b"100-continue":
                    self.fail(417, "only 100-continue can be expected")
                    return None
                request.expects_continue = not request.http10
        if hosts != 1 and (hosts or not request.http10):
            self.fail(400, "too many Host headers" if hosts else "missing required Host header")
            return None
        if not valid_host(request.host):
            self.fail(400, "malformed Host header")
            return None
        if request.chunked and request.http10:
            self.fail(400, "Transfer-Encoding in HTTP/1.0")  # RFC 9112 §6.1: framing is faulty
            return None
        request.keep_alive = parser.should_keep_alive()
        if upgrade and parser.should_upgrade() and request.method != b"CONNECT":
            request.upgrade = upgrade
        return request


@final
class Http1Connection:
    """One client connection.

    Attributes:
        stream: the transport; handlers that take the connection over use it directly.
        client_ip: the peer's address in text form.
        secure: True over TLS.
        taken_over: set by a handler after which nothing more is HTTP here.
        must_close: set when the connection cannot carry another request.
        trouble: why the response to this request is an error, for the access log.
    """

    __slots__ = (
        "_eof",
        "_head_bytes",
        "_leftover",
        "_parser",
        "_sink",
        "client_ip",
        "client_port",
        "must_close",
        "secure",
        "sent_bytes",
        "status",
        "stream",
        "taken_over",
        "trouble",
    )

    def __init__(self, stream: ByteStream, client_ip: str, client_port: int = 0, *, secure: bool = False) -> None:
        self.stream = stream
        self.client_ip = client_ip
        self.client_port = client_port
        self.secure = secure
        self.trouble = ""
        self.taken_over = False
        self.must_close = False
        self.status = 0
        self.sent_bytes = 0
        self._eof = False
        self._head_bytes = 0
        self._leftover = b""
        self._new_parser()

    def _new_parser(self) -> None:
        self._sink = _Sink()
        self._parser = HttpRequestParser(self._sink)
        self._sink.parser = self._parser

    async def next_request(self) -> Request | None:
        """Return the next request once its head is there, or None at the end of the connection.

        Raises:
            BadRequest: what came is no request; answer and close.
            ClientGone: the transport broke.
        """
        sink = self._sink
        if self._leftover:
            data, self._leftover = self._leftover, b""
            self._feed(data)
        while not sink.ready:
            if sink.error is not None:
                raise sink.error
            if not await self._fill():
                if self._head_bytes:
                    raise BadRequest(400, "the request ends in its head")
                return None
        return sink.ready.popleft()

    @property
    def half_closed(self) -> bool:
        """True when the client has ended its side of the connection."""
        return self._eof

    async def _fill(self) -> bool:
        """Receive once and parse; False at the end of the stream."""
        if self._eof:
            return False
        try:
            data = await self.stream.receive(RECEIVE_BYTES)
        except anyio.EndOfStream:
            self._eof = True
            return False
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise ClientGone("the connection broke") from error
        self._feed(data)
        return True

    def _feed(self, data: bytes) -> None:
        sink = self._sink
        if sink.error is not None:
            return
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as pause:
            self._after_upgrade(data[pause.args[0] :])
        except HttpParserError as error:
            sink.fail(400, str(error))
        current = sink.current
        if current is not None:
            self._head_bytes = 0
        elif self._head_bytes > MAX_HEAD_BYTES:
            sink.fail(431, "request head too large")

    def _after_upgrade(self, rest: bytes) -> None:
        """Go on after llhttp has stopped at a request that wants another protocol.

        llhttp believes that no body follows. A request with one cannot switch (its body would stand where the new
        protocol starts), so it loses its wish, and a fresh parser is told about the body with a head of our own.
        """
        request = self._sink.current
        if request is None:
            return
        if not (request.chunked or request.content_length):
            self._leftover = rest
            return
        request.upgrade = b""
        request.complete = False
        ready = self._sink.ready
        self._new_parser()
        sink = self._sink
        length = (
            b"transfer-encoding: chunked" if request.chunked else b"content-length: %d" % (request.content_length or 0)
        )
        self._parser.feed_data(b"POST / HTTP/1.1\r\nhost: x\r\n%s\r\n\r\n" % length)
        sink.ready = ready
        sink.current = request
        self._feed(rest)

    async def read_body(self, request: Request) -> bytes:
        """Return the next piece of the body; ``b""`` at its end.

        Raises:
            BadRequest: the framing of the body is broken.
            ClientGone: the connection ended inside the body.
        """
        while True:
            body = request.body
            if body:
                if len(body) == 1:
                    return body.popleft()
                data = b"".join(body)
                body.clear()
                return data
            if request.complete:
                return b""
            if self._sink.error is not None:
                raise self._sink.error
            if not await self._fill():
                raise ClientGone("the request ends in its body")

    async def wait_gone(self) -> None:
        """Return when the client has gone away. Waits forever once the client has sent something more instead.

        Only for a request whose body is complete. At most one receive is done, so that memory stays bounded.
        """
        try:
            data = b"" if self._eof else await self.stream.receive(RECEIVE_BYTES)
        except anyio.EndOfStream:
            self._eof = True
            data = b""
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return
        if data:
            self._leftover += data
            await anyio.sleep_forever()

    def take_leftover(self) -> bytes:
        """Return and forget what was received behind the present request, for a tunnel."""
        data, self._leftover = self._leftover, b""
        return data

    async def send(self, data: bytes) -> None:
        """Send bytes to the client.

        Raises:
            ClientGone: it has gone.
        """
        try:
            await self.stream.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise ClientGone("the connection broke") from error
        self.sent_bytes += len(data)

    async def send_continue(self, request: Request) -> None:
        """Tell the client to send its body, once."""
        if not request.told_to_continue:
            request.told_to_continue = True
            await self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def head(self, request: Request, status: int, fields: bytes, reason: bytes = b"") -> bytes:
        """Return the head of a final response, with what the connection needs in it.

        Decides here whether the connection goes on after the request, and says so to the client.
        """
        self.status = status
        line = b"%s %d %s\r\n" % (
            b"HTTP/1.0" if request.http10 else b"HTTP/1.1",
            status,
            reason or reason_phrase(status),
        )
        if request.awaits_continue:
            self.must_close = True  # whether the client sends its body after this is its own choice
        if not request.keep_alive:
            self.must_close = True
        if self.must_close:
            return line + fields + (b"\r\n" if request.http10 else b"Connection: close\r\n\r\n")
        return line + fields + (b"Connection: keep-alive\r\n\r\n" if request.http10 else b"\r\n")

    async def respond(
        self, request: Request, status: int, body: bytes, content_type: bytes = b"", extra: bytes = b""
    ) -> None:
        """Send a whole response in one piece.

        Args:
            request: what it answers.
            status: the code.
            body: left out for HEAD, its length is not.
            content_type: for the field of that name, ``b""`` for none.
            extra: more serialized header lines.
        """
        fields = extra + b"Date: %s\r\nContent-Length: %d\r\n" % (http_date(), len(body))
        if content_type:
            fields = b"Content-Type: %s\r\n" % content_type + fields
        head = self.head(request, status, fields)
        await self.send(head if request.method == b"HEAD" else head + body)

    async def respond_text(self, request: Request, status: int, text: str) -> None:
        """Send a short plain text, as an error message or such."""
        await self.respond(
            request,
            status,
            text.encode("utf-8") + b"\n",
            b"text/plain; charset=utf-8",
            b"X-Content-Type-Options: nosniff\r\n",
        )

    async def finish(self, request: Request) -> bool:
        """Leave the request behind; tell whether the connection can carry another one."""
        if self.must_close or self.taken_over:
            return False
        discarded = 0
        try:
            while not request.complete or request.body:
                discarded += len(await self.read_body(request))
                if discarded > MAX_DISCARD_BYTES:
                    return False
        except (BadRequest, ClientGone):
            return False
        return True

    async def refuse(self, error: BadRequest) -> None:
        """Answer a request that could not be read."""
        self.status = error.status
        phrase = reason_phrase(error.status)
        body = b"%d %s: %s" % (error.status, phrase, str(error).encode("latin-1", "replace"))
        await self.send(
            b"HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n%s"
            % (error.status, phrase, body)
        )

    async def linger(self) -> None:
        """Close in the order that lets the client read what was sent last (RFC 9112 §9.6)."""
        with anyio.move_on_after(LINGER_S):
            try:
                await self.stream.send_eof()
                if not self._eof:
                    taken = 0
                    while taken < MAX_DISCARD_BYTES:
                        taken += len(await self.stream.receive(RECEIVE_BYTES))
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, NotImplementedError):
                return


Handler: TypeAlias = Callable[[Http1Connection, Request], Awaitable[None]]

_date: list[tuple[int, bytes]] = [(-1, b"")]


def http_date() -> bytes:
    """Return the present date for a ``Date`` field, made once a second (RFC 9110 §6.6.1)."""
    second = clock.wall_ns() // SECOND
    if _date[0][0] != second:
        _date[0] = (second, formatdate(second, usegmt=True).encode("ascii"))
    return _date[0][1]
