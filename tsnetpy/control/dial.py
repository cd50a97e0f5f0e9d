"""Reaching the server: its key over verified HTTPS, then Noise over the port that is faster (reference, section 3.1).

Noise authenticates the server by its key, so the connection below it may be plain, and a TLS certificate there is not
looked at: a captive network can cut the line but not join in.
"""

import base64
import ipaddress
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias, final
from urllib.parse import urlsplit

import anyio
from anyio.abc import ByteStream

from tsnetpy.base.entropy import Entropy
from tsnetpy.base.errors import ConfigError, ControlError, DecodeError, RemoteProtocolError
from tsnetpy.base.instant import SECOND, Instant
from tsnetpy.base.keys import MachinePrivate, MachinePublic
from tsnetpy.crypto import dh
from tsnetpy.runtime import dial, http1
from tsnetpy.runtime.clock import monotonic_ns
from tsnetpy.runtime.noise_stream import NoiseStream
from tsnetpy.runtime.tls import Verify, connect_tls
from tsnetpy.tailcfg.codec import decode
from tsnetpy.tailcfg.mapping import ControlDialPlan
from tsnetpy.tailcfg.register import ServerKeys
from tsnetpy.ts2021.client import ClientEngine

Connect: TypeAlias = Callable[[str, int], Awaitable[ByteStream]]
"""Opens a TCP connection to a host name or address and a port."""

TLS_HEAD_START_SECONDS: Final = 0.5
"""How long a plain attempt runs before TLS joins the race."""
DIAL_BUDGET_SECONDS: Final = 10.0
KEY_BUDGET_SECONDS: Final = 15.0
_TLS_HANDSHAKE_SECONDS: Final = 5.0
_PREFER_TLS_FOR: Final = 120 * SECOND
"""After a Noise dial the next one within this time goes to the TLS port alone: the plain one has just been lost."""
_MAX_PLAN_SECONDS: Final = 60.0
_UPGRADE_PROTOCOL: Final = "tailscale-control-protocol"

TRANSPORT_ERRORS: Final = (
    OSError,
    ssl.SSLError,
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    anyio.EndOfStream,
    RemoteProtocolError,
    TimeoutError,
)
"""What a failed attempt may raise."""


@dataclass(frozen=True, slots=True)
class ServerUrl:
    """A coordination server's URL, taken apart."""

    scheme: str
    host: str
    port: int | None
    """``None`` if the URL names none."""

    @classmethod
    def parse(cls, url: str) -> "ServerUrl":
        """Return the parts of *url*.

        Raises:
            ConfigError: not ``http://host[:port]`` or ``https://host[:port]``.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"the server URL cannot be read: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise ConfigError(
                "the server URL is not http(s)://host[:port]", hint="for instance https://headscale.example.com"
            )
        return cls(parts.scheme, parts.hostname, port)

    @property
    def is_plain(self) -> bool:
        """True for ``http:``."""
        return self.scheme == "http"

    @property
    def default_port(self) -> int:
        """The port for ordinary requests."""
        return self.port or (80 if self.is_plain else 443)

    @property
    def authority(self) -> str:
        """Host and port as in a ``Host`` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"

    @property
    def plain_port(self) -> int:
        """Where Noise is tried without TLS; an ``https:`` server's own port never speaks plain HTTP."""
        return self.default_port if self.is_plain else 80

    @property
    def tls_port(self) -> int | None:
        """Where Noise is tried inside TLS; ``None`` for a plain server on a private address."""
        if not self.is_plain:
            return self.default_port
        return None if is_private_host(self.host) else 443


def is_private_host(host: str) -> bool:
    """Tell whether *host* is ``localhost`` or a loopback, RFC 1918 or ULA address (documentation ranges are not)."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if address.is_loopback:
        return True
    if isinstance(address, ipaddress.IPv4Address):
        return any(address in network for network in _RFC1918)
    return address in _ULA


_RFC1918: Final = tuple(ipaddress.IPv4Network(n) for n in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
_ULA: Final = ipaddress.IPv6Network("fc00::/7")


async def connect_tcp(host: str, port: int) -> ByteStream:
    """Open a TCP connection through the host's network, racing its addresses (RFC 8305)."""
    return await dial.connect_tcp(host, port)


