"""Files over HTTP: ranges, conditional requests, index pages and listings, as Go's file server does them.

Differences on purpose: only GET and HEAD are answered, redirections work under every mount, and a symbolic link that
leads out of the directory is not followed. Every look at the file system happens in a worker thread.
"""

import html
import mimetypes
import os
import re
import stat
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from typing import BinaryIO, Final, final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from tsnetpy.runtime.threads import run_blocking

from .http1 import Http1Connection, Request, http_date
from .router import clean_path

CHUNK_BYTES: Final = 256 * 1024
"""Read per hop into a worker thread; a file up to this size needs a single one."""

_RANGE: Final = re.compile(rb"bytes=[ \t]*(\d{0,18})-(\d{0,18})[ \t]*")
_LIST_HEAD: Final = '<!doctype html>\n<meta name="viewport" content="width=device-width">\n<pre>\n'


@dataclass(slots=True)
class _Found:
    """What a path turned out to be: a file opened for reading, a listing, or a redirection."""

    file: BinaryIO | None = None
    size: int = 0
    mtime: int = 0
    first: bytes = b""
    listing: str = ""
    redirect: bytes = b""
    status: int = 301
    name: str = ""


@final
class StaticFiles:
    """Serves a directory, or one regular file."""

    __slots__ = ("_root",)

    def __init__(self, root: str) -> None:
        self._root = os.path.realpath(root)

    async def handle(self, conn: Http1Connection, request: Request, prefix: bytes, rest: bytes) -> None:
        """Answer *request*.

        Args:
            conn: the client's connection.
            request: the request.
            prefix: the mount's path without final slash, percent-encoded.
            rest: the path behind it, percent-encoded.
        """
        if request.method not in (b"GET", b"HEAD"):
            await conn.respond(
                request, 405, b"only GET and HEAD\n", b"text/plain; charset=utf-8", b"Allow: GET, HEAD\r\n"
            )
            return
        found = await run_blocking(self._look, prefix, rest)
        if found is None:
            await conn.respond_text(request, 404, "404 page not found")
        elif found.redirect:
            await conn.respond(request, found.status, b"", extra=b"Location: %s\r\n" % found.redirect)
        elif found.file is None:
            modified = f"Last-Modified: {formatdate(found.mtime, usegmt=True)}\r\n".encode("ascii")
            await conn.respond(request, 200, found.listing.encode("utf-8"), b"text/html; charset=utf-8", modified)
        else:
            try:
                await self._send_file(conn, request, found, found.file)
            finally:
                await run_blocking(found.file.close)

    def _look(self, prefix: bytes, rest: bytes) -> _Found | None:
        """Find out what is at a path. Runs in a worker thread."""
        decoded = unquote_to_bytes(rest)
        if b"\0" in decoded:
            return None
        clean = clean_path(decoded or b"/")
        wants_directory = decoded.endswith(b"/") or not decoded
        real = os.path.realpath(os.path.join(self._root, os.fsdecode(clean[1:])))
        inside = self._root if self._root.endswith("/") else self._root + "/"
        if real != self._root and not real.startswith(inside):
            return None
        try:
            info = os.stat(real)
        except (OSError, ValueError):
            return None
        if stat.S_ISDIR(info.st_mode):
            if not decoded.endswith(b"/"):
                return _Found(redirect=_below(prefix, clean) + b"/", status=301 if decoded else 302)
            index = os.path.realpath(os.path.join(real, "index.html"))
            if index.startswith(inside) and os.path.isfile(index):
                return self._open(index, index)
            return self._list(real, int(info.st_mtime))
        if not stat.S_ISREG(info.st_mode):
            return None  # opening a FIFO would block the worker for good
        if real == self._root:
            # One file at the mount's own path; it has nothing below, and its type comes from the public name.
            return self._open(real, os.fsdecode(unquote_to_bytes(prefix))) if not decoded else None
        if wants_directory:
            return _Found(redirect=_below(prefix, clean))
        if clean.endswith(b"/index.html"):
            return _Found(redirect=_below(prefix, clean.removesuffix(b"index.html")) + b"/")
        return self._open(real, os.fsdecode(clean))

    def _open(self, path: str, name: str) -> _Found | None:
        try:
            file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by handle()
        except OSError:
            return None
        info = os.fstat(file.fileno())
        first = file.read(CHUNK_BYTES) if info.st_size <= CHUNK_BYTES else file.read(512)
        return _Found(file, info.st_size, int(info.st_mtime), first, name=name)

    def _list(self, path: str, mtime: int) -> _Found | None:
        try:
            entries = sorted(os.scandir(path), key=lambda entry: os.fsencode(entry.name))
        except OSError:
            return None
        lines = [_LIST_HEAD]
        for entry in entries:
            name = entry.name + ("/" if entry.is_dir(follow_symlinks=False) else "")
            link = quote_from_bytes(os.fsencode(name), "/!$&'()*+,;=@-._~")
            if ":" in name.partition("/")[0]:
                link = "./" + link  # RFC 3986 §4.2: otherwise it would read as a scheme
            shown = html.escape(os.fsencode(name).decode("utf-8", "replace"), quote=True)
            lines.append(f'<a href="{html.escape(link)}">{shown}</a>\n')
        lines.append("</pre>\n")
        return _Found(listing="".join(lines), mtime=mtime)

    async def _send_file(self, conn: Http1Connection, request: Request, found: _Found, file: BinaryIO) -> None:
        modified = f"Last-Modified: {formatdate(found.mtime, usegmt=True)}\r\n".encode("ascii")
        if _not_modified(request, found.mtime):
            await conn.send(conn.head(request, 304, modified + b"Date: %s\r\n" % http_date()))
            return
        start, end = 0, found.size
        status = 200
        fields = b"Accept-Ranges: bytes\r\n" + modified
        wanted = request.header(b"range")
        if wanted is not None and _range_applies(request, found.mtime) and b"," not in wanted:
            part = _parse_range(wanted, found.size)
            if part is None:
                extra = b"Content-Range: bytes */%d\r\n" % found.size
                await conn.respond(request, 416, b"invalid range\n", b"text/plain; charset=utf-8", extra)
                return
            start, end = part
            status = 206
            fields += b"Content-Range: bytes %d-%d/%d\r\n" % (start, end - 1, found.size)
        fields += b"Content-Type: %s\r\nContent-Length: %d\r\nDate: %s\r\n" % (
            content_type(found.name, found.first),
            end - start,
            http_date(),
        )
        out = conn.head(request, status, fields)
        if request.method == b"HEAD":
            await conn.send(out)
            return
        if end <= len(found.first):
            await conn.send(out + found.first[start:end])
            return
        await conn.send(out)
        await run_blocking(file.seek, start)
        left = end - start
        while left:
            data = await run_blocking(file.read, min(CHUNK_BYTES, left))
            if not data:
                conn.must_close = True  # shorter than its length was: the client sees the connection end
                return
            left -= len(data)
            await conn.send(data)


