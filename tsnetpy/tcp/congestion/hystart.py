"""HyStart++: leave slow start when the round trip grows, before the queue overflows (RFC 9406).

Only minima over a round count, so that a late event loop or one delayed ACK is no evidence of a queue.
"""

from typing import Final, final

from tsnetpy.base.instant import MILLISECOND, Duration

_LEAST_RISE: Final = 4 * MILLISECOND
_MOST_RISE: Final = 16 * MILLISECOND
_SAMPLES: Final = 8
_CONSERVATIVE_ROUNDS: Final = 5
_NEVER_SEEN: Final = 1 << 62

GROWTH_DIVISOR: Final = 4
"""Conservative slow start grows that many times slower."""


@final
class HyStart:
    """What the rounds of slow start showed.

    Attributes:
        conservative: the round trip rose, and it is being checked whether it stays so (CSS).
    """

    __slots__ = ("_baseline", "_current", "_last", "_rounds", "_samples", "conservative")

    def __init__(self) -> None:
        self.conservative = False
        self._current: Duration = _NEVER_SEEN
        self._last: Duration = _NEVER_SEEN
        self._baseline: Duration = _NEVER_SEEN
        self._samples = 0
        self._rounds = 0

    def on_ack(self, rtt: Duration, new_round: bool) -> bool:
        """Take one ACK's round trip (0 for none) in; return True when slow start is over."""
        if new_round:
            if self.conservative:
                self._rounds += 1
                if self._rounds >= _CONSERVATIVE_ROUNDS:
                    return True
            self._last = self._current
            self._current = _NEVER_SEEN
            self._samples = 0
        if rtt <= 0:
            return False
        if rtt < self._current:
            self._current = rtt
        self._samples += 1
        if self._samples < _SAMPLES:
            return False
        if self.conservative:
            if self._current < self._baseline:  # it was jitter
                self.conservative = False
                self._baseline = _NEVER_SEEN
        elif self._last != _NEVER_SEEN:
            rise = min(max(self._last >> 3, _LEAST_RISE), _MOST_RISE)
            if self._current >= self._last + rise:
                self.conservative = True
                self._baseline = self._current
                self._rounds = 0
        return False
