"""What to serve, as plain data; and the two notations it is written in: a target string, and Tailscale's ServeConfig.

Nothing here touches the network. :func:`parse_target` looks at the file system once, to tell a directory from a typing
error while somebody is still there to read the message.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias
from urllib.parse import urlsplit

from tsnetpy.base.errors import ConfigError

Scheme: TypeAlias = Literal["http", "https", "https+insecure", "unix"]

_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "https+insecure": 443}
_IMPORT_STRING: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_CAPABILITY: Final = re.compile(r"([^\W_]|-)+(\.([^\W_]|-)+)+/([^\W_]|[-/])+")
_TARGET_HINT: Final = (
    "a target is a port (3000), host:port, an http:// or https:// URL, unix:/path, a directory, or module:app"
)


@dataclass(frozen=True, slots=True)
class ProxyTarget:
    """An HTTP/1.1 backend on this host's own network."""

    scheme: Scheme
    host: str
    """Name or address; for ``unix`` the path of the socket."""
    port: int = 0
    path: str = ""
    """Put before the rest of the request's path; percent-encoded; ``""`` or starting with a slash."""
    query: str = ""
    """Put before the request's query."""

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix:{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if _DEFAULT_PORTS[self.scheme] == self.port else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.path}" + (f"?{self.query}" if self.query else "")


@dataclass(frozen=True, slots=True)
class DirectoryTarget:
    """Files below a directory, or one file."""

    path: str

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True)
class AsgiTarget:
    """An ASGI application: an import string (``module:app``) or the application itself."""

    app: object

    def __str__(self) -> str:
        return self.app if isinstance(self.app, str) else f"ASGI application {type(self.app).__name__}"


@dataclass(frozen=True, slots=True)
class TextTarget:
    """A fixed text."""

    text: str

    def __str__(self) -> str:
        return "a text"


@dataclass(frozen=True, slots=True)
class RedirectTarget:
    """A redirection. ``${HOST}`` and ``${REQUEST_URI}`` in the location are replaced."""

    location: str
    status: int = 302

    def __str__(self) -> str:
        return f"{self.status} to {self.location}"


Target: TypeAlias = ProxyTarget | DirectoryTarget | AsgiTarget | TextTarget | RedirectTarget


@dataclass(frozen=True, slots=True)
class Mount:
    """A target at a path."""

    path: str
    """Starts with a slash; ``/a`` and ``/a/`` both stand for the tree below ``/a``."""
    target: Target | None
    """None answers 500 ``empty handler``: a document may hold such an entry."""
    accept_app_caps: tuple[str, ...] = ()
    """Capability names whose grants the backend gets in ``Tailscale-App-Capabilities``."""


@dataclass(frozen=True, slots=True)
class Site:
    """The mounts of one host name."""

    host: str
    """The full name in lower case, or ``*`` for every name and address."""
    mounts: tuple[Mount, ...]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """A certificate chain and its key in PEM files."""

    cert: str
    key: str


@dataclass(frozen=True, slots=True)
class TlsSelfSigned:
    """A certificate that this process makes for the node's own names and signs itself."""


Tls: TypeAlias = TlsFiles | TlsSelfSigned


@dataclass(frozen=True, slots=True)
class HttpPort:
    """A port that speaks HTTP, or HTTPS when there is *tls*."""

    port: int
    sites: tuple[Site, ...]
    tls: Tls | None = None


@dataclass(frozen=True, slots=True)
class TcpPort:
    """A port whose connections are handed on to a backend as they are."""

    port: int
    host: str
    """Name or address of the backend; a path for a Unix socket (then *backend_port* is 0)."""
    backend_port: int
    tls: Tls | None = None
    """Decrypt before handing on."""
    proxy_protocol: Literal[0, 1, 2] = 0
    """Version of the PROXY header put in front, 0 for none."""

    def __str__(self) -> str:
        return f"tcp://{self.host}:{self.backend_port}" if self.backend_port else f"unix:{self.host}"


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """Everything that a node serves."""

    ports: tuple[HttpPort | TcpPort, ...]

    def __post_init__(self) -> None:
        seen: set[int] = set()
        for entry in self.ports:
            if not 0 < entry.port < 65536:
                raise ConfigError(f"no port: {entry.port}", hint="ports are 1 to 65535")
            if entry.port in seen:
                raise ConfigError(f"port {entry.port} is served twice", hint="give every port one role")
            seen.add(entry.port)


def single_target(target: Target, port: int, tls: Tls | None = None) -> ServeConfig:
    """Return the configuration that serves *target* under every name of the node on one port."""
    return ServeConfig((HttpPort(port, (Site("*", (Mount("/", target),)),), tls),))


def parse_target(text: str) -> Target:
    """Return what a target string on a command line stands for.

    Raises:
        ConfigError: it stands for nothing; the hint says what it may be.
    """
    if not text:
        raise ConfigError("the target is empty", hint=_TARGET_HINT)
    if text.startswith("text:"):
        return TextTarget(text.removeprefix("text:"))
    if text.isascii() and text.isdigit():
        return parse_proxy(text)
    if os.path.isdir(text):
        return DirectoryTarget(os.path.abspath(text))
    if text.startswith(("/", "./", "../")) or text in (".", ".."):
        if os.path.isfile(text):
            return DirectoryTarget(os.path.abspath(text))
        raise ConfigError(f"no such directory or file: {text}", hint="check the path and where you started from")
    if "://" in text or text.startswith("unix:"):
        return parse_proxy(text)
    if _IMPORT_STRING.fullmatch(text):
        return AsgiTarget(text)
    host, colon, port = text.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()):
        raise ConfigError(f"cannot tell what to serve: {text!r}", hint=_TARGET_HINT)
    return parse_proxy(text)


