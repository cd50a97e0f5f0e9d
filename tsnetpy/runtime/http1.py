"""The few HTTP/1.1 requests a node makes, over any byte stream: ``/key``, pings, and upgrades (ts2021, DERP).

One request per connection; no pool, no redirects, no cookies. What comes after a ``101`` belongs to the new protocol,
and bytes of it that the parser has already read are handed over.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import anyio
import h11
from anyio.abc import ByteStream

from tsnetpy.base.errors import RemoteProtocolError

Headers = Sequence[tuple[str, str]]

MAX_BODY_BYTES: Final = 64 * 1024
"""Enough for every answer a node reads over HTTP/1.1 (the official client reads as much of ``/key``)."""
_READ_BYTES: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """An answer, read whole."""

    status: int
    headers: tuple[tuple[str, str], ...]
    """Names in lower case."""
    body: bytes

    def header(self, name: str) -> str:
        """Return the first header called *name*, or ``""``."""
        wanted = name.lower()
        return next((value for key, value in self.headers if key == wanted), "")


async def request(
    stream: ByteStream,
    method: str,
    target: str,
    *,
    host: str,
    headers: Headers = (),
    body: bytes = b"",
    max_body_bytes: int = MAX_BODY_BYTES,
) -> HttpResponse:
    """Send one request over *stream* and return the answer; the connection is of no further use.

    Args:
        stream: connected; stays open (the caller closes it).
        method: for instance ``GET``.
        target: path and query.
        host: the ``Host`` header.
        headers: more headers.
        body: sent with a ``Content-Length``.
        max_body_bytes: a longer answer is an error.

    Raises:
        RemoteProtocolError: the answer is no HTTP, too long, or incomplete.
    """
    connection = h11.Connection(h11.CLIENT)
    await _send(stream, connection, method, target, [("Connection", "close"), *headers], host, body)
    head: h11.Response | None = None
    collected = bytearray()
    while True:
        event = await _next_event(stream, connection)
        if isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            collected += event.data
            if len(collected) > max_body_bytes:
                raise RemoteProtocolError(f"answer of more than {max_body_bytes} bytes")
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            return HttpResponse(head.status_code, _headers(head), bytes(collected))
        elif isinstance(event, (h11.ConnectionClosed, h11.EndOfMessage)):
            raise RemoteProtocolError("connection closed before an answer")


async def upgrade(
    stream: ByteStream, target: str, *, host: str, protocol: str, method: str = "GET", headers: Headers = ()
) -> tuple[HttpResponse, bytes]:
    """Ask to switch *stream* to *protocol*; return the ``101`` answer and the bytes that already followed it.

    Raises:
        RemoteProtocolError: another answer (the status is in the text), another protocol, or no HTTP.
    """
    connection = h11.Connection(h11.CLIENT)
    await _send(
        stream, connection, method, target, [("Upgrade", protocol), ("Connection", "upgrade"), *headers], host, b""
    )
    while True:
        event = await _next_event(stream, connection)
        if isinstance(event, h11.InformationalResponse):
            if event.status_code != 101:
                continue
            answer = HttpResponse(101, _headers(event), b"")
            if answer.header("upgrade").lower() != protocol.lower():
                raise RemoteProtocolError(f"the server switches to {answer.header('upgrade')!r}, not {protocol!r}")
            return answer, connection.trailing_data[0]
        if isinstance(event, h11.Response):
            raise RemoteProtocolError(f"the server answers {event.status_code} instead of switching to {protocol}")
        if isinstance(event, h11.ConnectionClosed):
            raise RemoteProtocolError("connection closed before an answer")


async def _send(
    stream: ByteStream, connection: h11.Connection, method: str, target: str, headers: Headers, host: str, body: bytes
) -> None:
    fields = [("Host", host), *headers]
    if body or method in ("POST", "PUT", "PATCH"):
        fields.append(("Content-Length", str(len(body))))
    out = bytearray(connection.send(h11.Request(method=method, target=target, headers=fields)) or b"")
    if body:
        out += connection.send(h11.Data(data=body)) or b""
    out += connection.send(h11.EndOfMessage()) or b""
    await stream.send(bytes(out))


async def _next_event(stream: ByteStream, connection: h11.Connection) -> object:
    ended = False
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as error:
            text = "the server closed the connection in its answer" if ended else "the server does not speak HTTP/1.1"
            raise RemoteProtocolError(text) from error
        if event is h11.PAUSED:
            raise RemoteProtocolError("the server sends more than one answer")
        if event is not h11.NEED_DATA:
            return event
        try:
            data = await stream.receive(_READ_BYTES)
        except anyio.EndOfStream:
            data = b""
            ended = True
        connection.receive_data(data)


def _headers(event: h11.Response | h11.InformationalResponse) -> tuple[tuple[str, str], ...]:
    return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers)
