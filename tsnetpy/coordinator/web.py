"""HTTP/1.1 for the coordinator's two doors (control and DERP): small requests, small answers, upgrades.

Everything that reaches this code comes from strangers, so each size and each wait has a bound.
"""

import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs

import anyio
import h11
from anyio.abc import ByteStream, SocketAttribute, SocketStream

from tsnetpy.runtime.accepted import hold_reading

_log = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 64 * 1024
IDLE_TIMEOUT_S: Final = 60.0
"""Between requests, and for the whole of one request: a slow sender holds its place no longer."""
_READ_BYTES: Final = 16 * 1024
_CLOSE_TIMEOUT_S: Final = 1.0

Fields = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class WebRequest:
    """One request, read whole."""

    method: str
    path: str
    """Without the query."""
    query: str
    headers: Fields
    """Names in lower case."""
    body: bytes = b""

    def header(self, name: str) -> str:
        """Return the first header called *name*, or ``""``."""
        wanted = name.lower()
        return next((value for key, value in self.headers if key == wanted), "")

    def form(self) -> dict[str, str]:
        """Return the fields of a submitted form; of repeated ones the last. No form, no fields."""
        try:
            fields = parse_qs(self.body.decode(), max_num_fields=16)
        except ValueError:
            return {}
        return {name: values[-1] for name, values in fields.items()}


@dataclass(frozen=True, slots=True)
class WebResponse:
    """One answer."""

    status: int
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: Fields = ()


@dataclass(frozen=True, slots=True)
class Switch:
    """Answer 101 and hand the connection over."""

    headers: Fields
    """Of the 101, ``Upgrade`` and ``Connection`` among them."""
    run: Callable[[ByteStream, bytes], Awaitable[None]]
    """Gets the stream and what the client sent already; when it returns the connection is closed."""
    silent: bool = False
    """Send no 101: the client does not wait for one (DERP's fast start)."""


WebHandler = Callable[[WebRequest], Awaitable[WebResponse | Switch]]


def set_no_delay(stream: SocketStream) -> None:
    """Send small records at once: Nagle's algorithm and delayed acknowledgements add 40 ms to every handshake."""
    stream.extra(SocketAttribute.raw_socket).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


async def serve_web(stream: ByteStream, handler: WebHandler) -> None:
    """Serve one connection until it ends, breaks HTTP, stays idle too long, or is handed over.

    Raises:
        anyio.BrokenResourceError: the transport failed.
    """
    connection = h11.Connection(h11.SERVER)
    while True:
        request: WebRequest | None = None
        try:
            with anyio.move_on_after(IDLE_TIMEOUT_S):
                request = await _read_request(stream, connection)
            if request is None:
                return
            answer = await handler(request)
            if isinstance(answer, Switch):
                if not answer.silent:
                    await _send(
                        stream, connection, h11.InformationalResponse(status_code=101, headers=list(answer.headers))
                    )
                await answer.run(stream, bytes(connection.trailing_data[0]))
                return
            await _respond(stream, connection, request, answer)
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()
        except h11.ProtocolError:
            return  # not worth an answer: whoever it is does not speak HTTP


async def _read_request(stream: ByteStream, connection: h11.Connection) -> WebRequest | None:
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                await _send(stream, connection, h11.InformationalResponse(status_code=100, headers=[]))
            try:
                data = await stream.receive(_READ_BYTES)
            except anyio.EndOfStream:
                data = b""
            connection.receive_data(data)
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_BODY_BYTES:
                raise h11.RemoteProtocolError("request body is too long")
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            path, _, query = head.target.decode("ascii", "replace").partition("?")
            headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers)
            return WebRequest(head.method.decode("ascii", "replace"), path, query, headers, bytes(body))
        else:
            return None  # closed, or paused behind an upgrade that was refused


async def _respond(stream: ByteStream, connection: h11.Connection, request: WebRequest, answer: WebResponse) -> None:
    headers = [*answer.headers, ("Content-Length", str(len(answer.body)))]
    if answer.body:
        headers.append(("Content-Type", answer.content_type))
    out = connection.send(h11.Response(status_code=answer.status, headers=headers)) or b""
    if answer.body and request.method != "HEAD":
        out += connection.send(h11.Data(data=answer.body)) or b""
    out += connection.send(h11.EndOfMessage()) or b""
    await stream.send(out)


async def _send(stream: ByteStream, connection: h11.Connection, event: h11.InformationalResponse) -> None:
    await stream.send(connection.send(event) or b"")


async def guard(stream: SocketStream, serve: Callable[[SocketStream], Awaitable[None]], what: str) -> None:
    """Run *serve* for one accepted connection and close it; whatever goes wrong ends that connection only."""
    try:
        set_no_delay(stream)
        hold_reading(stream)
        await serve(stream)
    except Exception as error:
        # The border of the server: a bug that one client can reach must not throw out the others.
        if _is_network_trouble(error):
            _log.debug("%s: connection ended: %r", what, error)
        else:
            _log.exception("%s: connection failed", what)
    finally:
        with anyio.move_on_after(_CLOSE_TIMEOUT_S, shield=True):
            await stream.aclose()


def _is_network_trouble(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_is_network_trouble(inner) for inner in error.exceptions)
    return isinstance(
        error, OSError | anyio.BrokenResourceError | anyio.ClosedResourceError | anyio.EndOfStream | TimeoutError
    )
