"""The reverse proxy: one request in, one response out, bodies streamed both ways without a copy on the way.

Back-pressure needs no code: each side is read only after what it sent before has been taken by the other. The usual
exchange (a request without a body, or with one that came together with its head) runs in the connection's own task with
four awaits. A task is added only to send a body while the response is awaited, to look after the client of a slow
backend, and for tunnels.
"""

from typing import Final, final

import anyio

from tsnetpy.runtime.splice import splice

from .backend import CLOSE_S, BackendConnection, BackendError, BackendPool, ResponseHead, StaleConnection
from .config import ProxyTarget
from .headers import HOP_BY_HOP, HeaderList, connection_tokens, request_head
from .http1 import BadRequest, ClientGone, Http1Connection, Request, http_date
from .router import backend_target

RESPONSE_TIMEOUT_S: Final = 300.0
"""How long a backend may think before the first byte of its response."""
CONTINUE_TIMEOUT_S: Final = 1.0
WATCH_AFTER_S: Final = 1.0
"""After this long without news from the backend, the client is watched for its departure."""

_REPEATABLE: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))  # RFC 9110 §9.2.2
_BODY_METHODS: Final = frozenset((b"POST", b"PUT", b"PATCH"))


@final
class ReverseProxy:
    """Proxies the requests of one mount."""

    __slots__ = ("_pool", "_target")

    def __init__(self, target: ProxyTarget, pool: BackendPool) -> None:
        self._target = target
        self._pool = pool

    async def handle(
        self,
        conn: Http1Connection,
        request: Request,
        rest: bytes,
        query: bytes | None,
        host: bytes,
        proxy_fields: bytes,
    ) -> None:
        """Answer *request* with what the backend says.

        Args:
            conn: the client's connection.
            request: the request.
            rest: its path behind the mount.
            query: its query.
            host: the host that the client asked for.
            proxy_fields: serialized lines that only the proxy may write.
        """
        head = self._request_head(request, rest, query, host, proxy_fields)
        whole = b""
        streaming = not request.complete
        if not streaming and request.body:
            whole = _frame_body(request, await conn.read_body(request)) + (b"0\r\n\r\n" if request.chunked else b"")
        elif not streaming and request.chunked:
            whole = b"0\r\n\r\n"
        repeatable = not streaming and request.method in _REPEATABLE
        try:
            connection = await self._pool.acquire(repeatable=repeatable)
            try:
                await self._exchange(conn, request, connection, head, whole, streaming)
            except StaleConnection:
                if not repeatable:
                    raise BackendError("closed the connection without a response") from None
                connection = await self._pool.acquire(repeatable=True, fresh=True)
                await self._exchange(conn, request, connection, head, whole, streaming)
        except BackendError as error:
            await self._report(conn, request, error)
        except ClientGone:
            # Half-closed: perhaps somebody still reads. A request that nobody waits for is not worth an answer of 200.
            if not conn.half_closed or conn.status:
                raise
            await self._report(conn, request, BackendError("had not answered when the client ended the connection"))

    def _request_head(
        self, request: Request, rest: bytes, query: bytes | None, host: bytes, proxy_fields: bytes
    ) -> bytes:
        if request.chunked:
            framing = b"Transfer-Encoding: chunked\r\n"
        elif request.content_length is not None:
            framing = b"Content-Length: %d\r\n" % request.content_length
        elif request.method in _BODY_METHODS:
            framing = b"Content-Length: 0\r\n"  # RFC 9110 §8.6
        else:
            framing = b""
        return request_head(
            request.method,
            backend_target(self._target, rest, query),
            b"localhost" if self._target.scheme == "unix" else host,
            request.headers,
            named=connection_tokens(request.headers),
            proxy_fields=proxy_fields,
            framing=framing,
            upgrade=request.upgrade,
        )

    async def _report(self, conn: Http1Connection, request: Request, error: BackendError) -> None:
        """Say why there is no response from the backend."""
        if not request.complete:
            conn.must_close = True
        conn.trouble = f"the backend {error}"
        phrase = "Gateway Timeout" if error.status == 504 else "Bad Gateway"
        await conn.respond_text(request, error.status, f"{error.status} {phrase}: the backend {self._target} {error}")

    async def _exchange(
        self,
        conn: Http1Connection,
        request: Request,
        connection: BackendConnection,
        head: bytes,
        whole: bytes,
        streaming: bool,
    ) -> None:
        """Send the request on *connection* and pass the response to the client.

        Afterwards the connection is back in the pool or closed, whatever happens, except for StaleConnection.
        """
        connection.begin(head_request=request.method == b"HEAD")
        done = False
        try:
            await connection.send(head + whole)
            if streaming:
                done = await _Upload(conn, request, connection).run()
            else:
                done = await _relay_response(conn, request, connection, watch=True)
        finally:
            if not (done and self._pool.release(connection)):
                with anyio.move_on_after(CLOSE_S, shield=True):
                    await connection.stream.aclose()


