"""TCP connections through the host's network, by name or address.

The event loop's own ``connect_tcp`` looks names up in threads that are joined at the end of the process; see
:mod:`tsnetpy.runtime.threads`.
"""

import socket
from collections.abc import Sequence
from typing import Final

import anyio
from anyio.abc import SocketStream

from .threads import run_blocking

ATTEMPT_DELAY_S: Final = 0.3
"""How long an address may take before the next one is tried beside it (RFC 8305, section 5)."""


async def look_up(host: str, port: int, family: int = 0) -> list[str]:
    """Return the addresses of *host* in the order of the host's preference (RFC 6724).

    Raises:
        OSError: there are none, or they cannot be found out.
    """
    try:
        found = await run_blocking(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, abandon=True)
    except UnicodeError:  # a label that is too long or empty fails in the codec, before any name server is asked
        raise OSError(f"{host!r} is no host name") from None
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


async def connect_tcp(host: str, port: int) -> SocketStream:
    """Connect to *port* of *host*, racing its addresses (RFC 8305).

    Raises:
        OSError: no address, or none that answers.
    """
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
        addresses: Sequence[str] = (host,)
    except OSError:
        addresses = _alternating(await look_up(host, port))
    if len(addresses) == 1:
        return await anyio.connect_tcp(addresses[0], port)
    return await _race(addresses, port)


def _alternating(addresses: list[str]) -> list[str]:
    """Let the families take turns, beginning with the preferred one (RFC 8305, section 4)."""
    if not addresses:
        raise OSError("the name has no address")
    first = [ip for ip in addresses if (":" in ip) == (":" in addresses[0])]
    second = [ip for ip in addresses if ip not in first]
    mixed: list[str] = []
    for number in range(max(len(first), len(second))):
        mixed += first[number : number + 1] + second[number : number + 1]
    return mixed


async def _race(addresses: Sequence[str], port: int) -> SocketStream:
    winners: list[SocketStream] = []
    failures: list[OSError] = []
    try:
        await _attempt_all(addresses, port, winners, failures)
    except BaseException:
        for stream in winners:  # cancelled at the finish
            await anyio.aclose_forcefully(stream)
        raise
    if winners:
        return winners[0]
    raise failures[0]


async def _attempt_all(
    addresses: Sequence[str], port: int, winners: list[SocketStream], failures: list[OSError]
) -> None:
    """Connect to one after the other until one has connected."""
    async with anyio.create_task_group() as group:

        async def attempt(ip: str, failed: anyio.Event) -> None:
            try:
                stream = await anyio.connect_tcp(ip, port)
            except OSError as error:
                failures.append(error)
                failed.set()
                return
            if winners:
                await stream.aclose()
                return
            winners.append(stream)
            group.cancel_scope.cancel()

        for ip in addresses:
            failed = anyio.Event()
            group.start_soon(attempt, ip, failed)
            with anyio.move_on_after(ATTEMPT_DELAY_S):
                await failed.wait()
