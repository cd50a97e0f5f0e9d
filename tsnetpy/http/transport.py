"""httpx on a node: a transport, and a client that has it."""

import ssl
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self, final

import httpcore
import httpx

from .backend import Dials, TunnelBackend

DEFAULT_TIMEOUT: Final = httpx.Timeout(30.0)
"""Longer than httpx's own 5 s: the first packet to a peer may have to wait for a path and a WireGuard handshake."""
_LIMITS: Final = httpx.Limits(max_connections=100, max_keepalive_connections=20)


@final
class HttpTransport(httpx.AsyncBaseTransport):
    """A pool of connections through *node*, for ``httpx.AsyncClient(transport=…)`` and its ``mounts``.

    ``response.extensions["network_stream"].get_extra_info("peer")`` tells who answered (``tsnetpy.WhoIs``).

    Args:
        node: a running node.
        verify: for ``https:``, how the server proves who it is: the system's authorities (``True``), those of a context
            of your own, or nobody (``False``; the tunnel authenticates the node all the same).
        http1, http2: which versions may be spoken; HTTP/2 is agreed on in the TLS handshake.
        limits: of the pool.
        retries: how often a connection that was not made is tried again.
    """

    def __init__(
        self,
        node: Dials,
        *,
        verify: ssl.SSLContext | bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: httpx.Limits = _LIMITS,
        retries: int = 0,
    ) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(verify=verify),
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            http1=http1,
            http2=http2,
            retries=retries,
            network_backend=TunnelBackend(node),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send *request*, and return the response as soon as its head is there.

        Raises:
            httpx.TransportError: whatever went wrong on the way.
        """
        assert isinstance(request.stream, httpx.AsyncByteStream)
        url = request.url
        body = _RequestBody(request.stream)
        try:
            with _as_httpx_errors():
                response = await self._pool.handle_async_request(
                    httpcore.Request(
                        request.method,
                        httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                        headers=request.headers.raw,
                        content=body,
                        extensions=request.extensions,
                    )
                )
        finally:
            await body.aclose()
        assert isinstance(response.stream, AsyncIterable)
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_ResponseBody(response.stream),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        """Close all connections."""
        with _as_httpx_errors():
            await self._pool.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()


@final
class _RequestBody:
    """A body whose generator is closed if it was not sent to its end; httpcore leaves that to the garbage collector."""

    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._parts = aiter(stream)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        return await anext(self._parts)

    async def aclose(self) -> None:
        close = getattr(self._parts, "aclose", None)
        if close is not None:
            await close()


@final
class _ResponseBody(httpx.AsyncByteStream):
    def __init__(self, stream: AsyncIterable[bytes]) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx_errors():
            async for part in self._stream:
                yield part

    async def aclose(self) -> None:
        close = getattr(self._stream, "aclose", None)
        if close is not None:
            with _as_httpx_errors():
                await close()


@contextmanager
def _as_httpx_errors() -> Iterator[None]:
    """Raise httpx's exception of the same name; the two libraries keep theirs in step."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "httpcore":
            raise
        mapped = getattr(httpx, type(error).__name__, httpx.TransportError)
        raise mapped(str(error)) from error


def http_client(
    node: Dials,
    *,
    verify: ssl.SSLContext | bool = True,
    http1: bool = True,
    http2: bool = False,
    limits: httpx.Limits = _LIMITS,
    retries: int = 0,
    timeout: httpx.Timeout | float | None = DEFAULT_TIMEOUT,
    **options: Any,
) -> httpx.AsyncClient:
    """Return a client whose every connection goes through *node*; close it (``async with``) before the node.

    Args:
        node, verify, http1, http2, limits, retries: as for :class:`HttpTransport`.
        timeout: seconds for each step (connect, send, receive, wait for a free connection), ``None``: no limit.
        options: further ones of ``httpx.AsyncClient`` (``base_url``, ``headers``, ``auth``, …).
    """
    transport = HttpTransport(node, verify=verify, http1=http1, http2=http2, limits=limits, retries=retries)
    # httpx takes proxies from the environment only for transports that it makes itself.
    return httpx.AsyncClient(transport=transport, timeout=timeout, **options)
