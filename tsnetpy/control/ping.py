"""Answering the server's pings (reference, section 6): proof of life, and small HTTP requests through it ("c2n")."""

from typing import Final
from urllib.parse import urlsplit

import anyio
import h11

from tsnetpy.base.errors import TsnetError
from tsnetpy.runtime import http1
from tsnetpy.runtime.http2 import Http2Client
from tsnetpy.runtime.tls import Verify, connect_tls
from tsnetpy.tailcfg.codec import encode
from tsnetpy.tailcfg.mapping import PingRequest, PingResponse

from .dial import TRANSPORT_ERRORS, Connect, ServerUrl

PING_SECONDS: Final = 30.0
_MAX_TYPES: Final = 8
_C2N: Final = "c2n"


async def answer_ping(ping: PingRequest, http: Http2Client, *, connect: Connect, verify: Verify) -> str:
    """Do what *ping* asks; return ``""`` or what went wrong. It never raises for trouble on the wire."""
    try:
        with anyio.fail_after(PING_SECONDS):
            if not ping.types:
                await _send("HEAD", ping, b"", http, connect, verify)
            elif ping.types == _C2N:
                await _send("POST", ping, c2n_answer(ping.payload), http, connect, verify)
            else:
                for kind in ping.types.split(",")[:_MAX_TYPES]:
                    reply = PingResponse(type=kind, ip=ping.ip, err="this client answers no pings of this type")
                    await _send("POST", ping, encode(reply), http, connect, verify)
    except (*TRANSPORT_ERRORS, TsnetError, ValueError) as error:  # ValueError: a URL that does not parse
        return f"ping not answered: {type(error).__name__}"
    return ""


async def _send(
    method: str, ping: PingRequest, body: bytes, http: Http2Client, connect: Connect, verify: Verify
) -> None:
    target = urlsplit(ping.url)
    path = (target.path or "/") + (f"?{target.query}" if target.query else "")
    if ping.url_is_noise or ping.types == _C2N:
        await http.request(method, path, body=body)
        return
    url = ServerUrl.parse(f"{target.scheme}://{target.netloc}")
    stream = await connect(url.host, url.default_port)
    try:
        if not url.is_plain:
            stream = await connect_tls(stream, server_hostname=url.host, verify=verify)
        await http1.request(stream, method, path, host=url.authority, body=body)
    finally:
        with anyio.move_on_after(1, shield=True):
            await stream.aclose()


def c2n_answer(payload: bytes) -> bytes:
    """Return the raw HTTP answer to the raw HTTP request *payload*: ``/echo`` returns its body, the rest is 400."""
    connection = h11.Connection(h11.SERVER)
    request: h11.Request | None = None
    body = bytearray()
    try:
        connection.receive_data(payload)
        connection.receive_data(b"")
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                break
    except h11.RemoteProtocolError:
        request = None
    if request is not None and request.target.partition(b"?")[0] == b"/echo":
        return _http_answer(200, "OK", bytes(body))
    return _http_answer(400, "Bad Request", b"unknown c2n path\n")


def _http_answer(status: int, reason: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status} {reason}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
