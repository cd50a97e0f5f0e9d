"""Serve a configuration on a node: listeners, TLS, the life of each connection, limits, and the access log."""

import logging
import math
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, final

import anyio
from anyio.abc import ByteStream, Listener, SocketAttribute, TaskGroup, TaskStatus

from tsnetpy.base.addr import format_ip
from tsnetpy.base.errors import TsnetError
from tsnetpy.netstack.attributes import TsnetAttribute
from tsnetpy.node.host import NodeHost
from tsnetpy.runtime.queues import Kick

from . import backend, tcp_forward
from .asgi import lifespan, load_app
from .backend import BackendPool
from .config import (
    AsgiTarget,
    DirectoryTarget,
    HttpPort,
    Mount,
    ProxyTarget,
    RedirectTarget,
    ServeConfig,
    TcpPort,
    TextTarget,
)
from .handlers import (
    AsgiHandler,
    Caller,
    EmptyHandler,
    Exchange,
    MountHandler,
    ProxyHandler,
    RedirectHandler,
    StaticHandler,
    TextHandler,
    host_names,
)
from .http1 import BadRequest, ClientGone, Http1Connection, Request, valid_host
from .proxy import ReverseProxy
from .router import SiteTable, split_target
from .static import StaticFiles
from .tls import accept_tls, server_context

MAX_CONNECTIONS: Final = 1024
"""Connections at a time over all ports; further ones are closed at once."""
FIRST_REQUEST_S: Final = 30.0
IDLE_S: Final = 120.0
SWEEP_S: Final = 5.0
CLOSE_S: Final = 2.0

_log = logging.getLogger("tsnetpy.serve")


@dataclass(slots=True)
class AccessRecord:
    """One line of the access log."""

    client: str
    """Address of the caller."""
    login: str
    """Login name, ``""`` for tagged and unknown nodes."""
    method: str
    """For TCP ports ``TCP``."""
    target: str
    """The request target; for TCP ports the backend."""
    status: int
    """The code that was sent; 499 when the client left before one, 0 for TCP."""
    sent_bytes: int
    duration_s: float
    error: str = ""

    def line(self) -> str:
        """Return the record as text."""
        text = (
            f'{self.client} {self.login or "-"} "{self.method} {self.target}" {self.status} {self.sent_bytes}B '
            f"{self.duration_s * 1000:.1f}ms"
        )
        return text + (f" ({self.error})" if self.error else "")


AccessLog: TypeAlias = Callable[[AccessRecord], None]
_Serve: TypeAlias = Callable[[ByteStream], Coroutine[Any, Any, None]]


def urls(host: NodeHost, config: ServeConfig) -> list[str]:
    """Return where *config* can be reached from the tailnet."""
    name = host.name or (format_ip(host.addresses[0]) if host.addresses else "localhost")
    found: list[str] = []
    for port in config.ports:
        if isinstance(port, TcpPort):
            found.append(f"{'tls' if port.tls else 'tcp'}://{name}:{port.port}")
            continue
        scheme, usual = ("https", 443) if port.tls else ("http", 80)
        site = next((site.host for site in port.sites if site.host != "*"), name)
        found.append(f"{scheme}://{site}/" if port.port == usual else f"{scheme}://{site}:{port.port}/")
    return found


@final
class _Live:
    """An open connection and the time until which it has to ask for something."""

    __slots__ = ("deadline", "scope")

    def __init__(self, scope: anyio.CancelScope) -> None:
        self.scope = scope
        self.deadline = math.inf


@final
class _Server:
    """What all ports share."""

    def __init__(self, host: NodeHost, log: AccessLog | None) -> None:
        self.host = host
        self.log = log
        self.live: set[_Live] = set()
        self._expecting = Kick()

    def expect(self, live: _Live, seconds: float) -> None:
        """Give a connection so much time to ask for something."""
        live.deadline = anyio.current_time() + seconds
        self._expecting.kick()

    async def sweep(self) -> None:
        """End connections that have been silent for too long. One timer for all: a request sets no timer of its own.

        While nothing is expected of any connection there is no timer either: a server that nobody uses sleeps.
        """
        while True:
            while all(live.deadline == math.inf for live in self.live):
                await self._expecting.wait()
            await anyio.sleep(SWEEP_S)
            now = anyio.current_time()
            for live in list(self.live):
                if live.deadline < now:
                    live.scope.cancel()

    def identify(self, stream: ByteStream, *, secure: bool) -> Caller:
        """Return who is at the other end of an accepted stream."""
        address = stream.extra(SocketAttribute.remote_address)
        ip, port = str(address[0]), int(address[1])
        who = stream.extra(TsnetAttribute.peer, None)
        if who is None:
            who = self.host.whois(ip)
        return Caller(ip, port, who, secure=secure)


