"""Pacing: a window leaves over the round trip and not in one burst (RFC 9002 §7.7 has the idea in one paragraph).

A token bucket in the manner of Linux's fq: ten packets may always go at once, what is more waits for its turn. So small
windows are not paced at all, for there the acknowledgments space out enough, and a late second half of a window of four
packets would only make every recovery longer. Recovery is not paced either: there PRR admits what leaves, ACK by ACK.
"""

from typing import Final, final

from tsnetpy.base.instant import MILLISECOND, Duration, Instant

QUANTUM_PACKETS: Final = 10
"""What a bucket holds: the initial window, and fq's initial quantum."""
LEAST_RTT: Final = 3 * MILLISECOND
"""On a faster path a timer is coarser than what it would have to space out."""
_STEP: Final = 2 * MILLISECOND
"""Super-segments carry that much time's worth, so that a timer and not each packet costs a wake-up."""
_CREDIT: Final = 4 * MILLISECOND
"""A timer that fires late may be made up for that much."""
_SLOW_START_GAIN: Final = 10
"""In fifths: twice the window per round trip, for it is to double."""
_GAIN: Final = 6
"""In fifths: a fifth more than the window per round trip, so that pacing never is what limits a flow."""


@final
class Pacer:
    """When the next super-segment may leave, and how big it may be.

    Attributes:
        due: nothing leaves before.
    """

    __slots__ = ("_cycle", "_rate", "due")

    def __init__(self) -> None:
        self.due: Instant = 0
        self._rate = 1
        self._cycle: Duration = 1

    def step(self, cwnd: int, slow_start: bool, srtt: Duration, mss: int, now: Instant) -> int:
        """Return how many bytes a super-segment may have at most, a multiple of *mss*; 0 to wait until :attr:`due`."""
        if self.due > now:
            return 0
        rate = cwnd * (_SLOW_START_GAIN if slow_start else _GAIN)  # bytes in five round trips
        cycle = srtt * 5
        self._rate = rate
        self._cycle = cycle
        quantum = QUANTUM_PACKETS * mss
        credit = quantum * cycle // rate
        if credit < _CREDIT:
            credit = _CREDIT
        if self.due < now - credit:
            self.due = now - credit
        step = rate * _STEP // cycle
        return step - step % mss if step > quantum else quantum

    def sent(self, size: int) -> None:
        """*size* bytes left."""
        self.due += size * self._cycle // self._rate
