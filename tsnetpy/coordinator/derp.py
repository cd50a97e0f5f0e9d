"""The DERP relay: TLS with a certificate of its own making, the HTTP upgrade, then :mod:`tsnetpy.derp.server`.

Official clients insist on TLS but accept any certificate that the DERP map pins. Only node keys that the coordinator
knows may connect. Sources: datapath reference, sections 3.1 and 3.4.
"""

import logging
import ssl
import tempfile
from collections.abc import Container
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import anyio.lowlevel
from anyio.abc import ByteStream, SocketStream, TaskStatus
from anyio.streams.tls import TLSStream

from tsnetpy.base.entropy import Entropy
from tsnetpy.base.instant import SECOND
from tsnetpy.derp.server import WRITE_TIMEOUT, DerpServer, ServerConnection
from tsnetpy.runtime import clock
from tsnetpy.runtime.queues import Kick
from tsnetpy.runtime.watch import Watch

from .web import Switch, WebRequest, WebResponse, guard, serve_web

_log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 4096
HANDSHAKE_TIMEOUT_S: Final = 10.0
_READ_BYTES: Final = 64 * 1024
_FEED_BYTES: Final = 1024, 16 * 1024
_FEED_PACKETS: Final = 16
_WRITER_TURNS: Final = 8
"""How much goes into the engine at a time (least and most bytes, and the packets to aim at), and how many turns of the
event loop its writers then get to catch up.

The engine's queues hold 32 packets per client, as other servers' do; a whole read of small packets would overrun them
though the receiver reads fast enough. A receiver that does not read costs its senders no more than these turns."""

_PROBES: Final = frozenset(("/derp/probe", "/derp/latency-check"))
_CHALLENGE: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:-")


