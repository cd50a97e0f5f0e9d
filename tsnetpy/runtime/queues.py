"""Queues between tasks. Bounded only: a full one drops its oldest entry and counts it, or makes the producer wait."""

from typing import Generic, TypeVar, final

import anyio

from tsnetpy.base.ring import Ring

T = TypeVar("T")


@final
class DropQueue(Generic[T]):
    """Synchronous producer, asynchronous consumer, at most *capacity* items; the oldest goes when it is full."""

    __slots__ = ("_closed", "_event", "_ring")

    def __init__(self, capacity: int) -> None:
        self._ring: Ring[T] = Ring(capacity)
        self._event: anyio.Event | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._ring)

    @property
    def dropped(self) -> int:
        """How many items made room for newer ones."""
        return self._ring.dropped

    def put(self, item: T) -> bool:
        """Append *item*; return False if an older one was dropped for it (or the queue is closed)."""
        if self._closed:
            return False
        victim = self._ring.push(item)
        self._wake()
        return victim is None

    def take(self) -> T | None:
        """Return the oldest item without waiting, or ``None``."""
        return self._ring.pop()

    def take_all(self, limit: int = 1 << 30) -> list[T]:
        """Return up to *limit* items without waiting."""
        items: list[T] = []
        while len(items) < limit and (item := self._ring.pop()) is not None:
            items.append(item)
        return items

    async def get_many(self, limit: int = 1 << 30) -> list[T]:
        """Wait for at least one item and return up to *limit*.

        Raises:
            anyio.EndOfStream: the queue is closed and empty.
        """
        while not len(self._ring):
            if self._closed:
                raise anyio.EndOfStream
            if self._event is None:
                self._event = anyio.Event()
            await self._event.wait()
        return self.take_all(limit)

    async def get(self) -> T:
        """Wait for the oldest item and return it.

        Raises:
            anyio.EndOfStream: the queue is closed and empty.
        """
        return (await self.get_many(1))[0]

    def close(self) -> None:
        """Refuse new items; waiting consumers get what is left, then ``EndOfStream``."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        event = self._event
        if event is not None:
            self._event = None
            event.set()


@final
class Kick:
    """A wake-up flag between one producer side and one waiting task: many kicks before a wait count as one."""

    __slots__ = ("_event", "_set")

    def __init__(self) -> None:
        self._set = False
        self._event: anyio.Event | None = None

    def kick(self) -> None:
        """Wake the waiter now, or let its next :meth:`wait` return at once."""
        self._set = True
        event = self._event
        if event is not None:
            self._event = None
            event.set()

    async def wait(self) -> None:
        """Wait for a kick since the last return."""
        while not self._set:
            if self._event is None:
                self._event = anyio.Event()
            await self._event.wait()
        self._set = False
