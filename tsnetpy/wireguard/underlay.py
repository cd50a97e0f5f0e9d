"""The underlay of plain WireGuard: one UDP port, and for each peer the address where it was last heard.

Data goes to the source of the peer's last authentic message (roaming, WireGuard whitepaper section 6.5), which the data
plane tells by :class:`tsnetpy.wg.events.EndpointSeen`. A handshake that stays without an answer tries every address
that the configured endpoint has, in turn, and has its name looked up again: the peer may have got a new address, or one
of its families may be cut off.
"""

import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, final

import anyio
from anyio.abc import TaskGroup, TaskStatus

from tsnetpy.base.addr import Endpoint
from tsnetpy.base.instant import SECOND, Instant
from tsnetpy.base.packet import Buffer, PeerId, TxBatch
from tsnetpy.base.ring import Ring
from tsnetpy.base.stats import Drops
from tsnetpy.runtime.clock import monotonic_ns
from tsnetpy.runtime.flusher import Flusher
from tsnetpy.runtime.queues import Kick
from tsnetpy.runtime.supervise import Backoff
from tsnetpy.runtime.threads import run_blocking
from tsnetpy.runtime.udp import Received, UdpPort, UdpSocket
from tsnetpy.runtime.underlay import Deliver, UnderlayConfig
from tsnetpy.wg.messages import INITIATION, INITIATION_BYTES, TRANSPORT_MIN_BYTES

from .config import HostPort

MAX_CANDIDATES: Final = 8
"""Addresses of one name that are tried."""
HELD_BATCHES: Final = 4
"""Batches per peer that wait while its name is looked up for the first time."""
HELD_TIME: Final = 5 * SECOND
LINGER_SECONDS: Final = 1.0
"""How long a port that we moved away from is still read: what peers have sent to it is on its way."""
RETRY_FROM: Final = 2
"""Which initiation without an answer in between goes elsewhere, and has the name looked up again."""

_log = logging.getLogger(__name__)

Lookup = Callable[[HostPort], Awaitable[list[Endpoint]]]
"""Finds the addresses of an endpoint by name; raises ``OSError`` if there are none."""


async def lookup_host(where: HostPort) -> list[Endpoint]:
    """Ask the host's resolver (``getaddrinfo``), in a thread.

    Raises:
        OSError: no such name, or no answer.
    """
    found = await run_blocking(
        socket.getaddrinfo, where.host, where.port, socket.AF_UNSPEC, socket.SOCK_DGRAM, abandon=True
    )
    endpoints = [
        Endpoint(socket.inet_pton(family, str(address[0]).partition("%")[0]), where.port)
        for family, _, _, _, address in found
    ]
    return list(dict.fromkeys(endpoints))[:MAX_CANDIDATES]


@final
class _PeerPath:
    """Where one peer is, or may be."""

    __slots__ = ("candidates", "endpoint", "held", "initiations", "turn", "wanted", "where")

    def __init__(self, where: HostPort | None) -> None:
        self.where = where
        self.endpoint: Endpoint | None = None
        self.candidates: list[Endpoint] = []  # what the configured endpoint stands for
        self.initiations = 0  # sent since the last sign of life
        self.turn = 0
        self.held: Ring[tuple[TxBatch, Instant]] = Ring(HELD_BATCHES)
        self.wanted = Kick()  # the name is to be looked up

    @property
    def by_name(self) -> bool:
        return self.where is not None and self.where.ip is None

    def learn(self, found: list[Endpoint]) -> None:
        self.candidates = found
        if self.endpoint is None and found:
            self.endpoint = found[0]

    def handshake_target(self) -> Endpoint | None:
        """Return where the next initiation goes: the known endpoint first, then each candidate and it in turn."""
        self.initiations += 1
        if self.initiations < RETRY_FROM:
            return self.endpoint
        if self.by_name:
            self.wanted.kick()
        if self.endpoint is None:
            return None
        ways = self.candidates if self.endpoint in self.candidates else [*self.candidates, self.endpoint]
        self.turn += 1
        # The known endpoint was the first try, so the turn begins behind it.
        return ways[(ways.index(self.endpoint) + self.turn) % len(ways)]


