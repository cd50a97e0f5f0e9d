"""TLS on the server's side over a tailnet stream."""

import os
import ssl
import tempfile
from collections.abc import Sequence
from typing import Any, Final, final

import anyio
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream

from tsnetpy.base.addr import IpBytes
from tsnetpy.base.errors import ConfigError
from tsnetpy.crypto.x509 import make_self_signed
from tsnetpy.runtime import clock

from .config import Tls, TlsFiles

HANDSHAKE_TIMEOUT_S: Final = 10.0
SELF_SIGNED_DAYS: Final = 90

_HTTP_METHODS: Final = (b"GET ", b"HEAD", b"POST", b"PUT ", b"DELE", b"OPTI", b"PATC", b"CONN", b"TRAC")


def server_context(
    tls: Tls, names: Sequence[str], ips: Sequence[IpBytes], *, alpn: Sequence[str] = ()
) -> ssl.SSLContext:
    """Return a context with the certificate that *tls* asks for.

    Args:
        tls: certificate files, or the wish for a self-made one.
        names: the node's names, for a self-made certificate.
        ips: its addresses.
        alpn: protocols to offer (RFC 7301), none for raw TCP.

    Raises:
        ConfigError: the files cannot be read, or do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if isinstance(tls, TlsFiles):
        try:
            context.load_cert_chain(tls.cert, tls.key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"cannot use the certificate {tls.cert} with the key {tls.key}: {error}",
                hint="both files are PEM, and the key belongs to the first certificate",
            ) from None
        return context
    made = make_self_signed(list(names) or ["localhost"], ips, SELF_SIGNED_DAYS, clock.wall_ns())
    # The ssl module takes certificates from files only. This one is ours alone, and gone at once.
    descriptor, path = tempfile.mkstemp()
    try:
        with open(descriptor, "wb") as file:
            file.write(made.key_pem + made.cert_pem)
        context.load_cert_chain(path)
    finally:
        os.unlink(path)
    return context


@final
class FirstBytes(ByteStream):
    """A stream with its first bytes put back in front."""

    def __init__(self, first: bytes, stream: ByteStream) -> None:
        self._first = first
        self._stream = stream

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive: what was put back first."""
        if self._first:
            data, self._first = self._first[:max_bytes], self._first[max_bytes:]
            return data
        return await self._stream.receive(max_bytes)

    async def send(self, item: bytes) -> None:
        """Send as the stream does."""
        await self._stream.send(item)

    async def send_eof(self) -> None:
        """End this side as the stream does."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()

    @property
    def extra_attributes(self) -> Any:
        """The attributes of the stream."""
        return self._stream.extra_attributes


async def accept_tls(stream: ByteStream, context: ssl.SSLContext) -> TLSStream | None:
    """Make the handshake as a server; None when there is none, and then *stream* is closed.

    Somebody who speaks HTTP to the port is told so, in HTTP.
    """
    try:
        with anyio.fail_after(HANDSHAKE_TIMEOUT_S):
            first = await stream.receive()
            if first.startswith(_HTTP_METHODS):
                await stream.send(
                    b"HTTP/1.0 400 Bad Request\r\nConnection: close\r\n\r\n"
                    b"Client sent an HTTP request to an HTTPS server.\n"
                )
                await stream.aclose()
                return None
            # Browsers and tools end connections without close_notify; HTTP frames its own messages.
            return await TLSStream.wrap(
                FirstBytes(first, stream), server_side=True, ssl_context=context, standard_compatible=False
            )
    except (OSError, ssl.SSLError, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream):
        await stream.aclose()
        return None
