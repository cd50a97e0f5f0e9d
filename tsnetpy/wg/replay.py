"""Which counters of a session have been seen: the sliding window of RFC 6479."""

from typing import Final, final

from .constants import REJECT_AFTER_MESSAGES

_BLOCK_BITS: Final = 64
_BLOCKS: Final = 128
WINDOW: Final = (_BLOCKS - 1) * _BLOCK_BITS
"""8,128: a counter this far behind the highest one still passes, one further fails."""


@final
class ReplayWindow:
    """A ring of bit blocks; moving forward clears whole blocks instead of shifting bits."""

    __slots__ = ("_blocks", "_last")

    def __init__(self) -> None:
        self._last = 0
        self._blocks = [0] * _BLOCKS

    def accept(self, counter: int) -> bool:
        """Tell whether *counter* is new, and remember it. Call only for messages that proved authentic."""
        if counter >= REJECT_AFTER_MESSAGES:
            return False
        block = counter >> 6
        last = self._last
        if counter > last:
            current = last >> 6
            if block != current:
                blocks = self._blocks
                for i in range(current + 1, current + 1 + min(block - current, _BLOCKS)):
                    blocks[i % _BLOCKS] = 0
            self._last = counter
        elif last - counter > WINDOW:
            return False
        bit = 1 << (counter & 63)
        ring = block % _BLOCKS
        seen = self._blocks[ring]
        self._blocks[ring] = seen | bit
        return not seen & bit

    def accept_run(self, first: int, count: int) -> bool:
        """Remember *count* counters from *first* on if all are above any seen so far; else change nothing.

        What :meth:`accept` would do for each of them, at the price of two or three: almost every batch is such a run.
        """
        last = self._last
        end = first + count - 1
        if first <= last or end >= REJECT_AFTER_MESSAGES or count > WINDOW:
            return False
        blocks = self._blocks
        stop = end >> 6
        for i in range(max((last >> 6) + 1, stop - _BLOCKS + 1), stop + 1):
            blocks[i % _BLOCKS] = 0
        for i in range(first >> 6, stop + 1):
            low = max(first - (i << 6), 0)
            high = min(end - (i << 6), 63)
            blocks[i % _BLOCKS] |= (2 << high) - (1 << low)
        self._last = end
        return True
