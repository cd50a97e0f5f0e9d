"""An internet in memory: each node gets an :class:`MemoryUnderlay`, links between them delay, lose and reorder.

Delivery is by the event loop's clock, so on virtual time (:mod:`tsnetpy.testing.clock`) a simulated hour takes
milliseconds, and with the same seed the same datagrams are lost at each run.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import anyio
from anyio.abc import TaskStatus

from tsnetpy.base.addr import Endpoint, IpBytes
from tsnetpy.base.instant import MILLISECOND, SECOND, Duration, Instant
from tsnetpy.base.packet import Buffer, PeerId, TxBatch
from tsnetpy.base.stats import Drops
from tsnetpy.crypto import dh
from tsnetpy.runtime.clock import monotonic_ns
from tsnetpy.runtime.underlay import (
    Deliver,
    PathId,
    PathStatus,
    PingResult,
    UnderlayConfig,
    UnderlayEndpoint,
    UnderlayState,
)
from tsnetpy.runtime.watch import Watch

from .entropy import SeededEntropy

_QUEUE: Final = 8192
"""Datagrams on their way to one node; more are dropped, as a full router queue drops them."""
_BATCH: Final = 64
_PORT: Final = 41641


@dataclass(slots=True)
class Link:
    """What happens to datagrams from one node to another (one direction)."""

    delay: Duration = 0
    """Nanoseconds on the way."""
    jitter: Duration = 0
    """Up to that much more, at random; with a batch in flight it reorders."""
    loss: float = 0.0
    """Probability that a datagram vanishes."""
    reorder: float = 0.0
    """Probability that a datagram takes one more delay (at least 1 ms), and so arrives after its successors."""
    duplicate: float = 0.0
    """Probability that a datagram arrives twice."""
    rate: int = 0
    """Bits per second, 0: no limit."""
    mtu: int = 1500
    """Larger IP packets vanish (a black hole: there is no ICMP on this internet)."""
    up: bool = True
    """False: everything vanishes."""


@final
class Internet:
    """Connects the underlays that :meth:`underlay` makes.

    Args:
        seed: drives losses and jitter.
        default: the link between two nodes for which :meth:`link` set none.

    Attributes:
        drops: datagrams lost, by reason.
    """

    def __init__(self, seed: int = 1, default: Link | None = None) -> None:
        self._entropy = SeededEntropy(seed)
        self._default = default if default is not None else Link()
        self._links: dict[tuple[MemoryUnderlay, MemoryUnderlay], Link] = {}
        self._by_key: dict[PeerId, MemoryUnderlay] = {}
        self._busy_until: dict[tuple[MemoryUnderlay, MemoryUnderlay], Instant] = {}
        self._count = 0
        self.drops = Drops()

    def underlay(self) -> "MemoryUnderlay":
        """Return a new attachment point, with an address of its own in 192.0.2.0/24 and on."""
        self._count += 1
        ip = (0xC0000200 + self._count).to_bytes(4, "big")
        return MemoryUnderlay(self, ip, self._entropy.bytes(32))

    def link(self, a: "MemoryUnderlay", b: "MemoryUnderlay", link: Link, *, both_ways: bool = True) -> None:
        """Set the link from *a* to *b* (and back, unless told otherwise)."""
        self._links[a, b] = link
        if both_ways:
            self._links[b, a] = link

    def link_between(self, a: "MemoryUnderlay", b: "MemoryUnderlay") -> Link:
        """Return the link from *a* to *b*."""
        return self._links.get((a, b), self._default)

    def register(self, key: PeerId, underlay: "MemoryUnderlay") -> None:
        """Make *underlay* the place where datagrams for *key* go."""
        self._by_key[key] = underlay

    def find(self, key: PeerId) -> "MemoryUnderlay | None":
        """Return where *key* is attached."""
        return self._by_key.get(key)

    def find_path(self, path: PathId) -> "MemoryUnderlay | None":
        """Return whose address *path* is."""
        return next((underlay for underlay in self._by_key.values() if underlay.path == path), None)

    def carry(self, sender: "MemoryUnderlay", peer: PeerId, batch: TxBatch) -> None:
        """Put *batch* on the way to *peer*."""
        receiver = self._by_key.get(peer)
        if receiver is None:
            self.drops.add("no_such_peer", batch.count)
        else:
            self.carry_to(sender, receiver, batch)

    def carry_to(self, sender: "MemoryUnderlay", receiver: "MemoryUnderlay", batch: TxBatch) -> None:
        """Put *batch* on the way to *receiver*."""
        link = self.link_between(sender, receiver)
        if not link.up:
            self.drops.add("link_down", batch.count)
            return
        now = monotonic_ns()
        if not (link.delay or link.jitter or link.loss or link.reorder or link.duplicate or link.rate):
            if batch.segment_size + 28 > link.mtu:
                self.drops.add("too_big", batch.count)
                return
            receiver.enqueue(now, sender.path, batch.datagrams())
            return
        for datagram in batch.datagrams():
            self._carry_one(sender, receiver, link, datagram, now)

    def _carry_one(
        self, sender: "MemoryUnderlay", receiver: "MemoryUnderlay", link: Link, datagram: Buffer, now: Instant
    ) -> None:
        if len(datagram) + 28 > link.mtu:
            self.drops.add("too_big")
            return
        if self._entropy.chance(link.loss):
            self.drops.add("loss")
            return
        due = now
        if link.rate:
            way = (sender, receiver)
            due = max(now, self._busy_until.get(way, now)) + (len(datagram) + 28) * 8 * SECOND // link.rate
            self._busy_until[way] = due
        due += link.delay
        if link.jitter:
            due += link.jitter * self._entropy.u32() >> 32
        if self._entropy.chance(link.reorder):
            due += max(link.delay, MILLISECOND)
        receiver.enqueue(due, sender.path, [datagram])
        if self._entropy.chance(link.duplicate):
            receiver.enqueue(due, sender.path, [datagram])


@final
class MemoryUnderlay:
    """One node's attachment to an :class:`Internet`; implements ``runtime.underlay.PathUnderlay``."""

    def __init__(self, internet: Internet, ip: IpBytes, disco_public: bytes) -> None:
        self._internet = internet
        self._ip = ip
        self._disco_public = disco_public
        self._state = Watch(UnderlayState(endpoints=(UnderlayEndpoint(ip, _PORT, 1),)))
        self._queue: list[tuple[Instant, int, PathId, Buffer]] = []
        self._sequence = 0
        self._wake: anyio.Event | None = None
        self._armed: Instant = 0
        self._private = b""
        self._peers: frozenset[PeerId] = frozenset()
        self._rx: dict[PathId, int] = {}
        self._tx: dict[PeerId, int] = {}
        self.drops = Drops()
        self.path: PathId = ("udp", ip, _PORT)

    @property
    def state(self) -> Watch[UnderlayState]:
        """Our endpoints, home region and network report."""
        return self._state

    @property
    def disco_public(self) -> bytes:
        """A disco key; nobody speaks disco on this internet."""
        return self._disco_public

    def configure(self, config: UnderlayConfig) -> None:
        """Adopt *config*."""
        self._peers = frozenset(peer.node_key for peer in config.peers)
        if config.node_private != self._private:
            self._private = config.node_private
            self._internet.register(dh.public_key(config.node_private), self)

    def send(self, peer: PeerId, batch: TxBatch) -> None:
        """Send to *peer* over the link to it."""
        if peer not in self._peers:
            self.drops.add("unknown_peer", batch.count)
            return
        self._tx[peer] = self._tx.get(peer, 0) + len(batch.data)
        self._internet.carry(self, peer, batch)

    def reply(self, path: PathId, datagram: bytes) -> None:
        """Send one datagram back to where another came from."""
        other = self._internet.find_path(path)
        if other is None:
            self.drops.add("unknown_path")
        else:
            self._internet.carry_to(self, other, TxBatch(datagram, len(datagram)))

    def drop_counts(self) -> dict[str, int]:
        """Return how many datagrams were lost here, by reason."""
        return self.drops.snapshot()

    def enqueue(self, due: Instant, path: PathId, datagrams: Sequence[Buffer]) -> None:
        """Take datagrams from the wire, to be delivered at *due*."""
        for datagram in datagrams:
            if len(self._queue) >= _QUEUE:
                self.drops.add("queue_full")
                return
            self._sequence += 1
            heapq.heappush(self._queue, (due, self._sequence, path, datagram))
        if self._wake is not None and due < self._armed:
            self._wake.set()

    async def run(self, deliver: Deliver, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Deliver what arrives, until cancelled."""
        task_status.started()
        while True:
            now = monotonic_ns()
            batch: list[Buffer] = []
            path: PathId | None = None
            # Half a nanosecond is lost in the float clock; a microsecond of grace keeps this from spinning.
            while self._queue and self._queue[0][0] <= now + 1000 and len(batch) < _BATCH:
                if path is not None and self._queue[0][2] != path:
                    break
                _, _, path, datagram = heapq.heappop(self._queue)
                batch.append(datagram)
            if path is not None:
                self._rx[path] = self._rx.get(path, 0) + sum(map(len, batch))
                deliver(batch, path, now)
                await anyio.lowlevel.checkpoint()
                continue
            self._wake = anyio.Event()
            if self._queue:
                self._armed = self._queue[0][0]
                with anyio.move_on_after((self._armed - now) / SECOND):
                    await self._wake.wait()
            else:
                self._armed = 1 << 62
                await self._wake.wait()
            self._wake = None

    async def ping(self, peer: PeerId, timeout_s: float) -> PingResult | None:
        """Return the round trip that the links say, after having waited for it."""
        other = self._internet.find(peer)
        if other is None:
            await anyio.sleep(timeout_s)
            return None
        there, back = self._internet.link_between(self, other), self._internet.link_between(other, self)
        latency = there.delay + back.delay
        if not (there.up and back.up) or latency > timeout_s * SECOND:
            await anyio.sleep(timeout_s)
            return None
        await anyio.sleep(latency / SECOND)
        return PingResult(latency, "direct", Endpoint(other._ip, _PORT), 0)

    def peer_status(self, peer: PeerId) -> PathStatus | None:
        """Return how *peer* is reached."""
        if peer not in self._peers:
            return None
        other = self._internet.find(peer)
        return PathStatus(
            cur_addr=Endpoint(other._ip, _PORT) if other is not None else None,
            relay=0,
            rx_bytes=self._rx.get(other.path, 0) if other is not None else 0,
            tx_bytes=self._tx.get(peer, 0),
            last_rx=None,
            latency_ns=self._internet.link_between(self, other).delay * 2 if other is not None else None,
            active=peer in self._tx,
        )
