"""A cell that holds the latest value of something, and lets any number of tasks wait for the next one.

State flows through cells instead of callbacks or queues: one writer, many readers, only the last value matters. A slow
reader skips intermediate values and never holds anybody up.
"""

from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar, final

import anyio

T = TypeVar("T")


@final
class Watch(Generic[T]):
    """The latest value and a version that grows by one with every change.

    Only the event-loop thread may call :meth:`set`. A reader that wants every *latest* value does::

        version = 0                       # 0 = "nothing seen": the first wait returns at once if set() was called
        while True:
            value = await cell.wait_change(version)
            version = cell.version        # no await between these two lines
            ...
    """

    __slots__ = ("_changed", "_value", "_version")

    def __init__(self, value: T) -> None:
        self._value = value
        self._version = 0
        self._changed: anyio.Event | None = None

    @property
    def value(self) -> T:
        """The latest value."""
        return self._value

    @property
    def version(self) -> int:
        """How many times the value was set; 0 while it is still the initial one."""
        return self._version

    def set(self, value: T) -> None:
        """Store *value* and wake everybody who waits."""
        self._value = value
        self._version += 1
        event = self._changed
        if event is not None:
            self._changed = None
            event.set()

    def set_if_changed(self, value: T) -> bool:
        """Store *value* unless it equals the present one; tell whether it was stored."""
        if value == self._value:
            return False
        self.set(value)
        return True

    async def wait_change(self, version: int) -> T:
        """Wait until the version differs from *version* (at once if it already does); return the latest value."""
        while self._version == version:
            if self._changed is None:
                self._changed = anyio.Event()
            await self._changed.wait()
        return self._value

    async def wait_for(self, predicate: Callable[[T], bool]) -> T:
        """Wait until *predicate* is true of the latest value and return that value."""
        while not predicate(self._value):
            await self.wait_change(self._version)
        return self._value

    def changes(self) -> AsyncIterator[T]:
        """Return an iterator over the present value, then each latest value after a change; it never ends by itself."""
        return _Changes(self)


@final
class _Changes(AsyncIterator[T]):
    """An iterator and not an async generator: leaving the loop early then needs no clean-up."""

    __slots__ = ("_seen", "_watch")

    def __init__(self, watch: Watch[T]) -> None:
        self._watch = watch
        self._seen = -1

    async def __anext__(self) -> T:
        value = await self._watch.wait_change(self._seen)
        self._seen = self._watch.version
        return value
