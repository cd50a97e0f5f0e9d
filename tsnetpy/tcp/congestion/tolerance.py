"""Rare losses: without a queue they are repaired and no more; at the end of slow start they cost the queue only.

A radio link or a bad cable loses packets whatever the sender does, and with the decrease of RFC 9438 a window then
stays at a few hundred packets at most, however much the path could carry. Here a loss is no congestion if three things
hold, each of them published experience: few packets are lost in one round trip, and few in the long run (2 %, as BBR
bears before it slows down: draft-ietf-ccwg-bbr §5.5.10); and the packet that told of the loss met no queue (as in TCP
Veno, Fu and Liew 2003). Then the window, and the curve by which it grows, stay as they are.

If there was a queue the loss is congestion, with one exception: in the first slow start the queue is our own, and the
window falls to what the path holds without it: the share that the least round trip is of the one just seen (TCP
Westwood, Mascolo et al. 2001), if that is more than CUBIC's seven tenths. A timeout is always congestion.

``docs/congestion.md`` has what was measured, shallow queues and plain neighbours included.
"""

from typing import Final, final

from tsnetpy.base.instant import MILLISECOND, Duration

_MEMORY: Final = 1024
"""Packets over which the rate of loss is taken; what is older fades by halves."""
_RATE: Final = 50
"""One packet in so many may be lost: 2 %."""
_FEW: Final = 2
"""So many packets may be lost in one recovery, however small the window."""
_ROUND_SHIFT: Final = 5
"""Of larger windows, a 32nd."""
_NO_QUEUE: Final = 15 / 16
"""From this share of the round trip on there was no queue."""
_SHORT: Final = 3 * MILLISECOND
"""On shorter paths recovery is quick, and the clock too coarse to see a queue."""


@final
class LossTolerance:
    """Judges the losses of one connection.

    It is asked only when something was lost: what arrived in between follows from the sequence numbers.
    """

    __slots__ = ("_arrived", "_at", "_budget", "_lost")

    def __init__(self, start: int) -> None:
        self._at = start
        self._arrived = 0  # packets of late
        self._lost = 0  # of these and with these
        self._budget = 0  # packets that may still be lost in the recovery under way

    def keeps(self, una: int, lost: int, flight: int, mss: int, rtt: Duration, min_rtt: Duration) -> float:
        """Tell what share of the window outlasts the loss with which a recovery begins: 1 all, 0 nothing to say.

        Args:
            una: SND.UNA, 64 bits.
            lost: bytes found lost.
            flight: bytes outstanding.
            mss: bytes of a packet.
            rtt: round trip of the packet that arrived last.
            min_rtt: the least of late.
        """
        self._arrived += (una - self._at) // mss
        self._at = una
        while self._arrived > _MEMORY:
            self._arrived >>= 1
            self._lost >>= 1
        self._budget = max(_FEW, (flight // mss) >> _ROUND_SHIFT)
        if not self.goes_on(lost, mss) or min_rtt < _SHORT or rtt <= 0:
            return 0.0
        share = min_rtt / rtt
        return 1.0 if share >= _NO_QUEUE else share

    def goes_on(self, lost: int, mss: int) -> bool:
        """Count *lost* more bytes of the recovery under way; False: this is congestion after all."""
        packets = -(-lost // mss)
        self._lost += packets
        self._budget -= packets
        return self._budget >= 0 and self._lost * _RATE <= self._arrived
