"""Counters. Every packet that an engine drops is counted under a reason; nothing is lost silently."""

from collections import Counter
from typing import final


@final
class Drops:
    """Counts of dropped input by reason, for one engine.

    Reasons are short fixed strings (``"checksum"``, ``"no_socket"``), never text from the wire: the table stays small.
    """

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, reason: str, n: int = 1) -> None:
        """Count *n* drops for *reason*."""
        self.counts[reason] += n

    @property
    def total(self) -> int:
        """All drops together."""
        return sum(self.counts.values())

    def snapshot(self) -> dict[str, int]:
        """Return a copy: reason to count."""
        return dict(self.counts)
