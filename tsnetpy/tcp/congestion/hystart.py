"""HyStart++: leave slow start when the round trip grows, before the queue overflows (RFC 9406).

The RFC looks at the first eight samples of a round. With pacing at twice the window per round trip those are the
packets that see no queue yet: it builds behind them, and by the time the next round tells, a window that doubled again
has overflowed it. So every eighth of a round trip is looked at by itself (a *span*), against the least of this round
and the one before. Only the least sample of a span counts, and a span lasts as long as the rise that is looked for, so
that a late event loop, which delivers many ACKs at one instant, or one delayed ACK, is no evidence of a queue.
"""

from typing import Final, final

from tsnetpy.base.instant import MILLISECOND, Duration, Instant

_LEAST_RISE: Final = 4 * MILLISECOND
_MOST_RISE: Final = 16 * MILLISECOND
_SAMPLES: Final = 8
_PURE_ROUND: Final = 2
"""From that round of conservative slow start on all that is acknowledged was sent in it."""
_LAST_ROUND: Final = 3
"""The RFC has five rounds, for it looks once a round whether the rise is still there. Here a whole round of spans must
agree, and each round more is another part of the window on top of a queue that stands already."""
_NEVER_SEEN: Final = 1 << 62

GROWTH_DIVISOR: Final = 8
"""Conservative slow start grows that many times slower (4 in the RFC, whose windows have not doubled since)."""


@final
class HyStart:
    """What the rounds of slow start showed.

    Attributes:
        conservative: the round trip rose, and it is being checked whether it stays so (CSS).
    """

    __slots__ = ("_baseline", "_current", "_last", "_rounds", "_samples", "_span", "_span_start", "conservative")

    def __init__(self) -> None:
        self.conservative = False
        self._current: Duration = _NEVER_SEEN
        self._last: Duration = _NEVER_SEEN
        self._baseline: Duration = _NEVER_SEEN
        self._span: Duration = _NEVER_SEEN
        self._span_start: Instant = 0
        self._samples = 0
        self._rounds = 0

    def on_ack(self, rtt: Duration, new_round: bool, now: Instant) -> bool:
        """Take one ACK's round trip (0 for none) in; return True when slow start is over."""
        if new_round:
            if self.conservative:
                self._rounds += 1
                if self._rounds >= _LAST_ROUND:
                    return True
            self._last = self._current
            self._current = _NEVER_SEEN
        if rtt <= 0:
            return False
        if rtt < self._current:
            self._current = rtt
        if self._samples == 0:
            self._span = rtt
            self._span_start = now
        elif rtt < self._span:
            self._span = rtt
        self._samples += 1
        if self._samples < _SAMPLES:
            return False
        known = min(self._last, self._current)
        rise = min(max(known >> 3, _LEAST_RISE), _MOST_RISE)
        if now - self._span_start < rise:
            return False
        self._samples = 0
        if self.conservative:
            if self._rounds >= _PURE_ROUND and self._span < self._baseline:  # it was jitter, or the queue of one burst
                self.conservative = False
        elif self._span >= known + rise:
            self.conservative = True
            self._baseline = known + rise
            self._rounds = 0
        return False