async def fetch_server_key(
    url: ServerUrl, *, version: int, verify: Verify = "system", connect: Connect = connect_tcp
) -> MachinePublic:
    """Return the server's Noise key from ``GET /key``; with ``https:`` the certificate vouches for it.

    Raises:
        ControlError: no server there, a certificate that does not verify, or no key in the answer.
    """
    try:
        with anyio.fail_after(KEY_BUDGET_SECONDS):
            stream = await connect(url.host, url.default_port)
            try:
                if not url.is_plain:
                    stream = await connect_tls(stream, server_hostname=url.host, verify=verify)
                answer = await http1.request(stream, "GET", f"/key?v={version}", host=url.authority)
            finally:
                await close_quietly(stream)
    except ssl.SSLCertVerificationError as error:
        raise ControlError(
            f"the server's certificate does not verify: {error.verify_message or error}",
            hint="check the server URL, the system's CA store and the clock",
        ) from error
    except TRANSPORT_ERRORS as error:
        raise ControlError(
            f"cannot fetch the server's key: {describe(error)}", hint="check the server URL and the network"
        ) from error
    if answer.status != 200:
        raise ControlError(f"the server answers {answer.status} to /key", hint="is this a coordination server?")
    try:
        key = decode(answer.body, ServerKeys).public_key
    except DecodeError as error:
        raise ControlError("the server's /key answer cannot be read", hint="is this a coordination server?") from error
    if key.is_zero:
        raise ControlError("the server has no Noise key", hint="the server is too old for this client")
    return key


@dataclass(frozen=True, slots=True)
class _Attempt:
    host: str
    port: int
    tls: bool
    delay: float
    timeout: float


