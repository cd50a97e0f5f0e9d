"""The DERP connections: the home region's always, others on demand and closed when idle (reference, section 3.3)."""

import logging
import ssl
from collections.abc import Iterable, Sequence
from typing import Final, Protocol, final

import anyio
from anyio.abc import ByteStream, TaskGroup

from tsnetpy.base.entropy import Entropy
from tsnetpy.base.instant import SECOND, Instant
from tsnetpy.base.packet import Buffer, TxBatch
from tsnetpy.base.ring import Ring
from tsnetpy.base.stats import Drops
from tsnetpy.derp.client import Closed, DerpClient, Event, PeerGone, Ready
from tsnetpy.derp.frames import MAX_PACKET
from tsnetpy.derp.regions import DerpMap, DerpRegion
from tsnetpy.runtime.clock import monotonic_ns, sleep_until
from tsnetpy.runtime.queues import Kick
from tsnetpy.runtime.supervise import Backoff

from .dial import dial_region

IDLE_TIMEOUT: Final = 60 * SECOND
IDLE_CHECK: Final = 15 * SECOND
QUEUE_BATCHES: Final = 32
WRITE_TIMEOUT_S: Final = 10.0
MAX_CONNECTIONS: Final = 32

_log = logging.getLogger(__name__)
_STREAM_ENDS: Final = (
    OSError,
    ssl.SSLError,
    TimeoutError,
    anyio.EndOfStream,
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
)


class DerpSink(Protocol):
    """Where the pool delivers; one object of this package, not a public callback."""

    def derp_packets(self, region: int, packets: Sequence[tuple[bytes, bytes]], now: Instant) -> None:
        """Take packets: source node key and datagram, in order."""
        ...

    def derp_peer_gone(self, region: int, event: PeerGone) -> None:
        """Take the news that a peer is not on *region*."""
        ...

    def derp_up(self, region: int) -> None:
        """Learn that *region* took us in."""
        ...

    def derp_down(self, region: int, lost: bool) -> None:
        """Learn that the connection to *region* ended (*lost*), or that none could be made."""
        ...


@final
class _Connection:
    """The lasting record of one region; streams come and go under it."""

    __slots__ = ("engine", "failures", "home", "kick", "last_write", "queue", "region", "scope", "wanted")

    def __init__(self, region: int, now: Instant) -> None:
        self.region = region
        self.queue: Ring[tuple[bytes, list[memoryview]]] = Ring(QUEUE_BATCHES)
        self.kick = Kick()
        self.engine: DerpClient | None = None
        self.scope: anyio.CancelScope | None = None
        self.last_write = now
        self.home = False
        self.wanted = True
        self.failures = ""


