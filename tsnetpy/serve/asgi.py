"""ASGI applications (specification 3.0) on our HTTP/1.1 connections: ``http``, ``websocket`` and ``lifespan`` scopes.

The application runs in the connection's own task. Beside the standard keys a scope has
``scope["extensions"]["tailscale"]``: a dictionary with ``login``, ``name``, ``profile_pic``, ``node`` and ``tags`` of
the caller, so that an application needs no headers to know who asks. The headers are there, too.
"""

import importlib
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias, cast, final
from urllib.parse import unquote_to_bytes

import anyio
from anyio.abc import TaskGroup
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, RejectConnection, TextMessage
from wsproto.events import Request as WsRequest
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from tsnetpy.base.errors import ConfigError

from .config import AsgiTarget
from .headers import PROXY_OWNED
from .http1 import RECEIVE_BYTES, BadRequest, ClientGone, Http1Connection, Request, http_date

Message: TypeAlias = MutableMapping[str, Any]
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

LIFESPAN_TIMEOUT_S: Final = 30.0
SHUTDOWN_TIMEOUT_S: Final = 1.0
MAX_WEBSOCKET_MESSAGE: Final = 16 * 1024 * 1024

_log = logging.getLogger("tsnetpy.serve")


def load_app(target: AsgiTarget) -> AsgiApp:
    """Return the application of a target, importing it when it is an import string.

    Raises:
        ConfigError: it cannot be imported, or is not callable.
    """
    app = target.app
    if isinstance(app, str):
        module_name, _, attributes = app.partition(":")
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())  # like every ASGI server: the application lies where one starts it
        try:
            app = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"cannot import {module_name!r}: {error}",
                hint="start in the directory of the module, and check its name",
            ) from error
        for name in attributes.split("."):
            try:
                app = getattr(app, name)
            except AttributeError:
                raise ConfigError(f"module {module_name!r} has no {attributes!r}") from None
    if not callable(app):
        raise ConfigError(f"{target} is not callable", hint="name the ASGI application object, like main:app")
    return cast("AsgiApp", app)