def parse_proxy(text: str) -> ProxyTarget:
    """Return the backend that *text* names: a port, ``host:port``, a URL, or ``unix:/path``.

    Raises:
        ConfigError: no such form.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/"):
            raise ConfigError(f"not an absolute path: {text!r}", hint="write unix:/run/app.sock")
        return ProxyTarget("unix", path)
    if text.isascii() and text.isdigit():
        text = f"http://127.0.0.1:{text}"
    elif "://" not in text:
        text = f"http://{text}"
    scheme = text.partition("://")[0].lower()
    if scheme not in ("http", "https", "https+insecure"):
        raise ConfigError(f"unknown scheme {scheme!r} in {text!r}", hint="use http, https or https+insecure")
    try:
        url = urlsplit(text)
        port = url.port
        host = url.hostname
    except ValueError as error:
        raise ConfigError(f"not a URL: {text!r} ({error})", hint=_TARGET_HINT) from None
    if not host or url.username is not None or url.fragment:
        raise ConfigError(f"cannot proxy to {text!r}", hint="a backend URL has a host, and no user or fragment")
    if port == 0:
        raise ConfigError(f"no port: 0 in {text!r}", hint="ports are 1 to 65535")
    known: Scheme = "http" if scheme == "http" else "https" if scheme == "https" else "https+insecure"
    return ProxyTarget(known, host, port or _DEFAULT_PORTS[known], url.path, url.query)


def parse_serve_document(text: str, *, tls: Mapping[str, Tls] | None = None) -> ServeConfig:
    """Read a ServeConfig as ``tailscale serve get-config`` and the LocalAPI write it (JSON).

    Args:
        text: the document.
        tls: certificates by host name for its HTTPS and TLS-terminated ports; other names get a self-made one.

    Raises:
        ConfigError: no such document, or it holds what this version does not serve (Services, Funnel).
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"the serve configuration is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError("the serve configuration is not a JSON object")
    certificates = tls or {}
    for key in ("Services", "Foreground"):
        if document.get(key):
            raise ConfigError(f"the serve configuration uses {key}", hint="only TCP and Web are served")
    web = _object(document.get("Web"), "Web")
    ports: list[HttpPort | TcpPort] = []
    for port_text, value in _object(document.get("TCP"), "TCP").items():
        if not (port_text.isascii() and port_text.isdigit()):
            raise ConfigError(f"no port: {port_text!r}")
        port, entry = int(port_text), _object(value, f"TCP {port_text}")
        if entry.get("TCPForward"):
            ports.append(_tcp_port(port, entry, certificates))
            continue
        sites = tuple(
            Site(host.lower(), _mounts(_object(site, name)))
            for name, site in web.items()
            for host, _, at in (name.rpartition(":"),)
            if at == port_text
        )
        secure: Tls | None = None
        if entry.get("HTTPS"):
            secure = next((certificates[site.host] for site in sites if site.host in certificates), TlsSelfSigned())
        ports.append(HttpPort(port, sites, secure))
    return ServeConfig(tuple(ports))


def _object(value: object, name: str) -> dict[str, object]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{name} in the serve configuration is not an object")
    return value


def _tcp_port(port: int, entry: dict[str, object], certificates: Mapping[str, Tls]) -> TcpPort:
    forward = str(entry["TCPForward"])
    name = str(entry.get("TerminateTLS") or "")
    secure = certificates.get(name, TlsSelfSigned()) if name else None
    version = entry.get("ProxyProtocol") or 0
    if version not in (0, 1, 2):
        raise ConfigError(f"no PROXY protocol version: {version!r}", hint="1 or 2")
    proxy: Literal[0, 1, 2] = 0 if not version else 1 if version == 1 else 2
    if forward.startswith("unix:"):
        if proxy:
            raise ConfigError(f"port {port}: a Unix socket gets no PROXY header", hint="leave ProxyProtocol out")
        return TcpPort(port, forward.removeprefix("unix:"), 0, secure)
    host, _, backend = forward.removeprefix("tcp://").rpartition(":")
    if not (host and backend.isascii() and backend.isdigit() and 0 < int(backend) < 65536):
        raise ConfigError(f"port {port}: cannot forward to {forward!r}", hint="write host:port")
    return TcpPort(port, host.strip("[]"), int(backend), secure, proxy)


def _mounts(site: dict[str, object]) -> tuple[Mount, ...]:
    mounts: list[Mount] = []
    for path, value in _object(site.get("Handlers"), "Handlers").items():
        if not path.startswith("/"):
            raise ConfigError(f"not a path: {path!r}", hint="mounts start with a slash")
        handler = _object(value, path)
        caps_value = handler.get("AcceptAppCaps") or []
        caps = tuple(str(cap) for cap in caps_value) if isinstance(caps_value, list) else ()
        for cap in caps:
            if not _CAPABILITY.fullmatch(cap):
                raise ConfigError(f"no capability name: {cap!r}", hint="they look like example.com/cap/name")
        mounts.append(Mount(path, _handler_target(handler), caps))
    return tuple(mounts)


def _handler_target(handler: dict[str, object]) -> Target | None:
    """Return the target of one handler; of several the first of Text, Redirect, Path, Proxy wins, as recorded."""
    if handler.get("Text"):
        return TextTarget(str(handler["Text"]))
    if handler.get("Redirect"):
        location = str(handler["Redirect"])
        status, colon, rest = location.partition(":")
        if colon and status in ("301", "302", "303", "307", "308"):
            return RedirectTarget(rest, int(status))
        return RedirectTarget(location)
    if handler.get("Path"):
        return DirectoryTarget(str(handler["Path"]))
    if handler.get("Proxy"):
        return parse_proxy(str(handler["Proxy"]))
    return None