@final
class DerpPool:
    """All DERP connections of a node."""

    def __init__(self, entropy: Entropy, sink: DerpSink) -> None:
        self.drops = Drops()
        self._entropy = entropy
        self._sink = sink
        self._private = b""
        self._map = DerpMap()
        self._home = 0
        self._connections: dict[int, _Connection] = {}
        self._tasks: TaskGroup | None = None

    def configure(self, node_private: bytes, derp_map: DerpMap) -> None:
        """Adopt the node key and the map; connections whose region changed or vanished start over."""
        key_changed = node_private != self._private
        before, self._map, self._private = self._map, derp_map, node_private
        for connection in list(self._connections.values()):
            region = derp_map.regions.get(connection.region)
            if region is None:
                self._drop(connection)
            elif key_changed or region != before.regions.get(connection.region):
                self._restart(connection)
        self._ensure_home()

    @property
    def home(self) -> int:
        """The home region, 0 for none."""
        return self._home

    def set_home(self, region: int) -> None:
        """Make *region* the home: connect to it, keep that connection, tell all servers."""
        if region == self._home:
            self._ensure_home()
            return
        self._home = region
        for connection in self._connections.values():
            connection.home = connection.region == region
            if connection.engine is not None:
                connection.engine.note_preferred(connection.home)
                connection.kick.kick()
        self._ensure_home()

    def regions_up(self) -> Iterable[int]:
        """Return the regions that took us in."""
        return [c.region for c in self._connections.values() if c.engine is not None and c.engine.is_ready]

    def last_received(self, region: int) -> Instant | None:
        """Return when a frame last came from *region*, ``None`` if it is not connected."""
        connection = self._connections.get(region)
        if connection is None or connection.engine is None or not connection.engine.is_ready:
            return None
        return connection.engine.last_received

    def failure(self, region: int) -> str:
        """Return why the last attempt to reach *region* failed, in words; ``""`` if it did not."""
        connection = self._connections.get(region)
        return connection.failures if connection is not None else ""

    def send(self, region: int, dst: bytes, batch: TxBatch, now: Instant) -> None:
        """Queue a batch for *dst* through *region*, connecting first if need be. Drops are counted."""
        if batch.segment_size > MAX_PACKET:
            self.drops.add("oversized")
            return
        connection = self._connections.get(region)
        if connection is None:
            connection = self._open(region, now)
            if connection is None:
                self.drops.add("no_region")
                return
        connection.last_write = now
        if connection.queue.push((dst, batch.datagrams())) is not None:
            self.drops.add("queue_full")
        connection.kick.kick()

    def send_datagram(self, region: int, dst: bytes, data: bytes, now: Instant) -> None:
        """Queue one datagram."""
        self.send(region, dst, TxBatch(data, len(data)), now)

    def reconnect_all(self) -> None:
        """Start every connection over: the network below changed."""
        for connection in list(self._connections.values()):
            self._restart(connection)

    async def run(self) -> None:
        """Keep the connections until cancelled."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                for connection in self._connections.values():
                    tasks.start_soon(self._keep, connection, name=f"derp-{connection.region}")
                self._ensure_home()
                await anyio.sleep_forever()
            finally:
                self._tasks = None

    # -- records ------------------------------------------------------------------------------------------------

    def _ensure_home(self) -> None:
        if self._home and self._home not in self._connections and self._tasks is not None:
            self._open(self._home, monotonic_ns())

    def _open(self, region: int, now: Instant) -> _Connection | None:
        info = self._map.regions.get(region)
        if info is None or not info.derp_nodes() or len(self._connections) >= MAX_CONNECTIONS:
            return None
        connection = _Connection(region, now)
        connection.home = region == self._home
        self._connections[region] = connection
        if self._tasks is not None:
            self._tasks.start_soon(self._keep, connection, name=f"derp-{region}")
        return connection

    def _drop(self, connection: _Connection) -> None:
        connection.wanted = False
        self._connections.pop(connection.region, None)
        self._restart(connection)

    def _restart(self, connection: _Connection) -> None:
        if connection.scope is not None:
            connection.scope.cancel()

    # -- one region ---------------------------------------------------------------------------------------------

    async def _keep(self, connection: _Connection) -> None:
        """Connect, and connect again, while the region is home or has work to do."""
        backoff = Backoff(SECOND // 10, 5 * SECOND, 3.0, self._entropy)
        while connection.wanted and self._connections.get(connection.region) is connection:
            region = self._map.regions.get(connection.region)
            if region is None:
                break
            with anyio.CancelScope() as scope:
                connection.scope = scope
                try:
                    if await self._session(connection, region):
                        backoff.reset()
                except _STREAM_ENDS as error:
                    connection.failures = str(error) or type(error).__name__
                    _log.debug("DERP region %d: %s", connection.region, connection.failures)
            connection.scope = None
            lost = connection.engine is not None
            connection.engine = None
            self._sink.derp_down(connection.region, lost)
            if not connection.home and monotonic_ns() - connection.last_write >= IDLE_TIMEOUT:
                break
            if connection.wanted:
                await anyio.sleep(backoff.next_pause() / SECOND)
        if self._connections.get(connection.region) is connection:
            del self._connections[connection.region]

    async def _session(self, connection: _Connection, region: DerpRegion) -> bool:
        """Serve one stream to its end; return whether the server had taken us in."""
        stream, node = await dial_region(region)
        try:
            engine = DerpClient(self._private, node.host_name, self._entropy, monotonic_ns())
            connection.engine = engine
            await stream.send(engine.data_to_send())
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch, connection, engine, tasks.cancel_scope)
                tasks.start_soon(self._write, connection, engine, stream, tasks.cancel_scope)
                await self._read(connection, engine, stream)
                tasks.cancel_scope.cancel()
            return bool(engine.server_key)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.aclose_forcefully(stream)

    async def _read(self, connection: _Connection, engine: DerpClient, stream: ByteStream) -> None:
        while not engine.is_closed:
            try:
                data: Buffer = await stream.receive(1 << 16)
            except _STREAM_ENDS:
                engine.receive_eof()
                data = b""
            now = monotonic_ns()
            if data:
                engine.receive_data(data, now)
            packets = engine.take_packets()
            if packets:
                self._sink.derp_packets(connection.region, packets, now)
            self._take_events(connection, engine)

    def _take_events(self, connection: _Connection, engine: DerpClient) -> None:
        event: Event | None
        while (event := engine.next_event()) is not None:
            if isinstance(event, Ready):
                connection.failures = ""
                engine.note_preferred(connection.home)
                self._sink.derp_up(connection.region)
            elif isinstance(event, PeerGone):
                self._sink.derp_peer_gone(connection.region, event)
            elif isinstance(event, Closed):
                connection.failures = event.reason
                _log.debug("DERP region %d closed: %s", connection.region, event.reason)
        connection.kick.kick()  # whatever came may have to be answered

    async def _write(
        self, connection: _Connection, engine: DerpClient, stream: ByteStream, scope: anyio.CancelScope
    ) -> None:
        try:
            while not engine.is_closed:
                if engine.is_ready:
                    while (item := connection.queue.pop()) is not None:
                        engine.send_packets(*item)
                data = engine.data_to_send()
                if not data:
                    await connection.kick.wait()
                    continue
                with anyio.fail_after(WRITE_TIMEOUT_S):
                    await stream.send(data)
        except _STREAM_ENDS:
            scope.cancel()

    async def _watch(self, connection: _Connection, engine: DerpClient, scope: anyio.CancelScope) -> None:
        """Notice a silent server and an idle connection."""
        while True:
            now = monotonic_ns()
            engine.handle_deadline(now)
            deadline = engine.next_deadline()
            idle = not connection.home and now - connection.last_write >= IDLE_TIMEOUT
            if deadline is None or idle:
                self._take_events(connection, engine)
                scope.cancel()
                return
            await sleep_until(min(deadline, now + IDLE_CHECK))