@final
class _HttpPortServer:
    """Serves one HTTP or HTTPS port."""

    def __init__(self, server: _Server, port: HttpPort, sites: SiteTable, handlers: dict[int, MountHandler]) -> None:
        self._server = server
        self._sites = sites
        self._handlers = handlers
        host = server.host
        self._context = (
            server_context(port.tls, host_names(host.name), host.addresses, alpn=("http/1.1",)) if port.tls else None
        )

    async def serve(self, stream: ByteStream) -> None:
        """Serve one connection until it ends; closes it."""
        server = self._server
        if len(server.live) >= MAX_CONNECTIONS:
            await stream.aclose()
            return
        with anyio.CancelScope() as scope:
            live = _Live(scope)
            server.live.add(live)
            try:
                if self._context is not None:
                    secured = await accept_tls(stream, self._context)
                    if secured is None:
                        return
                    stream = secured
                await self._serve_http(stream, live)
            except ClientGone:
                return
            except Exception:  # a border: one connection's failure must not end the others
                _log.exception("serving a connection failed")
            finally:
                server.live.discard(live)
                with anyio.move_on_after(CLOSE_S, shield=True):
                    await stream.aclose()

    async def _serve_http(self, stream: ByteStream, live: _Live) -> None:
        caller = self._server.identify(stream, secure=self._context is not None)
        conn = Http1Connection(stream, caller.ip, caller.port, secure=caller.secure)
        wait_s = FIRST_REQUEST_S
        while True:
            self._server.expect(live, wait_s)
            try:
                request = await conn.next_request()
            except BadRequest as error:
                await conn.refuse(error)
                self._record(caller, None, conn, anyio.current_time(), str(error))
                await conn.linger()
                return
            if request is None:
                return
            live.deadline = math.inf
            wait_s = IDLE_S
            started = anyio.current_time()
            conn.status = conn.sent_bytes = 0
            failure = conn.trouble = ""
            try:
                await self._dispatch(conn, request, caller)
            except BadRequest as error:
                failure = str(error)
                if not conn.status:
                    await conn.refuse(error)
                conn.must_close = True
            except ClientGone as error:
                failure = str(error)
                conn.must_close = True
            self._record(caller, request, conn, started, failure or conn.trouble)
            if not await conn.finish(request):
                if not conn.taken_over and not failure:
                    await conn.linger()
                return

    async def _dispatch(self, conn: Http1Connection, request: Request, caller: Caller) -> None:
        """Find the mount of a request and let it answer."""
        split = split_target(request.target)
        if split is None or not valid_host(split.host):
            raise BadRequest(400, "malformed request target")
        if request.target == b"*" and request.method == b"OPTIONS":
            await conn.respond(request, 200, b"")
            return
        if request.method == b"CONNECT":
            conn.must_close = True
        host = split.host or request.host
        router = self._sites.router(host)
        route = None if router is None else router.route(split.path)
        if route is None:
            await conn.respond_text(request, 404, "404 page not found")
            return
        exchange = Exchange(conn, request, route, split.query, host, caller)
        await self._handlers[id(route.mount)].handle(exchange)

    def _record(
        self, caller: Caller, request: Request | None, conn: Http1Connection, started: float, error: str
    ) -> None:
        log = self._server.log
        if log is None:
            return
        method = request.method.decode("latin-1") if request is not None else "?"
        target = request.target.decode("latin-1") if request is not None else "?"
        duration = anyio.current_time() - started
        log(AccessRecord(caller.ip, caller.login, method, target, conn.status or 499, conn.sent_bytes, duration, error))


@final
class _TcpPortServer:
    """Hands on the connections of one port."""

    def __init__(self, server: _Server, port: TcpPort, dial: tcp_forward.DialTcp) -> None:
        self._server = server
        self._port = port
        self._dial = dial
        host = server.host
        self._context = server_context(port.tls, host_names(host.name), host.addresses) if port.tls else None

    async def serve(self, stream: ByteStream) -> None:
        """Hand one connection on; closes it."""
        server = self._server
        if len(server.live) >= MAX_CONNECTIONS:
            await stream.aclose()
            return
        with anyio.CancelScope() as scope:
            live = _Live(scope)
            server.live.add(live)
            started = anyio.current_time()
            failure = ""
            counts = (0, 0)
            caller: Caller | None = None
            try:
                local_ip = str(stream.extra(SocketAttribute.local_address)[0])
                if self._context is not None:
                    secured = await accept_tls(stream, self._context)
                    if secured is None:
                        return
                    stream = secured
                caller = server.identify(stream, secure=self._context is not None)
                counts = await tcp_forward.forward(stream, self._port, (caller.ip, caller.port), local_ip, self._dial)
            except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
                failure = f"cannot be reached: {backend.describe(error)}"
            except Exception:  # a border, as for HTTP
                _log.exception("forwarding a connection failed")
            finally:
                server.live.discard(live)
                with anyio.move_on_after(CLOSE_S, shield=True):
                    await stream.aclose()
            if server.log is not None and caller is not None:
                duration = anyio.current_time() - started
                server.log(
                    AccessRecord(caller.ip, caller.login, "TCP", str(self._port), 0, counts[1], duration, failure)
                )