async def _relay_response(
    conn: Http1Connection,
    request: Request,
    connection: BackendConnection,
    *,
    watch: bool,
    go_ahead: anyio.Event | None = None,
) -> bool:
    """Pass the response on; True when it is complete and the backend's connection may be used again."""
    while (head := connection.next_head()) is None or head.status < 200:
        if head is None:
            await _receive(conn, connection, watch, RESPONSE_TIMEOUT_S)
        elif head.status == 101:
            return await _switch(conn, request, connection, head)
        elif head.status == 100:
            if request.expects_continue:
                await conn.send_continue(request)
                if go_ahead is not None:
                    go_ahead.set()
        elif not request.http10:
            fields = _fields(head.headers, frozenset(), date=False)
            await conn.send(b"HTTP/1.1 %d %s\r\n%s\r\n" % (head.status, head.reason, fields))
    if go_ahead is not None and not request.complete:
        conn.must_close = True  # an answer before the end of the body: nobody will read the rest
    no_body = request.method == b"HEAD" or head.status in (204, 304)
    fields = _fields(head.headers, connection_tokens(head.headers), date=True)
    chunked = False
    if no_body or head.content_length is not None:
        pass  # the length of a response to HEAD passes as it is
    elif request.http10:
        conn.must_close = True
    else:
        chunked = True
        fields += b"Transfer-Encoding: chunked\r\n"
    out = conn.head(request, head.status, fields, head.reason)
    while True:
        data = connection.take_body()
        if data:
            out += b"%x\r\n%s\r\n" % (len(data), data) if chunked else data
        if connection.complete:
            if chunked:
                out += b"0\r\n%s\r\n" % b"".join(b"%s: %s\r\n" % field for field in connection.trailers)
            if out:
                await conn.send(out)
            return True
        if out:
            await conn.send(out)
        out = b""
        try:
            await _receive(conn, connection, watch, None)
        except BackendError as error:
            # The head is out: all that is left is to end the connection where the body breaks off.
            conn.must_close = True
            raise ClientGone(f"the backend {error}") from error


def _fields(headers: HeaderList, named: frozenset[bytes], *, date: bool) -> bytes:
    """Serialize a response's fields without those that end here; *date* adds the one that it lacks."""
    parts: list[bytes] = []
    dated = not date
    for lower, name, value in headers:
        if lower in HOP_BY_HOP and lower != b"trailer":
            continue
        if lower in named:
            continue
        if lower == b"date":
            dated = True
        parts += (name, b": ", value, b"\r\n")
    if not dated:
        parts += (b"Date: ", http_date(), b"\r\n")
    return b"".join(parts)


async def _receive(conn: Http1Connection, connection: BackendConnection, watch: bool, timeout_s: float | None) -> None:
    """Receive once from the backend, and do not wait for it on behalf of a client that is gone.

    Raises:
        BackendError: the backend failed, or was silent for *timeout_s*.
        ClientGone: the client left first.
    """
    with anyio.move_on_after(WATCH_AFTER_S):
        await connection.receive()
        return
    failure: Exception | None = None
    gone = False

    async def watch_client() -> None:
        nonlocal gone
        await conn.wait_gone()
        gone = True
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        if watch:
            group.start_soon(watch_client)
        try:
            with anyio.fail_after(timeout_s):
                await connection.receive()
        except TimeoutError:
            failure = BackendError(f"did not answer within {timeout_s:.0f} s", 504)
        except (BackendError, StaleConnection) as error:
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if gone:
        raise ClientGone("the client left before the response")


@final
class _Upload:
    """An exchange whose request body is still coming: it is sent by a task of its own while the response is awaited."""

    __slots__ = ("_conn", "_connection", "_failure", "_go_ahead", "_request")

    def __init__(self, conn: Http1Connection, request: Request, connection: BackendConnection) -> None:
        self._conn = conn
        self._request = request
        self._connection = connection
        self._go_ahead = anyio.Event()
        self._failure: Exception | None = None

    async def run(self) -> bool:
        done = False
        failure: Exception | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(self._send_body, group.cancel_scope)
            try:
                done = await _relay_response(
                    self._conn, self._request, self._connection, watch=False, go_ahead=self._go_ahead
                )
            except (BackendError, StaleConnection, ClientGone) as error:
                failure = error
            group.cancel_scope.cancel()
        # What the client did wrong explains the backend's reaction, not the other way round.
        failure = self._failure or failure
        if isinstance(failure, StaleConnection):
            raise BackendError("closed the connection without a response") from failure
        if isinstance(failure, BadRequest):
            await self._conn.refuse(failure)
            self._conn.must_close = True
            return False
        if failure is not None:
            raise failure
        # A response that overtook its request leaves the connection in the middle of a body.
        return done and self._request.complete

    async def _send_body(self, scope: anyio.CancelScope) -> None:
        conn, request, connection = self._conn, self._request, self._connection
        try:
            if request.awaits_continue:
                with anyio.move_on_after(CONTINUE_TIMEOUT_S):
                    await self._go_ahead.wait()
                await conn.send_continue(request)
            while data := await conn.read_body(request):
                await connection.send(_frame_body(request, data))
            if request.chunked:
                await connection.send(b"0\r\n\r\n")
        except (BadRequest, ClientGone) as error:
            self._failure = error
            scope.cancel()
        except (BackendError, StaleConnection):
            return  # the response, or its absence, says more


def _frame_body(request: Request, data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data) if request.chunked else data


async def _switch(conn: Http1Connection, request: Request, connection: BackendConnection, head: ResponseHead) -> bool:
    """Pass a 101 on and become a tunnel (RFC 9110 §7.8)."""
    offered = next((value for lower, _, value in head.headers if lower == b"upgrade"), b"")
    if not request.upgrade:
        raise BackendError("switched protocols without being asked")
    if offered.lower() != request.upgrade.lower():
        raise BackendError(f"switched to another protocol than asked for: {offered.decode('latin-1')}")
    conn.taken_over = True
    conn.status = 101
    fields = _fields(head.headers, connection_tokens(head.headers), date=False)
    await conn.send(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n%s\r\n%s"
        % (offered, fields, connection.rest)
    )
    early = conn.take_leftover()
    if early:
        await connection.send(early)
    await splice(conn.stream, connection.stream)
    return False
