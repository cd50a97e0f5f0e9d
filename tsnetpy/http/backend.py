"""The network below httpcore: connections of a node in place of the host's."""

import errno
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol, final

import anyio
import httpcore
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSAttribute, TLSStream

from tsnetpy.netstack.attributes import TsnetAttribute
from tsnetpy.netstack.tcp import TcpStream

_LOST: Final = (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)
"""What a connection may end with (an ``ssl.SSLError`` is an ``OSError``)."""


class Dials(Protocol):
    """What can make connections: a ``tsnetpy.Node``, a ``WireGuardNode``, or another host of streams."""

    async def connect_tcp(self, host: str, port: int) -> ByteStream:
        """Dial *port* of *host*.

        Raises:
            DialError: with ``errno`` as sockets would set it.
        """
        ...


@final
class TunnelBackend(httpcore.AsyncNetworkBackend):
    """Makes connections through *node*, for pools of your own (``AsyncConnectionPool(network_backend=…)``)."""

    def __init__(self, node: Dials) -> None:
        self._node = node

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the signatures are httpcore's
        local_address: str | None = None,
        socket_options: Iterable[object] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Dial through the node. Options of the host's sockets have no meaning here and are ignored.

        Raises:
            httpcore.ConnectTimeout: no answer within *timeout* seconds, or within the node's own patience.
            httpcore.ConnectError: refused, no such name, no way there; the text says which.
        """
        try:
            with anyio.fail_after(timeout):
                return _TunnelStream(await self._node.connect_tcp(host, port))
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(str(error) or f"{host} port {port}: no answer within {timeout} s") from error
        except _LOST as error:
            timed_out = isinstance(error, OSError) and error.errno == errno.ETIMEDOUT
            raise (httpcore.ConnectTimeout if timed_out else httpcore.ConnectError)(str(error)) from error

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109
        socket_options: Iterable[object] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Refuse: a socket of this host is not in the tailnet.

        Raises:
            httpcore.ConnectError: always.
        """
        raise httpcore.ConnectError(f"{path}: Unix sockets are not reached through a node")

    async def sleep(self, seconds: float) -> None:
        """Wait between attempts."""
        await anyio.sleep(seconds)


@final
class _TunnelStream(httpcore.AsyncNetworkStream):
    """One connection, as httpcore wants it.

    Extra information, beyond httpcore's: ``"peer"``, the authenticated identity of the other end (``WhoIs``).
    """

    def __init__(self, stream: ByteStream, below: ByteStream | None = None) -> None:
        self._stream = stream
        self._below = stream if below is None else below

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        with _mapped(httpcore.ReadTimeout, httpcore.ReadError), anyio.fail_after(timeout):
            try:
                return await self._stream.receive(max_bytes)
            except anyio.EndOfStream:
                return b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        if buffer:
            with _mapped(httpcore.WriteTimeout, httpcore.WriteError), anyio.fail_after(timeout):
                await self._stream.send(buffer)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        try:
            with _mapped(httpcore.ConnectTimeout, httpcore.ConnectError), anyio.fail_after(timeout):
                # Many servers end without a close_notify; HTTP has lengths and chunks of its own to tell a cut answer.
                stream = await TLSStream.wrap(
                    self._stream, hostname=server_hostname, ssl_context=ssl_context, standard_compatible=False
                )
        except BaseException:
            await anyio.aclose_forcefully(self._stream)
            raise
        return _TunnelStream(stream, self._below)

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            # Asked of idle connections: one that has something to say has nothing good to say, mostly its end.
            return isinstance(self._below, TcpStream) and self._below.readable
        attribute = _EXTRA.get(info)
        return None if attribute is None else self._stream.extra(attribute, None)


_EXTRA: Final[dict[str, Any]] = {
    "ssl_object": TLSAttribute.ssl_object,
    "client_addr": SocketAttribute.local_address,
    "server_addr": SocketAttribute.remote_address,
    "peer": TsnetAttribute.peer,
}


@contextmanager
def _mapped(timed_out: type[Exception], lost: type[Exception]) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise timed_out(str(error)) from error
    except (anyio.EndOfStream, *_LOST) as error:
        raise lost(str(error) or "the connection has ended") from error
