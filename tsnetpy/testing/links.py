"""One direction of a link: rate, delay, jitter, loss, duplication, reordering, corruption, a queue with an end, an MTU.

Every draw comes from one seeded generator per wire, so the same seed gives the same misfortunes.
"""

from dataclasses import dataclass
from random import Random
from typing import final

from tsnetpy.base.instant import MILLISECOND, SECOND, Duration, Instant
from tsnetpy.base.packet import Buffer
from tsnetpy.base.stats import Drops


@dataclass(slots=True, frozen=True, kw_only=True)
class LinkConfig:
    """How a link treats packets. The default is a perfect wire."""

    rate: int = 0
    """Bits per second; 0 for no limit."""
    delay: Duration = 0
    """Nanoseconds from the end of the transmission to arrival."""
    jitter: Duration = 0
    """Up to that much more, evenly drawn per packet; it reorders where it exceeds the gap between packets."""
    keep_order: bool = False
    """With jitter: no packet overtakes another."""
    loss: float = 0.0
    """Probability that a packet vanishes."""
    duplicate: float = 0.0
    """Probability that a packet arrives twice."""
    reorder: float = 0.0
    """Probability that a packet takes :attr:`reorder_delay` longer."""
    reorder_delay: Duration = MILLISECOND
    corrupt: float = 0.0
    """Probability that one bit of a packet flips."""
    queue: int = 0
    """Bytes that may wait for the transmitter (needs :attr:`rate`); 0 for no end."""
    mtu: int = 0
    """Longer packets vanish (a black hole: nobody says so); 0 for no limit."""
    up: bool = True
    """False: everything vanishes."""


@final
class Wire:
    """One direction, with its queue.

    Attributes:
        config: may be replaced at any time; packets on the way are not affected.
        drops: lost packets by reason: "down", "mtu", "queue", "loss".
        packets, octets: that went in and were not dropped.
        corrupted, duplicated, reordered: how often each happened.
    """

    __slots__ = (
        "_busy_until",
        "_last_arrival",
        "_random",
        "config",
        "corrupted",
        "drops",
        "duplicated",
        "octets",
        "packets",
        "reordered",
    )

    def __init__(self, config: LinkConfig, seed: int) -> None:
        self.config = config
        self.drops = Drops()
        self.packets = 0
        self.octets = 0
        self.corrupted = 0
        self.duplicated = 0
        self.reordered = 0
        self._busy_until: Instant = 0
        self._last_arrival: Instant = 0
        self._random = Random(seed)

    def offer(self, packet: Buffer, now: Instant, overhead: int = 0) -> list[tuple[Instant, Buffer]]:
        """Put *packet* on the wire; return what arrives, and when.

        Args:
            packet: the bytes.
            now: when it is offered.
            overhead: bytes of outer headers that count for rate, queue and MTU.
        """
        config = self.config
        size = len(packet) + overhead
        if not config.up:
            self.drops.add("down")
            return []
        if config.mtu and size > config.mtu:
            self.drops.add("mtu")
            return []
        leaves = now
        if config.rate:
            start = max(now, self._busy_until)
            if config.queue and (start - now) * config.rate // (8 * SECOND) + size > config.queue:
                self.drops.add("queue")
                return []
            leaves = start + size * 8 * SECOND // config.rate
            self._busy_until = leaves
        draw = self._random.random
        if config.loss and draw() < config.loss:
            self.drops.add("loss")
            return []
        self.packets += 1
        self.octets += size
        arrives = leaves + config.delay
        if config.jitter:
            arrives += self._random.randrange(config.jitter + 1)
            if config.keep_order:
                arrives = max(arrives, self._last_arrival)
                self._last_arrival = arrives
        if config.reorder and draw() < config.reorder:
            arrives += config.reorder_delay
            self.reordered += 1
        if config.corrupt and draw() < config.corrupt and len(packet):
            damaged = bytearray(packet)
            damaged[self._random.randrange(len(damaged))] ^= 1 << self._random.randrange(8)
            packet = bytes(damaged)
            self.corrupted += 1
        if config.duplicate and draw() < config.duplicate:
            self.duplicated += 1
            return [(arrives, packet), (arrives, packet)]
        return [(arrives, packet)]