async def run(
    host: NodeHost,
    config: ServeConfig,
    *,
    log: AccessLog | None = None,
    dial: backend.Dial = backend.dial,
    dial_tcp: tcp_forward.DialTcp = tcp_forward.dial,
    task_status: TaskStatus[list[str]] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve *config* on *host* until cancelled.

    Args:
        host: the node.
        config: what to serve.
        log: called once for each request, and for each connection of a TCP port.
        dial: connects to HTTP backends; by default through this machine's own network.
        dial_tcp: the same for TCP ports.
        task_status: told the URLs once every port listens.

    Raises:
        ConfigError: an application or a certificate cannot be loaded.
        DialError: a port is taken.
    """
    try:
        await _run(host, config, _Server(host, log), dial, dial_tcp, task_status)
    except BaseExceptionGroup as failures:
        # The task group wraps what went wrong at the start; callers are promised the bare error.
        expected, others = failures.split(TsnetError)
        if expected is None or others is not None:
            raise
        leaf: BaseException = expected
        while isinstance(leaf, BaseExceptionGroup):
            leaf = leaf.exceptions[0]
        raise leaf from None


async def _run(
    host: NodeHost,
    config: ServeConfig,
    server: _Server,
    dial: backend.Dial,
    dial_tcp: tcp_forward.DialTcp,
    task_status: TaskStatus[list[str]],
) -> None:
    suffix = host.name.partition(".")[2]
    async with anyio.create_task_group() as group, AsyncExitStack() as stack:
        listeners: list[tuple[Listener[ByteStream], _Serve]] = []
        states: dict[int, dict[str, Any]] = {}
        pools: dict[ProxyTarget, BackendPool] = {}
        for port in config.ports:
            serve: _Serve
            if isinstance(port, TcpPort):
                serve = _TcpPortServer(server, port, dial_tcp).serve
            else:
                handlers: dict[int, MountHandler] = {}
                for site in port.sites:
                    for mount in site.mounts:
                        address = (site.host if site.host != "*" else host.name, port.port)
                        handlers[id(mount)] = await _make_handler(mount, address, dial, pools, states, stack, group)
                serve = _HttpPortServer(server, port, SiteTable(port.sites, suffix), handlers).serve
            listener = await host.create_tcp_listener(port.port)
            stack.push_async_callback(_close, listener)
            listeners.append((listener, serve))
        for pool in pools.values():
            stack.push_async_callback(pool.aclose)
        group.start_soon(server.sweep)
        for listener, handler in listeners:
            group.start_soon(listener.serve, handler, group)
        task_status.started(urls(host, config))
        await anyio.sleep_forever()


async def _close(listener: Listener[ByteStream]) -> None:
    with anyio.move_on_after(CLOSE_S, shield=True):
        await listener.aclose()


async def _make_handler(
    mount: Mount,
    address: tuple[str, int],
    dial: backend.Dial,
    pools: dict[ProxyTarget, BackendPool],
    states: dict[int, dict[str, Any]],
    stack: AsyncExitStack,
    group: TaskGroup,
) -> MountHandler:
    """Make what stands behind a mount; an application that is mounted twice is started once."""
    target = mount.target
    if isinstance(target, ProxyTarget):
        pool = pools.setdefault(target, BackendPool(target, dial))
        return ProxyHandler(mount, ReverseProxy(target, pool))
    if isinstance(target, DirectoryTarget):
        return StaticHandler(StaticFiles(target.path))
    if isinstance(target, AsgiTarget):
        app = load_app(target)
        if id(app) not in states:
            states[id(app)] = await stack.enter_async_context(lifespan(app, group))
        return AsgiHandler(mount, app, address, states[id(app)])
    if isinstance(target, TextTarget):
        return TextHandler(target)
    if isinstance(target, RedirectTarget):
        return RedirectHandler(target)
    return EmptyHandler()