@final
class _Binding:
    """A UDP port with the tasks that work on it."""

    __slots__ = ("flusher", "port", "scope")

    def __init__(self, port: UdpPort) -> None:
        self.flusher = Flusher()
        self.port = port
        self.scope = anyio.CancelScope()


@final
class WireGuardUnderlay:
    """Implements :class:`tsnetpy.runtime.underlay.Underlay` on sockets.

    Args:
        port: UDP port of the host, 0 for any.
        endpoints: where peers can be reached first; a peer without an entry has to call.
        lookup: finds the addresses of names.
        offload: use GSO and GRO if the kernel has them.

    Attributes:
        drops: lost datagrams by reason (see also :meth:`counters`).
        on_blocked: told when the kernel takes no more, and when it does again (:mod:`tsnetpy.runtime.flusher`).
    """

    def __init__(
        self,
        *,
        port: int = 0,
        endpoints: Mapping[PeerId, HostPort] | None = None,
        lookup: Lookup = lookup_host,
        offload: bool = True,
    ) -> None:
        self.drops = Drops()
        self._requested_port = port
        self._lookup = lookup
        self._offload = offload
        self._peers: dict[PeerId, _PeerPath] = {}
        self._endpoints = dict(endpoints or {})
        self._bound: _Binding | None = None
        self._tasks: TaskGroup | None = None
        self._deliver: Deliver | None = None
        self.on_blocked: Callable[[bool], None] | None = None

    # -- Underlay ----------------------------------------------------------------------------------------------------

    def configure(self, config: UnderlayConfig) -> None:
        """Adopt the peers of *config*; to be called before :meth:`run`."""
        for peer in config.peers:
            path = _PeerPath(self._endpoints.get(peer.node_key))
            ip = path.where.ip if path.where is not None else None
            literal = [Endpoint(ip, path.where.port)] if ip is not None and path.where is not None else []
            path.learn([*peer.endpoints, *literal])
            self._peers[peer.node_key] = path

    async def run(self, deliver: Deliver, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Carry datagrams until cancelled; started means that the port is open.

        Raises:
            OSError: the port is taken.
        """
        port = UdpPort.open(self._requested_port, offload=self._offload)
        self._deliver = deliver
        try:
            async with anyio.create_task_group() as group:
                self._tasks = group
                self._bind(port, group, deliver)
                task_status.started()
                for path in self._peers.values():
                    if path.by_name and path.where is not None:
                        group.start_soon(self._follow_name, path, path.where)
                await anyio.sleep_forever()
        finally:
            self._bound = self._tasks = None

    def send(self, peer: PeerId, batch: TxBatch) -> None:
        """Send a batch to *peer*, to where it was last heard; while its name is being looked up it waits (bounded)."""
        path = self._peers.get(peer)
        if path is None or self._bound is None:
            self.drops.add("no_peer" if path is None else "not_running", batch.count)
            return
        target = path.endpoint
        data = batch.data
        if len(data) == INITIATION_BYTES and data[0] == INITIATION:
            target = path.handshake_target()
        if target is not None:
            self._send(target, data, batch.segment_size)
        elif path.by_name:
            victim = path.held.push((batch, monotonic_ns()))
            if victim is not None:
                self.drops.add("held_overflow", victim[0].count)
        else:
            self.drops.add("no_endpoint", batch.count)

    # -- what the owner tells ----------------------------------------------------------------------------------------

    def note_endpoint(self, peer: PeerId, path: object) -> None:
        """Take note that an authentic message of *peer* came by *path* (``("udp", ip, port)``)."""
        state = self._peers.get(peer)
        endpoint = _endpoint_of(path)
        if state is not None and endpoint is not None:
            state.endpoint = endpoint
            self._release(state)

    def note_handshake(self, peer: PeerId) -> None:
        """Take note that a session with *peer* is up: it can be reached where it was last heard."""
        state = self._peers.get(peer)
        if state is not None:
            state.initiations = state.turn = 0

    def reply(self, path: object, datagram: Buffer) -> None:
        """Send *datagram* back by *path*, to whoever is there (cookie replies)."""
        endpoint = _endpoint_of(path)
        if endpoint is not None:
            self._send(endpoint, datagram, len(datagram))

    def peer_at(self, path: object) -> PeerId | None:
        """Return the peer that is known to be at *path*."""
        endpoint = _endpoint_of(path)
        if endpoint is None:
            return None
        return next((key for key, state in self._peers.items() if state.endpoint == endpoint), None)

    def endpoint_of(self, peer: PeerId) -> Endpoint | None:
        """Return where data for *peer* goes."""
        state = self._peers.get(peer)
        return None if state is None else state.endpoint

    def rebind(self) -> None:
        """Move to a new local port, as after a change of the host's network. Sessions stay: the peers roam along.

        Raises:
            OSError: no port is left; the old one stays in use.
        """
        if self._bound is not None and self._tasks is not None and self._deliver is not None:
            port = UdpPort.open(offload=self._offload)
            old = self._bound
            old.scope.deadline = anyio.current_time() + LINGER_SECONDS
            self._bind(port, self._tasks, self._deliver)
            old.flusher.release()

    @property
    def local_port(self) -> int:
        """The UDP port in use, 0 while not running."""
        return self._bound.port.sockets[0].port if self._bound is not None else 0

    def counters(self) -> dict[str, int]:
        """Return all drops: ours, and those of the present port."""
        found = self.drops.snapshot()
        for sock in self._bound.port.sockets if self._bound is not None else ():
            for reason, n in sock.drops.snapshot().items():
                found[reason] = found.get(reason, 0) + n
            if sock.pending_dropped:
                found["udp_queue_full"] = found.get("udp_queue_full", 0) + sock.pending_dropped
        return found

    # -- inside ------------------------------------------------------------------------------------------------------

    def _bind(self, port: UdpPort, group: TaskGroup, deliver: Deliver) -> None:
        self._bound = bound = _Binding(port)
        bound.flusher.on_blocked = self.on_blocked
        group.start_soon(self._serve, bound, deliver)

    async def _serve(self, bound: _Binding, deliver: Deliver) -> None:
        """Work on one port until cancelled, or until its time is over."""
        try:
            with bound.scope:
                async with anyio.create_task_group() as group:
                    for sock in bound.port.sockets:
                        group.start_soon(self._read, sock, deliver)
                    group.start_soon(bound.flusher.run, bound.port.sockets)
        finally:
            bound.port.close()

    def _send(self, to: Endpoint, data: Buffer, segment_size: int) -> None:
        bound = self._bound
        if bound is not None:
            bound.port.send(data, segment_size, to)  # a refusal of the host is counted in the socket's drops

    def _release(self, path: _PeerPath) -> None:
        """Send what has waited for a first address."""
        oldest = monotonic_ns() - HELD_TIME
        while path.endpoint is not None and (item := path.held.pop()) is not None:
            batch, since = item
            if since >= oldest:
                self._send(path.endpoint, batch.data, batch.segment_size)
            else:
                self.drops.add("held_too_long", batch.count)

    async def _follow_name(self, path: _PeerPath, where: HostPort) -> None:
        """Look the name up now, and again whenever handshakes stay without an answer."""
        pauses = Backoff(SECOND, 60 * SECOND)
        while True:
            try:
                path.learn(await self._lookup(where))
                pauses.reset()
                self._release(path)
            except OSError as error:
                _log.warning("cannot look up %s: %s", where.host, error)
                await anyio.sleep(pauses.next_pause() / SECOND)
                if path.endpoint is None:
                    continue
            await path.wanted.wait()

    async def _read(self, sock: UdpSocket, deliver: Deliver) -> None:
        def take() -> None:
            batches = sock.receive()
            if batches:
                self._receive(batches, deliver, monotonic_ns())

        await sock.run_reader(take)

    def _receive(self, batches: list[Received], deliver: Deliver, now: Instant) -> None:
        run: list[Buffer] = []
        source: Endpoint | None = None
        for data, size, sender in batches:
            if sender != source and run and source is not None:
                deliver(run, ("udp", source.ip, source.port), now)
                run = []
            source = sender
            if size < TRANSPORT_MIN_BYTES:
                self.drops.add("runt", -(-len(data) // size))
                continue
            run += [data[at : at + size] for at in range(0, len(data), size)]
        if run and source is not None:
            deliver(run, ("udp", source.ip, source.port), now)


def _endpoint_of(path: object) -> Endpoint | None:
    """Return the endpoint in ``("udp", ip, port)``."""
    if isinstance(path, tuple) and len(path) == 3 and path[0] == "udp":
        return Endpoint(path[1], path[2])
    return None
