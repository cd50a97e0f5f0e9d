"""When handshakes come faster than they can be computed: the load estimate and the bucket per source.

Handshakes are answered where they arrive, so there is no queue whose length would tell the load. A leaky counter takes
its place: it grows by one per handshake message and drains at the rate that this code can surely compute.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, final

from tsnetpy.base.instant import SECOND, Duration, Instant

from .constants import UNDER_LOAD_AFTER_TIME

_QUEUE: Final = 128
"""Handshake messages "waiting" at which load begins, as in wireguard-go (1024 / 8)."""
_DRAIN_NS: Final = SECOND // 1000
"""One message a millisecond: a handshake takes about a quarter of that, so a flood gets a quarter of the processor."""

_PACKETS_PER_SECOND: Final = 20
_BURST: Final = 5
_COST: Final = SECOND // _PACKETS_PER_SECOND
_MAX_TOKENS: Final = _COST * _BURST
_MAX_SOURCES: Final = 8192


@final
class LoadMeter:
    """Decides whether MAC2 is demanded."""

    __slots__ = ("_backlog_until", "_loaded_until")

    def __init__(self) -> None:
        self._backlog_until: Instant = 0
        self._loaded_until: Instant = 0

    def note(self, now: Instant) -> bool:
        """Count one handshake message; tell whether the device is under load."""
        self._backlog_until = min(max(self._backlog_until, now) + _DRAIN_NS, now + 2 * _QUEUE * _DRAIN_NS)
        if self._backlog_until - now >= _QUEUE * _DRAIN_NS:
            self._loaded_until = now + UNDER_LOAD_AFTER_TIME
        return now < self._loaded_until


@final
class SourceLimiter:
    """A token bucket for each source: 20 handshake messages a second, 5 at once. Sources are forgotten oldest first."""

    __slots__ = ("_buckets",)

    def __init__(self) -> None:
        self._buckets: OrderedDict[Hashable, tuple[Duration, Instant]] = OrderedDict()

    def allow(self, source: Hashable, now: Instant) -> bool:
        """Take a token of *source*, if it has one."""
        tokens, since = self._buckets.pop(source, (_MAX_TOKENS, now))
        tokens = min(tokens + now - since, _MAX_TOKENS)
        allowed = tokens >= _COST
        self._buckets[source] = (tokens - _COST if allowed else tokens, now)
        if len(self._buckets) > _MAX_SOURCES:
            self._buckets.popitem(last=False)
        return allowed