def _scope_headers(request: Request, proxy_fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    headers = [
        (lower, value)
        for lower, _, value in request.headers
        if lower not in PROXY_OWNED and not (b"_" in lower and lower.replace(b"_", b"-") in PROXY_OWNED)
    ]
    headers.extend((name.lower(), value) for name, value in proxy_fields)
    return headers


def make_scope(
    kind: str,
    conn: Http1Connection,
    request: Request,
    *,
    prefix: bytes,
    rest: bytes,
    query: bytes | None,
    proxy_fields: list[tuple[bytes, bytes]],
    server: tuple[str, int],
    caller: dict[str, object],
    state: dict[str, Any],
) -> Scope:
    """Return the connection scope of a request; ``path`` is the whole path, ``root_path`` the mount."""
    raw_path = prefix + rest
    secure = conn.secure
    scheme = "http" if kind == "http" else "ws"
    scope: Scope = {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.0" if request.http10 else "1.1",
        "scheme": scheme + "s" if secure else scheme,
        "path": unquote_to_bytes(raw_path).decode("utf-8", "replace"),
        "raw_path": raw_path,
        "root_path": unquote_to_bytes(prefix).decode("utf-8", "replace"),
        "query_string": query or b"",
        "headers": _scope_headers(request, proxy_fields),
        "client": (conn.client_ip, conn.client_port),
        "server": server,
        "extensions": {"tailscale": caller},
        "state": dict(state),
    }
    if kind == "http":
        scope["method"] = request.method.decode("ascii")
    return scope


@final
class _HttpExchange:
    """``receive`` and ``send`` of one request."""

    __slots__ = ("_body_taken", "_chunked", "_conn", "_gone", "_head", "_left", "_request", "_sent_end", "_started")

    def __init__(self, conn: Http1Connection, request: Request) -> None:
        self._conn = conn
        self._request = request
        self._head: tuple[int, list[tuple[bytes, bytes]]] | None = None
        self._body_taken = False
        self._started = False
        self._sent_end = False
        self._gone = False
        self._chunked = False
        self._left: int | None = None

    @property
    def started(self) -> bool:
        """True when a head has gone out."""
        return self._started

    @property
    def finished(self) -> bool:
        """True when the whole response has gone out."""
        return self._sent_end

    async def receive(self) -> Message:
        conn, request = self._conn, self._request
        if not self._body_taken:
            if request.awaits_continue:
                await conn.send_continue(request)
            try:
                data = await conn.read_body(request)
            except (BadRequest, ClientGone):
                self._gone = self._body_taken = True
                conn.must_close = True
                return {"type": "http.disconnect"}
            more = bool(request.body) or not request.complete
            self._body_taken = not more
            return {"type": "http.request", "body": data, "more_body": more}
        if not self._gone and not self._sent_end:
            await conn.wait_gone()
            self._gone = True
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            if self._head is not None:
                raise RuntimeError("http.response.start was sent before")
            headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
            self._head = (int(message["status"]), headers)
            return
        if kind != "http.response.body":
            raise RuntimeError(f"no message of an HTTP response: {kind!r}")
        if self._head is None:
            raise RuntimeError("http.response.body came before http.response.start")
        if self._sent_end:
            raise RuntimeError("the response had ended")
        body = bytes(message.get("body", b""))
        more = bool(message.get("more_body", False))
        out = b""
        if not self._started:
            out = self._serialize_head(self._head, None if more else len(body))
            self._started = True
        if self._request.method != b"HEAD" and self._head[0] not in (204, 304):
            if self._chunked:
                out += b"%x\r\n%s\r\n" % (len(body), body) if body else b""
                out += b"" if more else b"0\r\n\r\n"
            else:
                if self._left is not None:
                    self._left -= len(body)
                    if self._left < 0:
                        raise RuntimeError("the response is longer than its content-length")
                out += body
        if not more:
            self._sent_end = True
            if self._left:
                self._conn.must_close = True
        if out:
            await self._conn.send(out)
        else:
            await anyio.lowlevel.checkpoint()

    def _serialize_head(self, head: tuple[int, list[tuple[bytes, bytes]]], length: int | None) -> bytes:
        status, headers = head
        parts: list[bytes] = []
        known = dated = False
        for name, value in headers:
            lower = name.lower()
            if b"\r" in value or b"\n" in value or b"\r" in name or b"\n" in name or b":" in name:
                raise RuntimeError(f"no header field: {name!r}")
            if lower in (b"connection", b"transfer-encoding", b"keep-alive"):
                if lower == b"connection" and value.lower() == b"close":
                    self._conn.must_close = True
                continue
            if lower == b"content-length":
                known = True
                self._left = int(value)
            elif lower == b"date":
                dated = True
            parts += (name, b": ", value, b"\r\n")
        if not dated:
            parts += (b"Date: ", http_date(), b"\r\n")
        if self._request.method == b"HEAD" or status in (204, 304):
            self._left = None
        elif not known:
            if length is not None:
                parts.append(b"Content-Length: %d\r\n" % length)
            elif self._request.http10:
                self._conn.must_close = True
            else:
                self._chunked = True
                parts.append(b"Transfer-Encoding: chunked\r\n")
        return self._conn.head(self._request, status, b"".join(parts))


async def handle_http(app: AsgiApp, conn: Http1Connection, request: Request, scope: Scope) -> None:
    """Let the application answer a request."""
    exchange = _HttpExchange(conn, request)
    try:
        await app(scope, exchange.receive, exchange.send)
    except ClientGone:
        raise
    except Exception:  # the application is not ours; whatever it raises is its failure and an answer of 500
        _log.exception("the ASGI application failed at %s %s", scope["method"], scope["path"])
        if not exchange.started:
            await conn.respond_text(request, 500, "500 Internal Server Error")
            return
    if not exchange.finished:
        if exchange.started:
            conn.must_close = True  # cut off where the application stopped
            raise ClientGone("the application left its response unfinished")
        await conn.respond_text(request, 500, "500 Internal Server Error: the application sent no response")


@final
class _WebSocket:
    """``receive`` and ``send`` of one websocket (RFC 6455, framed by wsproto)."""

    def __init__(self, conn: Http1Connection, request: Request) -> None:
        self._conn = conn
        self._request = request
        self._ws = WSConnection(ConnectionType.SERVER)
        headers = [(lower, value) for lower, _, value in request.headers]
        self._ws.initiate_upgrade_connection(headers, request.target.decode("latin-1"))
        self._events = self._ws.events()
        event = next(self._events, None)
        self.subprotocols = list(event.subprotocols) if isinstance(event, WsRequest) else []
        self._connected = False
        self.accepted = False
        self.closed = False
        self._pieces: list[str] | list[bytes] = []
        self._size = 0

    async def receive(self) -> Message:
        if not self._connected:
            self._connected = True
            return {"type": "websocket.connect"}
        while not self.closed:
            message = await self._next_message()
            if message is not None:
                return message
            data = self._conn.take_leftover()
            if not data:
                try:
                    data = await self._conn.stream.receive(RECEIVE_BYTES)
                except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                    self.closed = True
                    return {"type": "websocket.disconnect", "code": 1006, "reason": ""}
            try:
                self._ws.receive_data(data)
            except RemoteProtocolError as error:
                await self._end(CloseConnection(code=1002, reason=str(error)[:100]))
                return {"type": "websocket.disconnect", "code": 1002, "reason": ""}
        return {"type": "websocket.disconnect", "code": 1005, "reason": ""}

    async def _next_message(self) -> Message | None:
        """Return the next message among the events that have come, None when more bytes are needed."""
        for event in self._ws.events():
            if isinstance(event, TextMessage | BytesMessage):
                self._size += len(event.data)
                if self._size > MAX_WEBSOCKET_MESSAGE:
                    await self._end(CloseConnection(code=1009, reason="message too big"))
                    return {"type": "websocket.disconnect", "code": 1009, "reason": ""}
                self._pieces.append(event.data)  # type: ignore[arg-type]  # wsproto never mixes the two in one message
                if event.message_finished:
                    pieces, self._pieces, self._size = self._pieces, [], 0
                    if isinstance(event, TextMessage):
                        return {"type": "websocket.receive", "text": "".join(cast("list[str]", pieces))}
                    return {"type": "websocket.receive", "bytes": b"".join(cast("list[bytes]", pieces))}
            elif isinstance(event, Ping):
                await self._conn.send(self._ws.send(event.response()))
            elif isinstance(event, CloseConnection):
                if not self.closed:
                    await self._end(event.response())
                return {"type": "websocket.disconnect", "code": event.code or 1005, "reason": event.reason or ""}
        return None

    async def _end(self, event: CloseConnection) -> None:
        self.closed = True
        try:
            await self._conn.send(self._ws.send(event))
        except (ClientGone, LocalProtocolError):
            return

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "websocket.accept" and not self.accepted:
            self.accepted = True
            self._conn.taken_over = True
            self._conn.status = 101
            headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
            accept = AcceptConnection(subprotocol=message.get("subprotocol"), extra_headers=headers)
            await self._conn.send(self._ws.send(accept))
        elif kind == "websocket.close" and not self.accepted:
            self.closed = True
            self._conn.must_close = True
            self._conn.status = 403
            await self._conn.send(self._ws.send(RejectConnection(status_code=403)))
        elif kind == "websocket.close":
            if not self.closed:
                await self._end(CloseConnection(message.get("code", 1000), message.get("reason") or ""))
        elif kind == "websocket.send" and self.accepted:
            if self.closed:
                raise ClientGone("the websocket is closed")
            text = message.get("text")
            event = TextMessage(text) if text is not None else BytesMessage(bytes(message["bytes"]))
            await self._conn.send(self._ws.send(event))
        else:
            raise RuntimeError(f"no message for this state of a websocket: {kind!r}")


async def handle_websocket(app: AsgiApp, conn: Http1Connection, request: Request, scope: Scope) -> None:
    """Let the application handle a websocket."""
    try:
        socket = _WebSocket(conn, request)
    except RemoteProtocolError as error:
        await conn.respond_text(request, 400, f"400 Bad Request: {error}")
        return
    scope["subprotocols"] = socket.subprotocols
    try:
        await app(scope, socket.receive, socket.send)
    except ClientGone:
        raise
    except Exception:  # as for requests
        _log.exception("the ASGI application failed at the websocket %s", scope["path"])
        if not socket.accepted:
            conn.must_close = True
            await conn.respond_text(request, 500, "500 Internal Server Error")
            return
        if not socket.closed:
            await socket.send({"type": "websocket.close", "code": 1011})
        return
    if not socket.closed:
        await socket.send({"type": "websocket.close", "code": 1000})


@asynccontextmanager
async def lifespan(app: AsgiApp, group: TaskGroup) -> AsyncIterator[dict[str, Any]]:
    """Run the application's lifespan around the body; yields the state that its scopes share.

    An application that does not know the scope (it raises) is served without.

    Raises:
        ConfigError: the application refuses to start.
    """
    state: dict[str, Any] = {}
    to_app, app_receives = anyio.create_memory_object_stream[Message](2)
    started, stopped = anyio.Event(), anyio.Event()
    refusal: list[str] = []
    spoken = False
    # A cancelled server still lets the application put its things away.
    scope_of_app = anyio.CancelScope(shield=True)

    async def send(message: Message) -> None:
        nonlocal spoken
        kind = message["type"]
        if not kind.startswith("lifespan."):
            raise RuntimeError(f"no message of a lifespan: {kind!r}")
        spoken = True
        if kind.endswith(".failed"):
            refusal.append(str(message.get("message") or kind))
        (started if kind.startswith("lifespan.startup") else stopped).set()
        await anyio.lowlevel.checkpoint()

    async def run() -> None:
        scope: Scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": state}
        with scope_of_app:
            try:
                await app(scope, app_receives.receive, send)
            except Exception as error:  # how an application says that it does not know the scope
                if spoken:
                    _log.exception("the ASGI application's lifespan failed")
                    refusal.append(f"{type(error).__name__}: {error}")
        started.set()
        stopped.set()

    group.start_soon(run)
    try:
        await to_app.send({"type": "lifespan.startup"})
        with anyio.move_on_after(LIFESPAN_TIMEOUT_S):
            await started.wait()
        if refusal:
            raise ConfigError(f"the ASGI application refuses to start: {refusal[0]}")
        if not started.is_set():
            raise ConfigError(f"the ASGI application does not start within {LIFESPAN_TIMEOUT_S:.0f} s")
        yield state
    finally:
        with anyio.move_on_after(SHUTDOWN_TIMEOUT_S, shield=True):
            if not stopped.is_set():
                await to_app.send({"type": "lifespan.shutdown"})
                await stopped.wait()
        scope_of_app.cancel()
        to_app.close()
        app_receives.close()
