"""Names that are dialled through the tunnel, looked up at the file's ``DNS`` servers, which are asked through it, too.

The host's own resolver is never asked: it would tell a network outside which names are used inside.
"""

import errno
from collections.abc import Callable
from typing import Final, final

import anyio

from tsnetpy.base.addr import Endpoint, IpBytes, format_ip, parse_ip, unmap
from tsnetpy.base.entropy import Entropy
from tsnetpy.base.errors import DecodeError, DialError
from tsnetpy.base.instant import SECOND, Instant
from tsnetpy.dns.codec import QType, Rcode
from tsnetpy.dns.server import frame_message
from tsnetpy.dns.stub import StubAnswer, decode_answer, encode_name, encode_query
from tsnetpy.netstack import tcp, udp
from tsnetpy.netstack.pump import Pump

DNS_PORT: Final = 53
TRY_SECONDS: Final = 2.0
TRIES: Final = 3
"""Rounds over all servers."""
CACHE_NAMES: Final = 512

_USABLE: Final = frozenset({int(Rcode.NOERROR), int(Rcode.NXDOMAIN)})


class _NoAnswer(Exception):
    """No server said anything useful."""


@final
class TunnelResolver:
    """A stub resolver over sockets of the tunnel.

    Args:
        pump: whose stack to ask through.
        servers: raw addresses, in order of preference.
        search: domains for names without a dot.
        own: our own addresses: families that we lack are not asked about.
        entropy: for query identifiers; ports are the stack's random ones.
    """

    def __init__(
        self,
        pump: Pump,
        servers: tuple[IpBytes, ...],
        search: tuple[str, ...],
        own: tuple[IpBytes, ...],
        entropy: Entropy,
    ) -> None:
        self._pump = pump
        self._servers = servers
        self._search = search
        self._families = sorted({len(ip) for ip in own})
        self._entropy = entropy
        self._cache: dict[str, tuple[tuple[IpBytes, ...], Instant]] = {}

    def known(self, host: str) -> tuple[IpBytes, ...]:
        """Return the addresses of *host* without asking anybody: those of an address, or of a name still in the cache.

        Raises:
            DialError: nothing is known.
        """
        text = _plain(host)
        literal = _literal(text)
        if literal is not None:
            return (literal,)
        kept = self._cache.get(text.lower())
        if kept is None or kept[1] <= self._pump.now():
            raise DialError(
                f"{host}: not an address, and not looked up lately",
                errno=errno.EHOSTUNREACH,
                hint="await node.resolve(name) first, or send to an address",
            )
        return kept[0]

    async def resolve(self, host: str) -> tuple[IpBytes, ...]:
        """Return the addresses of *host*, IPv4 first.

        Raises:
            DialError: no such name, or no server answers (both ``EHOSTUNREACH``).
        """
        text = _plain(host)
        literal = _literal(text)
        if literal is not None:
            return (literal,)
        folded = text.lower()
        kept = self._cache.get(folded)
        if kept is not None and kept[1] > self._pump.now():
            return kept[0]
        if not self._servers:
            raise DialError(
                f"{host}: names need a DNS server inside the tunnel",
                errno=errno.EHOSTUNREACH,
                hint="put `DNS = address` into [Interface], or dial an address",
            )
        for name in self._candidates(folded):
            addresses, ttl_s = await self._look_up(host, name)
            if addresses:
                if len(self._cache) >= CACHE_NAMES:
                    self._cache.pop(next(iter(self._cache)))
                self._cache[folded] = addresses, self._pump.now() + ttl_s * SECOND
                return addresses
        raise DialError(f"{host}: no such name", errno=errno.EHOSTUNREACH)

    def _candidates(self, name: str) -> list[str]:
        if name.endswith(".") or "." in name or not self._search:
            return [name]
        return [f"{name}.{domain}" for domain in self._search] + [name]

    async def _look_up(self, host: str, name: str) -> tuple[tuple[IpBytes, ...], int]:
        """Ask about each family at once."""
        answers: dict[int, StubAnswer] = {}
        failures: list[str] = []

        async def one(family: int) -> None:
            try:
                answers[family] = await self._ask_all(name, QType.A if family == 4 else QType.AAAA)
            except _NoAnswer as failure:
                failures.append(str(failure))

        try:
            encode_name(name)
        except ValueError as error:
            raise DialError(f"{host!r}: {error}", errno=errno.EHOSTUNREACH) from None
        async with anyio.create_task_group() as group:
            for family in self._families:
                group.start_soon(one, family)
        addresses = [ip for family in sorted(answers) for ip in answers[family].addresses]
        if not addresses and failures:
            raise DialError(
                f"{host}: {failures[0]}", errno=errno.EHOSTUNREACH, hint="is the DNS server reachable by AllowedIPs?"
            )
        return tuple(addresses), min((a.ttl_s for a in answers.values() if a.addresses), default=0)

    async def _ask_all(self, name: str, qtype: QType) -> StubAnswer:
        said = "no answer from any DNS server"
        for number in range(TRIES * len(self._servers)):
            server = self._servers[number % len(self._servers)]
            if self._pump.dataplane.peer_for_ip(server) is None:
                said = f"the DNS server {format_ip(server)} is in nobody's AllowedIPs"
                continue
            query = encode_query(self._entropy.u32() & 0xFFFF, name, qtype)
            answer: StubAnswer | None = None
            try:
                with anyio.move_on_after(TRY_SECONDS):
                    answer = await self._ask_udp(server, query)
                    if answer is not None and answer.truncated:
                        answer = await self._ask_tcp(server, query)
            except DialError as error:
                said = str(error)
            if answer is None:
                continue
            if answer.rcode in _USABLE:
                return answer
            said = f"the DNS server {format_ip(server)} refuses (code {answer.rcode})"
        raise _NoAnswer(said)

    async def _ask_udp(self, server: IpBytes, query: bytes) -> StubAnswer | None:
        async with udp.bind(self._pump) as socket:
            await socket.sendto(query, format_ip(server), DNS_PORT)
            while True:
                data, source = await socket.receive()
                if source != (format_ip(server), DNS_PORT):
                    continue
                try:
                    answer = decode_answer(data, query)
                except DecodeError:
                    continue
                if answer is not None:
                    return answer

    async def _ask_tcp(self, server: IpBytes, query: bytes) -> StubAnswer | None:
        try:
            async with await tcp.connect(self._pump, Endpoint(server, DNS_PORT)) as stream:
                await stream.send(frame_message(query))
                buffer = b""
                while len(buffer) < 2 or len(buffer) < 2 + int.from_bytes(buffer[:2], "big"):
                    buffer += await stream.receive()
                return decode_answer(buffer[2 : 2 + int.from_bytes(buffer[:2], "big")], query)
        except (DecodeError, anyio.EndOfStream, anyio.BrokenResourceError):
            return None


def socket_resolver(resolver: TunnelResolver) -> Callable[[str], IpBytes]:
    """Return the function by which a UDP socket finds an address without waiting."""
    return lambda host: resolver.known(host)[0]


def _plain(host: str) -> str:
    text = host.strip()
    return text[1:-1] if text.startswith("[") and text.endswith("]") else text


def _literal(text: str) -> IpBytes | None:
    try:
        return unmap(parse_ip(text))
    except ValueError:
        return None
