"""Sets of sequence numbers as sorted disjoint ranges: what the peer holds (SACK), what is deemed lost.

Every question is a bisection, and the total is kept as it changes, so that "pipe" never walks over the window
(CVE-2019-11478 lived on such walks and on unlimited fragmentation).
"""

from bisect import bisect_left, bisect_right
from typing import final


@final
class RangeSet:
    """Disjoint ranges start..end (end excluded), never touching each other.

    Attributes:
        total: numbers in all ranges.
    """

    __slots__ = ("_ends", "_max_ranges", "_starts", "total")

    def __init__(self, max_ranges: int) -> None:
        """Make an empty set that refuses to hold more than *max_ranges* separate ranges."""
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._max_ranges = max_ranges
        self.total = 0

    def __len__(self) -> int:
        """Return the number of separate ranges."""
        return len(self._starts)

    def add(self, left: int, right: int) -> int:
        """Put left..right in; return how many numbers are new, 0 if the limit on ranges refuses it."""
        starts = self._starts
        ends = self._ends
        first = bisect_left(ends, left)  # first range that touches or follows left
        if first < len(starts) and starts[first] <= left and ends[first] >= right:
            return 0
        last = bisect_right(starts, right)  # one past the last range that touches right
        if first == last and len(starts) >= self._max_ranges:
            return 0
        known = 0
        for at in range(first, last):
            known += ends[at] - starts[at]
        if first < last:
            left = min(left, starts[first])
            right = max(right, ends[last - 1])
        starts[first:last] = [left]
        ends[first:last] = [right]
        news = right - left - known
        self.total += news
        return news

    def remove(self, left: int, right: int) -> int:
        """Take left..right out; return how many numbers that were.

        It may split a range in two even at the limit: what is gone must not stay in.
        """
        starts = self._starts
        ends = self._ends
        first = bisect_right(ends, left)  # first range with anything after left
        last = bisect_left(starts, right)  # one past the last range with anything before right
        if first >= last:
            return 0
        gone = 0
        for at in range(first, last):
            gone += min(ends[at], right) - max(starts[at], left)
        new_starts: list[int] = []
        new_ends: list[int] = []
        if starts[first] < left:
            new_starts.append(starts[first])
            new_ends.append(left)
        if ends[last - 1] > right:
            new_starts.append(right)
            new_ends.append(ends[last - 1])
        starts[first:last] = new_starts
        ends[first:last] = new_ends
        self.total -= gone
        return gone

    def advance(self, low: int) -> None:
        """Drop everything below *low*."""
        starts = self._starts
        if starts and starts[0] < low:
            self.remove(starts[0], low)

    def first(self) -> tuple[int, int]:
        """Return the lowest range; (0, 0) when there is none."""
        return (self._starts[0], self._ends[0]) if self._starts else (0, 0)

    def highest(self) -> int:
        """Return the end of the last range; 0 when there is none."""
        return self._ends[-1] if self._ends else 0

    def covers(self, number: int) -> bool:
        """Tell whether *number* is in the set."""
        at = bisect_right(self._starts, number) - 1
        return at >= 0 and self._ends[at] > number

    def gap(self, low: int, high: int) -> tuple[int, int]:
        """Return the first stretch of low..high that is not in the set; start == end when there is none."""
        ends = self._ends
        at = bisect_right(self._starts, low) - 1
        if at >= 0 and ends[at] > low:
            low = ends[at]
        if low >= high:
            return high, high
        following = at + 1
        if following < len(ends) and self._starts[following] < high:
            return low, self._starts[following]
        return low, high

    def overlap(self, left: int, right: int) -> int:
        """Return how many numbers of left..right are in the set."""
        starts = self._starts
        ends = self._ends
        total = 0
        for at in range(bisect_right(ends, left), bisect_left(starts, right)):
            total += min(ends[at], right) - max(starts[at], left)
        return total

    def clear(self) -> None:
        """Forget everything."""
        self._starts.clear()
        self._ends.clear()
        self.total = 0
