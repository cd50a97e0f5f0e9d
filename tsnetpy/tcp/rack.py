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
_MAX_REORDERING: Final = 300
DUP_THRESH: Final = 3
"""So many packets reported above a hole make it a loss, unless reordering was seen."""
_LEAST_WINDOW: Final = MILLISECOND
"""Where reordering is waited for at all: less than this drowns in the jitter of an event loop."""


@final
class Rack:
    """The state of RFC 8985 §5.2.

    Attributes:
        sent_at, end_seq: RACK.xmit_ts and RACK.end_seq: the latest-sent transmission known to have arrived.
        rtt: its round trip.
        fack: end of the highest byte that arrived, before the ACK under way.
        reorder_seen: how many ACKs showed reordering.
        reordering: by how many packets at most, 3 at least.
        multiplier: of a quarter of the least round trip, for the reordering window.
    """

    __slots__ = (
        "_dsack_round",
        "_late",
        "_persist",
        "end_seq",
        "fack",
        "multiplier",
        "reorder_seen",
        "reordering",
        "rtt",
        "sent_at",
    )

    def __init__(self, iss: int) -> None:
        self.sent_at: Instant = -1
        self.end_seq = iss
        self.rtt: Duration = 0
        self.fack = iss
        self.reorder_seen = 0
        self.reordering = DUP_THRESH
        self._late = -1  # the lowest byte that this ACK reports behind fack
        self.multiplier = 1
        self._persist = 0
        self._dsack_round = -1

    def delivered(self, flight: Flight, start: int, end: int, echo: Instant, min_rtt: Duration, now: Instant) -> bool:
        """start..end, in flight and not reported before, has arrived (steps 1 to 3).

        Args:
            echo: the latest instant of sending that the timestamp echo admits, -1 if it tells nothing.
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
                if left < self.fack and (self._late < 0 or left < self._late):
                    self._late = left
            self.rtt = now - sent_at  # of the last one looked at, not of the last one sent
            if sent_at > self.sent_at or (sent_at == self.sent_at and right > self.end_seq):
                self.sent_at = sent_at
                self.end_seq = right
        return fresh

    def settle(self, highest: int, mss: int) -> None:
        """All of one ACK was taken in; *highest* is the end of what it reports (steps 3 and 4).

        Only what arrived behind the highest byte of an *earlier* ACK was reordered: one ACK may report a gap, and what
        comes before it, at the same time.
        """
        if highest > self.fack:
            self.fack = highest
        if self._late >= 0:
            self.reorder_seen += 1
            distance = -(-(self.fack - self._late) // mss)
            if distance > self.reordering:
                self.reordering = min(distance, _MAX_REORDERING)
            self._late = -1

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
        if hurry and not self.reorder_seen:
            return 0
        return max(min(self.multiplier * (min_rtt >> 2), srtt), _LEAST_WINDOW)

    def detect(self, flight: Flight, window: Duration, now: Instant) -> Duration:
        """Mark what is lost by now (step 5); return how long until more may be, 0 if nothing is waited for."""
        order = flight.order
        kept: list[tuple[Instant, int, int]] = []
        done = 0
        wait = 0
        for sent_at, start, end in order:
            if end > flight.una:
                stop = end
                if sent_at >= self.sent_at:
                    if sent_at > self.sent_at:
                        break
                    # Sent in the same instant: the sequence decides, and it need not be that of the list.
                    stop = max(start, min(end, self.end_seq))
                if start < stop:
                    wait = max(sent_at + self.rtt + window - now, 0)
                    if wait:
                        break
                    flight.mark_lost(max(start, flight.una), stop, sent_at)
                if stop < end:
                    kept.append((sent_at, stop, end))
            done += 1
        if done:
            order[:done] = kept
        return wait
