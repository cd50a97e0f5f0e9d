"""What stands behind a mount: one small object for each kind of target, made once when serving starts."""

import html
import posixpath
from collections.abc import Sequence
from typing import Any, Final, Protocol, final

from tsnetpy.netstack.attributes import WhoIs

from .asgi import AsgiApp, handle_http, handle_websocket, make_scope
from .config import Mount, RedirectTarget, TextTarget
from .headers import capability_header, forwarded_headers, identity_headers, serialize
from .http1 import Http1Connection, Request, reason_phrase
from .proxy import ReverseProxy
from .router import Route
from .static import StaticFiles

_TEXT: Final = b"text/plain; charset=utf-8"


@final
class Caller:
    """Who is at the other end of a connection, and the header fields that say so."""

    __slots__ = ("_blocks", "_fields", "ip", "port", "secure", "who")

    def __init__(self, ip: str, port: int, who: WhoIs | None, *, secure: bool) -> None:
        self.ip = ip
        self.port = port
        self.who = who
        self.secure = secure
        self._fields: dict[tuple[str, ...], list[tuple[bytes, bytes]]] = {}
        self._blocks: dict[tuple[str, ...], bytes] = {}

    @property
    def login(self) -> str:
        """The login name, ``""`` for tagged and unknown nodes."""
        return self.who.login_name if self.who is not None else ""

    def fields(self, accept_app_caps: tuple[str, ...]) -> list[tuple[bytes, bytes]]:
        """Return the fields for a mount that accepts these capabilities."""
        found = self._fields.get(accept_app_caps)
        if found is None:
            who = self.who
            found = forwarded_headers(self.ip, secure=self.secure)
            if who is not None:
                found += identity_headers(who.login_name, who.display_name, who.profile_pic_url)
                found += capability_header(who.cap_map, accept_app_caps)
            self._fields[accept_app_caps] = found
        return found

    def block(self, accept_app_caps: tuple[str, ...]) -> bytes:
        """Return the same, serialized."""
        found = self._blocks.get(accept_app_caps)
        if found is None:
            found = self._blocks[accept_app_caps] = serialize(self.fields(accept_app_caps))
        return found

    def describe(self) -> dict[str, object]:
        """Return what ASGI applications learn about the caller."""
        who = self.who
        if who is None:
            return {"login": "", "name": "", "profile_pic": "", "node": "", "tags": []}
        return {
            "login": who.login_name,
            "name": who.display_name,
            "profile_pic": who.profile_pic_url,
            "node": who.node.name.rstrip("."),
            "tags": list(who.node.tags or ()),
        }


class Exchange:
    """A request on its way to a mount."""

    __slots__ = ("caller", "conn", "host", "query", "request", "route")

    def __init__(
        self,
        conn: Http1Connection,
        request: Request,
        route: Route,
        query: bytes | None,
        host: bytes,
        caller: Caller,
    ) -> None:
        self.conn = conn
        self.request = request
        self.route = route
        self.query = query
        self.host = host
        self.caller = caller


class MountHandler(Protocol):
    """Answers the requests of a mount."""

    async def handle(self, exchange: Exchange) -> None:
        """Send a complete response.

        Raises:
            ClientGone: the client left, or the response broke off.
        """
        ...


@final
class ProxyHandler:
    """A reverse proxy behind a mount."""

    def __init__(self, mount: Mount, proxy: ReverseProxy) -> None:
        self._caps = mount.accept_app_caps
        self._proxy = proxy

    async def handle(self, exchange: Exchange) -> None:
        """Pass the request to the backend."""
        fields = b"X-Forwarded-Host: %s\r\n%s" % (exchange.host, exchange.caller.block(self._caps))
        await self._proxy.handle(
            exchange.conn, exchange.request, exchange.route.rest, exchange.query, exchange.host, fields
        )


@final
class StaticHandler:
    """Files behind a mount."""

    def __init__(self, files: StaticFiles) -> None:
        self._files = files

    async def handle(self, exchange: Exchange) -> None:
        """Send a file, a listing, or a redirection."""
        await self._files.handle(exchange.conn, exchange.request, exchange.route.prefix, exchange.route.rest)


@final
class AsgiHandler:
    """An ASGI application behind a mount."""

    def __init__(self, mount: Mount, app: AsgiApp, server: tuple[str, int], state: dict[str, Any]) -> None:
        self._caps = mount.accept_app_caps
        self._app = app
        self._server = server
        self._state = state

    async def handle(self, exchange: Exchange) -> None:
        """Run the application for a request or a websocket."""
        request = exchange.request
        websocket = request.upgrade.lower() == b"websocket" and request.method == b"GET"
        scope = make_scope(
            "websocket" if websocket else "http",
            exchange.conn,
            request,
            prefix=exchange.route.prefix,
            rest=exchange.route.rest,
            query=exchange.query,
            proxy_fields=[*exchange.caller.fields(self._caps), (b"X-Forwarded-Host", exchange.host)],
            server=self._server,
            caller=exchange.caller.describe(),
            state=self._state,
        )
        run = handle_websocket if websocket else handle_http
        await run(self._app, exchange.conn, request, scope)


@final
class TextHandler:
    """A fixed text; method and range do not matter."""

    def __init__(self, target: TextTarget) -> None:
        self._body = target.text.encode("utf-8")

    async def handle(self, exchange: Exchange) -> None:
        """Send the text."""
        await exchange.conn.respond(exchange.request, 200, self._body, _TEXT)


@final
class RedirectHandler:
    """A redirection, with the body that Go's standard library gives it."""

    def __init__(self, target: RedirectTarget) -> None:
        self._target = target

    async def handle(self, exchange: Exchange) -> None:
        """Send the redirection."""
        request = exchange.request
        uri = request.target.decode("latin-1")
        location = self._target.location.replace("${HOST}", exchange.host.decode("latin-1"))
        location = location.replace("${REQUEST_URI}", uri)
        location = _absolute(location, (exchange.route.prefix + exchange.route.rest).decode("latin-1"))
        extra = b"Location: %s\r\n" % location.encode("ascii", "ignore")
        body, kind = b"", b""
        if request.method in (b"GET", b"HEAD"):
            phrase = reason_phrase(self._target.status).decode("ascii")
            body = f'<a href="{html.escape(location)}">{phrase}</a>.\n\n'.encode("ascii", "xmlcharrefreplace")
            kind = b"text/html; charset=utf-8"
        await exchange.conn.respond(request, self._target.status, body, kind, extra)


def _absolute(location: str, path: str) -> str:
    """Resolve a relative path against that of the request; anything with a scheme stays as it is."""
    head, mark, tail = location.partition("?")
    if ":" in head.partition("/")[0] or head.startswith("//"):
        return location
    if not head.startswith("/"):
        head = posixpath.join(path[: path.rfind("/") + 1] or "/", head)
    cleaned = "/" + posixpath.normpath(head).lstrip("/")
    if head.endswith("/") and not cleaned.endswith("/"):
        cleaned += "/"
    return cleaned + mark + tail


@final
class EmptyHandler:
    """A mount of a document that says nothing."""

    async def handle(self, exchange: Exchange) -> None:
        """Answer that the configuration is incomplete."""
        await exchange.conn.respond_text(exchange.request, 500, "empty handler")


def host_names(name: str) -> Sequence[str]:
    """Return the names that a node of the full name *name* is asked by."""
    short = name.partition(".")[0]
    return [name, short] if short and short != name else [name] if name else []