@final
class NoiseDialer:
    """Makes Noise connections to one server.

    Args:
        url: the server.
        machine_key: our static key.
        version: capability version.
        entropy: for ephemeral keys.
        connect: how TCP connections are made.
    """

    def __init__(
        self,
        url: ServerUrl,
        *,
        machine_key: MachinePrivate,
        version: int,
        entropy: Entropy,
        connect: Connect = connect_tcp,
    ) -> None:
        self._url = url
        self._machine_key = machine_key
        self._version = version
        self._entropy = entropy
        self._connect = connect
        self._last_dial: Instant | None = None
        self.dial_plan: ControlDialPlan | None = None
        """Addresses the server named; tried before its name is looked up."""

    async def dial(self, server_key: MachinePublic) -> NoiseStream:
        """Return a new connection.

        Raises:
            ControlError: no attempt succeeded; the text tells each one's reason.
        """
        now = monotonic_ns()
        recent = self._last_dial is not None and now - self._last_dial < _PREFER_TLS_FOR
        self._last_dial = now
        failures: list[str] = []
        planned = self._planned_attempts(recent)
        if planned:
            longest = max(attempt.delay + attempt.timeout for attempt in planned) + 5
            stream = await self._race(planned, server_key, min(max(longest, 5.0), _MAX_PLAN_SECONDS), failures)
            if stream is not None:
                return stream
        attempts = self._attempts(self._url.host, recent, 0.0, DIAL_BUDGET_SECONDS)
        stream = await self._race(attempts, server_key, DIAL_BUDGET_SECONDS, failures)
        if stream is not None:
            return stream
        raise ControlError(
            f"cannot reach the coordination server {self._url.authority}: " + ("; ".join(failures) or "no answer"),
            hint="check the server URL and the network; the node keeps trying",
        )

    def _attempts(self, host: str, recent: bool, delay: float, budget: float) -> list[_Attempt]:
        tls_port = self._url.tls_port
        attempts: list[_Attempt] = []
        # A server with an http: URL was chosen to be spoken to in plain; only an https: one is spared port 80.
        if tls_port is None or self._url.is_plain or not recent:
            attempts.append(_Attempt(host, self._url.plain_port, False, delay, budget))
        if tls_port is not None:
            late = TLS_HEAD_START_SECONDS if attempts else 0.0
            attempts.append(_Attempt(host, tls_port, True, delay + late, budget))
        return attempts

    def _planned_attempts(self, recent: bool) -> list[_Attempt]:
        attempts: list[_Attempt] = []
        for candidate in self.dial_plan.candidates[:16] if self.dial_plan is not None else ():
            if candidate.ip:
                timeout = min(candidate.dial_timeout_sec or DIAL_BUDGET_SECONDS, _MAX_PLAN_SECONDS)
                attempts += self._attempts(candidate.ip, recent, max(0.0, candidate.dial_start_delay_sec), timeout)
        return attempts

    async def _race(
        self, attempts: list[_Attempt], server_key: MachinePublic, budget: float, failures: list[str]
    ) -> NoiseStream | None:
        """Run *attempts* side by side; return the first connection, close the others."""
        winners: list[NoiseStream] = []
        try:
            await self._run_race(attempts, server_key, budget, failures, winners)
        except BaseException:
            for stream in winners:  # cancelled at the finish
                await close_quietly(stream)
            raise
        return winners[0] if winners else None

    async def _run_race(
        self,
        attempts: list[_Attempt],
        server_key: MachinePublic,
        budget: float,
        failures: list[str],
        winners: list[NoiseStream],
    ) -> None:
        failed_plain = anyio.Event()
        async with anyio.create_task_group() as group:

            async def run(attempt: _Attempt) -> None:
                if attempt.tls and attempt.delay:
                    with anyio.move_on_after(attempt.delay):
                        await failed_plain.wait()
                elif attempt.delay:
                    await anyio.sleep(attempt.delay)
                try:
                    with anyio.fail_after(attempt.timeout):
                        stream = await self._attempt(attempt, server_key)
                except TRANSPORT_ERRORS as error:
                    kind = "TLS" if attempt.tls else "plain"
                    failures.append(f"port {attempt.port} ({kind}): {describe(error)}")
                    if not attempt.tls:
                        failed_plain.set()
                    return
                if winners:
                    await close_quietly(stream)
                    return
                winners.append(stream)
                group.cancel_scope.cancel()

            for attempt in attempts:
                group.start_soon(run, attempt)
            group.cancel_scope.deadline = anyio.current_time() + budget

    async def _attempt(self, attempt: _Attempt, server_key: MachinePublic) -> NoiseStream:
        # Each attempt has an initiation of its own: two servers must never see the same ephemeral key.
        engine = ClientEngine(self._version, self._machine_key.raw, server_key.raw, dh.generate(self._entropy))
        stream = await self._connect(attempt.host, attempt.port)
        try:
            if attempt.tls:
                with anyio.fail_after(_TLS_HANDSHAKE_SECONDS):
                    stream = await connect_tls(stream, server_hostname=self._url.host, verify="none")
            _, leftover = await http1.upgrade(
                stream,
                "/ts2021",
                host=self._url.authority,
                protocol=_UPGRADE_PROTOCOL,
                method="POST",
                headers=[("X-Tailscale-Handshake", base64.b64encode(engine.initiation).decode("ascii"))],
            )
            return await NoiseStream.connect(stream, engine, leftover)
        except BaseException:
            await close_quietly(stream)
            raise


async def close_quietly(stream: ByteStream) -> None:
    """Close *stream* also while being cancelled, and whatever state it is in."""
    with anyio.move_on_after(1, shield=True):
        try:
            await stream.aclose()
        except TRANSPORT_ERRORS:
            return


def describe(error: BaseException) -> str:
    """Return *error* in words: grouped connect errors are named once each, empty texts by type."""
    if isinstance(error, TimeoutError):
        return "timed out"
    cause = error.__cause__
    if isinstance(error, OSError) and isinstance(cause, BaseExceptionGroup):
        texts = {describe(inner) for inner in cause.exceptions}
        return ", ".join(sorted(texts))
    if isinstance(error, OSError) and isinstance(cause, OSError):
        return describe(cause)
    if isinstance(error, socket.gaierror):
        return error.strerror or "the name cannot be looked up"
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError) and error.errno > 0:
        return os.strerror(error.errno)  # asyncio puts a sentence about its own call into the text
    return str(error) or type(error).__name__
