"""What is in the network: when each byte was last sent, which the peer reported, which are deemed lost.

The window SND.UNA..SND.NXT is cut into pieces with one transmission time each, at super-segments and not at packets.
A second record, in the order of sending, gives loss detection the oldest transmission first: each transmission is
looked at once there, however many ACKs arrive (RFC 8985 §6.2 without its walk over all segments).
"""

from bisect import bisect_left, bisect_right
from typing import Final, final

from tsnetpy.base.instant import Instant

from .ranges import RangeSet

_MAX_SACK_RANGES: Final = 128
_NO_LIMIT: Final = 1 << 30


@final
class Flight:
    """Transmissions between SND.UNA and SND.NXT.

    Attributes:
        una, end: SND.UNA and SND.NXT as far as data, SYN and FIN were recorded here.
        sacked: what the peer holds above SND.UNA; at most 128 ranges, newer ones are then ignored.
        lost: what is deemed lost and was not sent again since; disjoint from *sacked*.
        order: (when, start, end) of transmissions, oldest first, some of them outdated.
        resent_pieces: how many pieces are retransmissions.
    """

    __slots__ = (
        "_again",
        "_other_until",
        "_starts",
        "_times",
        "_unit",
        "end",
        "lost",
        "order",
        "resent_pieces",
        "sacked",
        "una",
    )

    def __init__(self, una: int) -> None:
        self.una = una
        self.end = una
        self.sacked = RangeSet(_MAX_SACK_RANGES)
        self.lost = RangeSet(_NO_LIMIT)
        self.order: list[tuple[Instant, int, int]] = []  # an empty deque takes ten times the memory
        self.resent_pieces = 0
        # Payload bytes per packet: pieces are cut into packets of that size from their start on, but what comes before
        # _other_until was cut into packets of another size.
        self._unit = 1
        self._other_until = una
        self._starts: list[int] = []
        self._times: list[Instant] = []
        self._again: list[bool] = []

    def __len__(self) -> int:
        """Return the number of pieces."""
        return len(self._starts)

    def set_unit(self, unit: int) -> None:
        """Packets have *unit* bytes of payload from now on."""
        if unit != self._unit:
            self._unit = unit
            self._other_until = self.end

    def pipe(self) -> int:
        """Return the estimate of bytes in the network (RFC 6675 §4 SetPipe): sent, not reported, not lost."""
        return self.end - self.una - self.sacked.total - self.lost.total

    def send(self, start: int, end: int, now: Instant) -> None:
        """Record the first transmission of start..end, which follows everything recorded before."""
        times = self._times
        if times and times[-1] == now and not self._again[-1] and self.order:
            when, begin, stop = self.order[-1]
            if when == now and stop == start and begin >= self._other_until and (stop - begin) % self._unit == 0:
                # One burst of several super-segments is one piece.
                self.order[-1] = (now, begin, end)
                self.end = end
                return
        self._starts.append(start)
        times.append(now)
        self._again.append(False)
        self.order.append((now, start, end))
        self.end = end

    def resend(self, start: int, end: int, now: Instant) -> None:
        """Record that start..end was sent again."""
        end = min(end, self.end)
        start = max(start, self.una)
        if start >= end:
            return
        self.lost.remove(start, end)
        first = self._cut(start)
        last = self._cut(end)
        again = self._again
        for at in range(first, last):
            if again[at]:
                self.resent_pieces -= 1
        if (
            first
            and again[first - 1]
            and self._times[first - 1] == now
            and (start - self._starts[first - 1]) % self._unit == 0
        ):
            del self._starts[first:last]
            del self._times[first:last]
            del again[first:last]
        else:
            self._starts[first:last] = [start]
            self._times[first:last] = [now]
            again[first:last] = [True]
            self.resent_pieces += 1
        self.order.append((now, start, end))

    def _cut(self, seq: int) -> int:
        """Make a piece begin at *seq* and return its index; the number of pieces when *seq* is the end."""
        starts = self._starts
        if seq >= self.end:
            return len(starts)
        at = bisect_right(starts, seq) - 1
        if starts[at] == seq:
            return at
        starts.insert(at + 1, seq)
        self._times.insert(at + 1, self._times[at])
        self._again.insert(at + 1, self._again[at])
        if self._again[at]:
            self.resent_pieces += 1
        return at + 1

    def advance(self, una: int) -> Instant:
        """Everything below *una* is acknowledged; return when the last byte of that was sent, 0 if unknown."""
        starts = self._starts
        self.una = una
        if not starts:
            return 0
        if una < self.end and (len(starts) == 1 or una < starts[1]) and not self.sacked.total and not self.lost.total:
            starts[0] = una  # part of one burst: by far the most frequent
            return self._times[0]
        order = self.order
        if una >= self.end:
            sent_at = self._times[-1]
            starts.clear()
            self._times.clear()
            self._again.clear()
            order.clear()
            self.resent_pieces = 0
            self.end = una
        else:
            at = bisect_right(starts, una) - 1
            if starts[at] == una:
                sent_at = self._times[at - 1] if at else 0
            else:
                sent_at = self._times[at]
                starts[at] = una
            if at:
                if self.resent_pieces:
                    self.resent_pieces -= sum(self._again[:at])
                del starts[:at]
                del self._times[:at]
                del self._again[:at]
            done = 0
            for _, _, end in order:
                if end > una:
                    break
                done += 1
            if done:
                del order[:done]
        if self.sacked.total:
            self.sacked.advance(una)
        if self.lost.total:
            self.lost.advance(una)
        return sent_at

    def pieces(self, start: int, end: int) -> list[tuple[int, int, Instant, bool]]:
        """Return (start, end, when last sent, whether again) of what overlaps start..end, clipped to it."""
        starts = self._starts
        out: list[tuple[int, int, Instant, bool]] = []
        at = max(bisect_right(starts, start) - 1, 0)
        stop = bisect_left(starts, end)
        while at < stop:
            right = starts[at + 1] if at + 1 < len(starts) else self.end
            left = max(starts[at], start)
            right = min(right, end)
            if left < right:
                out.append((left, right, self._times[at], self._again[at]))
            at += 1
        return out

    def whole(self, left: int, right: int) -> tuple[int, int]:
        """Narrow left..right, which lies in flight, to whole packets as they were sent; left >= right for none.

        A part of a packet is no sign that the packet arrived, and to a sender that thinks in packets (RFC 8985) it is
        no use: the rest would have to be sent again with headers of its own. Where the packet size has changed since,
        nobody remembers where packets ended, and the peer is believed.
        """
        if left < self._other_until:
            return left, right
        starts = self._starts
        unit = self._unit
        at = bisect_right(starts, left) - 1
        if at < 0:
            return left, left
        over = (left - starts[at]) % unit
        if over:
            left = min(left + unit - over, starts[at + 1] if at + 1 < len(starts) else self.end)
        at = bisect_left(starts, right) - 1
        stop = starts[at + 1] if at + 1 < len(starts) else self.end
        if right < stop - 1:  # the last number may be a FIN, of which not every peer speaks
            right -= (right - starts[at]) % unit
        return left, right

    def reported(self, enough: int) -> int:
        """Count transmissions of which the peer reported something; stop at *enough*.

        Packets smaller than the MSS make few bytes, so bytes alone would not show that three of them arrived.
        """
        count = 0
        at = self.una
        highest = self.sacked.highest()
        while at < highest and count < enough:
            _, at = self.sacked.gap(at, highest) if not self.sacked.covers(at) else (0, at)
            end = self.sacked.gap(at, highest)[0]
            count += len(self.pieces(at, end))
            at = end
        return count

    def repeated(self) -> int:
        """Return how many bytes were sent again, and neither reported nor deemed lost since. Looks at every piece."""
        total = 0
        for left, right, _, again in self.pieces(self.una, self.end) if self.resent_pieces else ():
            if again:
                total += right - left - self.sacked.overlap(left, right) - self.lost.overlap(left, right)
        return total

    def mark_lost(self, start: int, end: int, sent_at: Instant) -> None:
        """Deem those bytes of start..end lost whose latest transmission was at *sent_at* and that nobody reported."""
        for left, right, when, _ in self.pieces(start, end):
            if when == sent_at:
                self.mark_range_lost(left, right)

    def mark_range_lost(self, start: int, end: int) -> None:
        """Deem start..end lost as far as the peer did not report it."""
        while start < end:
            left, right = self.sacked.gap(start, end)
            if left >= right:
                return
            self.lost.add(left, right)
            start = right

    def lose_everything(self) -> None:
        """After a timeout nothing is in the network, and the peer may have dropped what it reported (RFC 2018 §8)."""
        self.sacked.clear()
        self.lost.clear()
        self.order.clear()
        if self.end > self.una:
            self.lost.add(self.una, self.end)

    def reorder_by_time(self) -> None:
        """A timeout was taken back: what was sent before it is to be judged again, oldest first."""
        pieces = [(sent_at, start, end) for start, end, sent_at, _ in self.pieces(self.una, self.end)]
        pieces.sort()
        self.order = pieces

    def clear(self, una: int) -> None:
        """Forget everything, for a connection that ended."""
        self.una = self.end = una
        self._starts.clear()
        self._times.clear()
        self._again.clear()
        self.order.clear()
        self.sacked.clear()
        self.lost.clear()
        self.resent_pieces = 0
