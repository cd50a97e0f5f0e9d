"""From a request to a mount, and from the request's target to the backend's. Pure.

Paths stay bytes, percent-encoded as they came; only the look-up decodes and cleans them. The rules are those of the
official Serve, recorded in ``tests/data/serve``.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, final
from urllib.parse import parse_qsl, quote_from_bytes, unquote_to_bytes, urlencode

from .config import Mount, ProxyTarget, Site

_BAD_PERCENT: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_HOST_PORT: Final = re.compile(rb"(\[[^\]]*\]|[^:]*)(?::.*)?", re.DOTALL)
_SAFE_PATH: Final = "/%!$&'()*+,;=:@[]~-._"


class Route(NamedTuple):
    """Where a request goes."""

    mount: Mount
    prefix: bytes
    """The mount's path without its final slash, as it stands at the front of the request's path."""
    rest: bytes
    """The request's path behind the prefix, percent-encoded."""


class SplitTarget(NamedTuple):
    """A request target in its parts."""

    path: bytes
    """Percent-encoded; ``b"*"`` and authorities have no leading slash."""
    query: bytes | None
    """None when there is no question mark."""
    host: bytes
    """The authority of an absolute-form target, else empty."""


def split_target(target: bytes) -> SplitTarget | None:
    """Split a request target (RFC 9112 §3.2); None when it is malformed."""
    host = b""
    if not target.startswith((b"/", b"*")) and b"://" in target:
        host, _, rest = target.partition(b"://")[2].partition(b"/")
        host = host.partition(b"?")[0]
        target = b"/" + rest if rest or target.endswith(b"/") else b""
    path, mark, query = target.partition(b"?")
    if _BAD_PERCENT.search(path):
        return None
    return SplitTarget(path, query if mark else None, host)


def clean_path(path: bytes) -> bytes:
    """Return *path* (decoded, absolute) with ``.``, ``..`` and doubled slashes resolved, like Go's ``path.Clean``."""
    out: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            if out:
                out.pop()
        elif part not in (b"", b"."):
            out.append(part)
    return b"/" + b"/".join(out)


@final
class Router:
    """The mounts of one site."""

    __slots__ = ("_mounts",)

    def __init__(self, mounts: Iterable[Mount]) -> None:
        self._mounts: dict[bytes, Mount] = {mount.path.encode("utf-8"): mount for mount in mounts}

    def route(self, path: bytes) -> Route | None:
        """Return the route of a percent-encoded path, or None for 404."""
        if not path.startswith(b"/"):
            return None
        decoded = unquote_to_bytes(path) if b"%" in path else path
        mount = self._mounts.get(decoded)
        at = clean_path(decoded) if mount is None else b""
        while mount is None:
            mount = self._mounts.get(at.rstrip(b"/") + b"/") or self._mounts.get(at)
            if at == b"/":
                break
            at = at[: at.rindex(b"/")] or b"/"
        if mount is None:
            return None
        prefix = mount.path.encode("utf-8").rstrip(b"/")
        if not prefix:
            return Route(mount, b"", path)
        # The mount must be a literal prefix of both forms: otherwise where the remainder starts is a guess.
        encoded = quote_from_bytes(prefix, _SAFE_PATH).encode("ascii")
        for form in (prefix, encoded):
            if path.startswith(form) and decoded.startswith(prefix):
                return Route(mount, form, path[len(form) :])
        return None


def backend_target(target: ProxyTarget, rest: bytes, query: bytes | None) -> bytes:
    """Return the request target for a backend: its own path and query, then those of the request.

    Args:
        target: the backend.
        rest: what is left of the request's path behind the mount, percent-encoded.
        query: the request's query, None when there is no question mark.
    """
    base = target.path.encode("utf-8")
    rest = _escape(rest)
    if not rest:
        path = _escape(base) or b"/"
    elif not base:
        path = rest if rest.startswith(b"/") else b"/" + rest
    else:
        path = _escape(base).removesuffix(b"/") + b"/" + rest.removeprefix(b"/")
    own = target.query.encode("utf-8")
    if query is None:
        return path + b"?" + own if own else path
    cleaned = clean_query(query)
    if own:
        cleaned = own + b"&" + cleaned if cleaned else own
    elif query and not cleaned:
        return path
    return path + b"?" + cleaned


def _escape(path: bytes) -> bytes:
    """Percent-encode what may not stand in a path; percent signs are already escapes."""
    return quote_from_bytes(path, _SAFE_PATH).encode("ascii")


def clean_query(query: bytes) -> bytes:
    """Drop parameters that parsers disagree about: those with a semicolon or a broken escape.

    A backend must not see other parameters than whoever checked the query before it. When one is dropped, the others
    are encoded anew and sorted by name, as recorded.
    """
    if b";" not in query and not _BAD_PERCENT.search(query):
        return query
    kept = [part for part in query.split(b"&") if part and b";" not in part and not _BAD_PERCENT.search(part)]
    pairs = parse_qsl(b"&".join(kept).decode("latin-1"), keep_blank_values=True, encoding="latin-1")
    return urlencode(sorted(pairs, key=lambda pair: pair[0]), encoding="latin-1").encode("ascii")


@final
class SiteTable:
    """The sites of one port by host name."""

    __slots__ = ("_default", "_routers", "_suffix")

    def __init__(self, sites: Iterable[Site], suffix: str) -> None:
        """Build the table.

        Args:
            sites: the sites; one of host ``*`` answers for all names that no other has.
            suffix: the MagicDNS suffix, which a bare name is completed with.
        """
        self._suffix: bytes = suffix.strip(".").lower().encode("ascii", "ignore")
        self._routers: Mapping[bytes, Router] = {
            site.host.encode("ascii", "ignore"): Router(site.mounts) for site in sites if site.host != "*"
        }
        self._default: Router | None = next((Router(site.mounts) for site in sites if site.host == "*"), None)

    def router(self, host: bytes) -> Router | None:
        """Return the router for a ``Host`` value, or None. The port in it, a final dot and the case do not matter."""
        if not self._routers:
            return self._default
        found = _HOST_PORT.fullmatch(host)
        name = (found[1] if found else b"").lower().rstrip(b".")
        if self._suffix and not name.endswith(b"." + self._suffix):
            router = self._routers.get(name + b"." + self._suffix)
        else:
            router = self._routers.get(name)
        return router or self._routers.get(name) or self._default