def _below(prefix: bytes, clean: bytes) -> bytes:
    """Return a path for ``Location``, without final slash. *clean* has no double slashes: it cannot name a host."""
    return prefix + quote_from_bytes(clean, "/!$&'()*+,;=:@-._~").encode("ascii").rstrip(b"/")


def content_type(name: str, first: bytes) -> bytes:
    """Return the media type by the name's extension, else by a look at the first bytes."""
    guessed, encoding = mimetypes.guess_type(name)
    if guessed is None or encoding:
        sample = first[:512]
        binary = any(byte < 32 and byte not in b"\t\n\x0c\r\x1b" for byte in sample)
        return b"application/octet-stream" if binary else b"text/plain; charset=utf-8"
    if guessed.startswith("text/"):
        guessed += "; charset=utf-8"
    return guessed.encode("ascii")


def _seconds(value: bytes | None) -> int | None:
    """Return an HTTP date in Unix seconds, None when it is none."""
    if value is None:
        return None
    try:
        return int(parsedate_to_datetime(value.decode("ascii")).timestamp())
    except (ValueError, TypeError, OverflowError):
        return None


def _not_modified(request: Request, mtime: int) -> bool:
    """RFC 9110 §13.2.2 for a server without entity tags."""
    tags = request.header(b"if-none-match")
    if tags is not None:
        return tags == b"*"
    since = _seconds(request.header(b"if-modified-since"))
    return since is not None and mtime <= since


def _range_applies(request: Request, mtime: int) -> bool:
    condition = request.header(b"if-range")
    return condition is None or _seconds(condition) == mtime


def _parse_range(value: bytes, size: int) -> tuple[int, int] | None:
    """Return start and end of a byte range (RFC 9110 §14.1.2), or None when it cannot be satisfied."""
    found = _RANGE.fullmatch(value)
    if found is None or found[1] == found[2] == b"":
        return None
    if not found[1]:
        length = min(int(found[2]), size)
        return (size - length, size) if length else None
    start = int(found[1])
    end = min(int(found[2]) + 1, size) if found[2] else size
    return (start, end) if start < end else None