def server_context(cert_pem: str, key_pem: str) -> ssl.SSLContext:
    """Return a TLS server context for a certificate and key that are in memory."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # OpenSSL's binding reads files only. The directory is private, and gone again right away.
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "server.pem"
        path.touch(mode=0o600)
        path.write_text(f"{cert_pem}\n{key_pem}\n")
        context.load_cert_chain(path)
    return context


class _Writer:
    """What wakes the task that writes to one client."""

    __slots__ = ("busy", "kick")

    def __init__(self) -> None:
        self.kick = Kick()
        self.busy = False
        """Woken, and not done with writing yet."""


class DerpRelay:
    """Serves one DERP region of one server.

    Args:
        private: the server's key (32 raw bytes).
        entropy: for nonces.
        context: TLS certificate and key.
        admitted: node keys (raw) that may connect.
        changed: grows when *admitted* may have changed; clients that lost their place are then disconnected.
    """

    def __init__(
        self,
        private: bytes,
        entropy: Entropy,
        context: ssl.SSLContext,
        admitted: Container[bytes],
        changed: Watch[int],
    ) -> None:
        self.engine = DerpServer(private, entropy, admitted)
        self._context = context
        self._admitted = admitted
        self._changed = changed
        self._open: set[ServerConnection] = set()
        self._connections = 0

    async def run(
        self, listener: anyio.abc.Listener[SocketStream], *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve connections of *listener* until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._evict)
            task_status.started()
            await listener.serve(self._accept)

    async def _evict(self) -> None:
        async for _ in self._changed.changes():
            for connection in [*self._open]:
                if connection.node_key and connection.node_key not in self._admitted:
                    connection.close("this key is not admitted any more")
            self._wake_ready()

    async def _accept(self, stream: SocketStream) -> None:
        if self._connections >= MAX_CONNECTIONS:
            _log.warning("DERP: too many connections, one refused")
            await stream.aclose()
            return
        self._connections += 1
        try:
            await guard(stream, self._serve_tls, "DERP")
        finally:
            self._connections -= 1

    async def _serve_tls(self, stream: SocketStream) -> None:
        with anyio.fail_after(HANDSHAKE_TIMEOUT_S):
            # Clients end without close_notify; DERP frames its own messages, so nothing can be cut off unseen.
            tls = await TLSStream.wrap(stream, server_side=True, ssl_context=self._context, standard_compatible=False)
        await serve_web(tls, self._handle_web)

    async def _handle_web(self, request: WebRequest) -> WebResponse | Switch:
        if request.path == "/derp":
            if request.header("upgrade").lower() != "derp":
                return WebResponse(426, b"DERP requires a connection upgrade\n", headers=(("Upgrade", "DERP"),))
            headers = (
                ("Upgrade", "DERP"),
                ("Connection", "Upgrade"),
                ("Derp-Version", "2"),
                ("Derp-Public-Key", self.engine.public.hex()),
            )
            return Switch(headers, self._serve_derp, silent=request.header("derp-fast-start") == "1")
        if request.method not in ("GET", "HEAD"):
            return WebResponse(405)
        if request.path in _PROBES:
            return WebResponse(200, headers=(("Access-Control-Allow-Origin", "*"),))
        if request.path == "/generate_204":
            return generate_204(request)
        return WebResponse(404, b"404 page not found\n")

    async def _serve_derp(self, stream: ByteStream, leftover: bytes) -> None:
        connection = self.engine.accept(clock.monotonic_ns())
        writer = _Writer()
        connection.owner = writer
        self._open.add(connection)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(self._write, connection, writer, stream, tasks.cancel_scope))
                await self._read(connection, stream, leftover)
                tasks.cancel_scope.cancel()
        finally:
            self._open.discard(connection)
            connection.close()
            self._wake_ready()

    async def _read(self, connection: ServerConnection, stream: ByteStream, data: bytes) -> None:
        least, most = _FEED_BYTES
        size = least
        while True:
            view = memoryview(data)
            while view:
                piece, view = view[:size], view[size:]
                routed = -self.engine.packets_routed
                connection.receive_data(piece, clock.monotonic_ns())
                routed += self.engine.packets_routed
                # The next packets will be about as long as these.
                size = min(most, max(least, len(piece) * _FEED_PACKETS // routed)) if routed else least
                await self._let_write(self._wake_ready())
            if connection.closed_reason:
                _log.info("DERP: closing a connection: %s", connection.closed_reason)
                return
            try:
                data = await stream.receive(_READ_BYTES)
            except anyio.EndOfStream:
                return

    async def _write(
        self, connection: ServerConnection, writer: _Writer, stream: ByteStream, scope: anyio.CancelScope
    ) -> None:
        while True:
            data = connection.data_to_send()
            if data:
                with anyio.move_on_after(WRITE_TIMEOUT / SECOND) as timed:
                    await stream.send(data)
                if timed.cancelled_caught:
                    connection.close("the client does not read")
            if connection.closed_reason:
                scope.cancel()
                return
            writer.busy = False
            deadline = connection.next_deadline()
            with anyio.move_on_at(float("inf") if deadline is None else deadline / SECOND):
                await writer.kick.wait()
            connection.handle_deadline(clock.monotonic_ns())

    async def _let_write(self, woken: list[_Writer]) -> None:
        for _ in range(_WRITER_TURNS if woken else 0):
            await anyio.lowlevel.checkpoint()
            if not any(writer.busy for writer in woken):
                return

    def _wake_ready(self) -> list[_Writer]:
        """Wake the writers of the connections that have something to write; return them."""
        woken: list[_Writer] = []
        for connection in self.engine.take_ready():
            writer = connection.owner
            if isinstance(writer, _Writer):
                writer.busy = True
                writer.kick.kick()
                woken.append(writer)
        return woken


def generate_204(request: WebRequest) -> WebResponse:
    """Answer a captive portal check: 204, and the challenge back if there is one."""
    challenge = request.header("x-tailscale-challenge")
    if 0 < len(challenge) <= 64 and _CHALLENGE.issuperset(challenge):
        return WebResponse(204, headers=(("X-Tailscale-Response", f"response {challenge}"),))
    return WebResponse(204)
