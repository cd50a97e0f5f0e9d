"""A bounded queue that drops its oldest entries and counts them: the only queue shape on the packet path."""

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Ring(Generic[T]):
    """A FIFO of at most *capacity* items; pushing into a full one drops the oldest.

    Attributes:
        items: what is queued; to be looked at only (``if ring.items`` is the cheapest way to ask).
    """

    __slots__ = ("capacity", "dropped", "items")

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError("a ring needs room for one item")
        self.items: deque[T] = deque()
        self.capacity = capacity
        self.dropped = 0

    def __len__(self) -> int:
        return len(self.items)

    def push(self, item: T) -> T | None:
        """Append *item*; return the oldest one if it had to make room."""
        victim: T | None = None
        if len(self.items) >= self.capacity:
            victim = self.items.popleft()
            self.dropped += 1
        self.items.append(item)
        return victim

    def pop(self) -> T | None:
        """Remove and return the oldest item, or ``None``."""
        return self.items.popleft() if self.items else None

    def put_back(self, item: T) -> None:
        """Return what :meth:`pop` gave (or what is left of it) to its place; nothing was pushed in between."""
        self.items.appendleft(item)

    def clear(self) -> None:
        """Forget everything (not counted as drops)."""
        self.items.clear()
