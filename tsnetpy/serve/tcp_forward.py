"""Connections of a tailnet port handed on to a TCP or Unix socket of this host, with a PROXY header if asked for.

An end of one side is passed on as a half-close, so that protocols which end one direction first keep working.
"""

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import anyio
from anyio.abc import ByteStream

from tsnetpy.base.addr import parse_ip
from tsnetpy.runtime.dial import connect_tcp
from tsnetpy.runtime.splice import splice

from .config import TcpPort

CONNECT_TIMEOUT_S: Final = 10.0

_V2_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"

DialTcp: TypeAlias = Callable[[TcpPort], Awaitable[ByteStream]]


async def dial(port: TcpPort) -> ByteStream:
    """Connect to the backend of a port.

    Raises:
        OSError: no connection.
    """
    if port.backend_port == 0:
        return await anyio.connect_unix(port.host)
    return await connect_tcp(port.host, port.backend_port)


def proxy_header(version: int, source: tuple[str, int], destination_ip: str, destination_port: int) -> bytes:
    """Return a PROXY protocol header, versions 1 and 2.

    Args:
        version: 1 or 2.
        source: address and port of the client.
        destination_ip: the node's own address, of the same family.
        destination_port: the *backend's* port, as the official Serve has it.
    """
    src, dst = parse_ip(source[0]), parse_ip(destination_ip)
    v6 = len(src) == 16
    if version == 1:
        family = "TCP6" if v6 else "TCP4"
        return f"PROXY {family} {source[0]} {destination_ip} {source[1]} {destination_port}\r\n".encode("ascii")
    addresses = src + dst + source[1].to_bytes(2, "big") + destination_port.to_bytes(2, "big")
    return _V2_SIGNATURE + bytes((0x21, 0x21 if v6 else 0x11)) + len(addresses).to_bytes(2, "big") + addresses


async def forward(
    stream: ByteStream, port: TcpPort, source: tuple[str, int], local_ip: str, dial: DialTcp = dial
) -> tuple[int, int]:
    """Hand a connection on until both sides have ended; then both streams are closed.

    Returns:
        Bytes from the client, and to it.

    Raises:
        OSError: the backend cannot be reached.
    """
    async with stream:
        with anyio.fail_after(CONNECT_TIMEOUT_S):
            backend = await dial(port)
        async with backend:
            if port.proxy_protocol:
                await backend.send(proxy_header(port.proxy_protocol, source, local_ip, port.backend_port))
            return await splice(stream, backend)
