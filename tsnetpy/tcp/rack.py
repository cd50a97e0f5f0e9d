"""RACK: loss is inferred from time, by the order of sending (RFC 8985 §5-6).

A packet is lost when one sent after it has arrived, and the difference is more than reordering explains.
Retransmissions are judged like everything else, so one that is lost again needs no timeout.

Time is what the caller says it was when the segment *arrived*: a process that was busy must not see losses in that.
"""

from typing import Final, final

from tsnetpy.base.instant import MILLISECOND, Duration, Instant

from .flight import Flight

_PERSIST: Final = 16
"""Recoveries without a DSACK until a widened reordering window is narrow again."""
_MAX_MULTIPLIER: Final = 64
_LEAST_WINDOW: Final = MILLISECOND
"""Where reordering is waited for at all: less than this drowns in the jitter of an event loop."""


@final
class Rack:
    """The state of RFC 8985 §5.2.

    Attributes:
        sent_at, end_seq: RACK.xmit_ts and RACK.end_seq: the latest-sent transmission known to have arrived.
        rtt: its round trip.
        fack: end of the highest byte that arrived.
        reordering: whether reordering was ever seen.
        multiplier: of a quarter of the least round trip, for the reordering window.
    """

    __slots__ = ("_dsack_round", "_persist", "end_seq", "fack", "multiplier", "reordering", "rtt", "sent_at")

    def __init__(self, iss: int) -> None:
        self.sent_at: Instant = -1
        self.end_seq = iss
        self.rtt: Duration = 0
        self.fack = iss
        self.reordering = False
        self.multiplier = 1
        self._persist = 0
        self._dsack_round = -1

    def delivered(self, flight: Flight, start: int, end: int, echo: Instant, min_rtt: Duration, now: Instant) -> bool:
        """start..end, in flight and not reported before, has arrived (steps 1 to 3).

        Args:
            echo: the latest instant of sending that the timestamp echo admits, -1 without timestamps.
            min_rtt: least round trip seen.

        Returns:
            whether some of it was never sent again.
        """
        fresh = False
        for left, right, sent_at, again in flight.pieces(start, end):
            if again:
                # The ACK may be for the first transmission: such a sample would make everything look late.
                if (echo >= 0 and echo < sent_at) or now - sent_at < min_rtt:
                    continue
            else:
                fresh = True
                if left < self.fack:
                    self.reordering = True
            if sent_at > self.sent_at or (sent_at == self.sent_at and right > self.end_seq):
                self.sent_at = sent_at
                self.end_seq = right
                self.rtt = now - sent_at
        return fresh

    def on_dsack(self, una: int, nxt: int) -> None:
        """The peer reported a duplicate: a retransmission was needless, so wait longer, once per round trip."""
        if self._dsack_round >= 0 and una < self._dsack_round:
            return
        self._dsack_round = nxt
        self.multiplier = min(self.multiplier + 1, _MAX_MULTIPLIER)
        self._persist = _PERSIST

    def on_recovered(self) -> None:
        """A recovery ended; after sixteen of them without a DSACK the window is narrow again."""
        if self._persist:
            self._persist -= 1
            if self._persist == 0:
                self.multiplier = 1

    def window(self, hurry: bool, min_rtt: Duration, srtt: Duration) -> Duration:
        """Return the reordering window; none if *hurry* (recovery, or three packets reported) and all in order."""
        if hurry and not self.reordering:
            return 0
        return max(min(self.multiplier * (min_rtt >> 2), srtt), _LEAST_WINDOW)

    def detect(self, flight: Flight, window: Duration, now: Instant) -> Duration:
        """Mark what is lost by now (step 5); return how long until more may be, 0 if nothing is waited for."""
        order = flight.order
        while order:
            sent_at, start, end = order[0]
            if end <= flight.una:
                order.popleft()
                continue
            stop = end
            if sent_at >= self.sent_at:
                if sent_at > self.sent_at or start >= self.end_seq:
                    return 0
                stop = min(end, self.end_seq)  # sent in the same instant: the sequence decides
            wait = sent_at + self.rtt + window - now
            if wait > 0:
                return wait
            flight.mark_lost(max(start, flight.una), stop, sent_at)
            if stop < end:
                order[0] = (sent_at, stop, end)
                return 0
            order.popleft()
        return 0
