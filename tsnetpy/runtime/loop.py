"""What event loops can do beyond anyio, found by the shape of the loop object: all works without, only slower.

A reader that stays registered with the selector (asyncio) saves, for each wake-up, two ``epoll_ctl`` calls, a task
switch and one turn of the loop: an eighth of what a small packet costs. A function that is called in the loop's next
turn (both) costs a tenth of waking a task. A future that a task waits for (asyncio) costs two thirds of an event.
"""

from collections.abc import Callable, Generator
from typing import Any, Protocol, final, runtime_checkable

import anyio
import anyio.lowlevel


class Wakeup(Protocol):
    """What one task waits for and something else sets, once."""

    def set(self) -> None:
        """Let :meth:`wait` return; more than once is as good as once."""
        ...

    async def wait(self) -> None:
        """Wait for :meth:`set`. At most one task, from before it is set."""
        ...


class Future(Protocol):
    """The part of ``asyncio.Future`` that is used here."""

    def done(self) -> bool:
        """Tell whether it has a result or was cancelled."""
        ...

    def set_result(self, result: None, /) -> None:
        """Wake the task that awaits this."""
        ...

    def __await__(self) -> Generator[Any, None, None]:
        """Wait for the result."""
        ...


@runtime_checkable
class NativeLoop(Protocol):
    """The part of ``asyncio.AbstractEventLoop`` that is used here."""

    def time(self) -> float:
        """Return the loop's monotonic time in seconds."""
        ...

    def add_reader(self, fd: int, callback: Callable[[], object], /) -> None:
        """Call *callback* in each turn of the loop in which *fd* is readable."""
        ...

    def remove_reader(self, fd: int, /) -> bool:
        """Undo :meth:`add_reader`."""
        ...

    def create_future(self) -> Future:
        """Return what a task can await until it gets its result."""
        ...


def native_loop() -> NativeLoop | None:
    """Return the running event loop if it is one of asyncio's."""
    loop = _native_token()
    return loop if isinstance(loop, NativeLoop) else None


def call_soon() -> Callable[[Callable[[], object]], object] | None:
    """Return what has the running event loop call a function in its next turn; ``None`` if it cannot be found.

    An exception in such a function reaches nobody (asyncio) or ends the program (trio): it must handle its own.
    """
    token = _native_token()
    found: Callable[[Callable[[], object]], object] | None
    found = getattr(token, "call_soon", None) or getattr(token, "run_sync_soon", None)
    return found


def wakeups() -> Callable[[], Wakeup]:
    """Return what makes the running event loop's cheapest wake-ups."""
    loop = native_loop()
    if loop is None:
        return anyio.Event
    create_future = loop.create_future
    return lambda: _FutureWakeup(create_future())


@final
class _FutureWakeup:
    """A :class:`Wakeup` on asyncio. Cancelling the waiting task cancels the future, which nobody else holds."""

    __slots__ = ("_future",)

    def __init__(self, future: Future) -> None:
        self._future = future

    def set(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    async def wait(self) -> None:
        await self._future


def _native_token() -> object:
    current_token = getattr(anyio.lowlevel, "current_token", None)  # public since anyio 4.11
    return None if current_token is None else getattr(current_token(), "native_token", None)


class Reader:
    """Calls a function whenever a file descriptor is readable; see :meth:`run`."""

    def __init__(self, fd: int, on_readable: Callable[[], None]) -> None:
        self._fd = fd
        self._on_readable = on_readable
        self._loop: NativeLoop | None = None
        self._over: anyio.Event | None = None
        self._failure: Exception | None = None

    async def run(self) -> None:
        """Call the function until cancelled, until it raises, or until :meth:`close`.

        Raises:
            anyio.ClosedResourceError: :meth:`close` was called.
            Exception: what the function raised.
        """
        loop = native_loop()
        if loop is not None:
            try:
                loop.add_reader(self._fd, self._ready)
            except NotImplementedError:  # Windows' proactor loop
                loop = None
        if loop is None:
            while True:
                await anyio.wait_readable(self._fd)
                self._on_readable()
        self._loop = loop
        self._over = anyio.Event()
        try:
            await self._over.wait()
        finally:
            self._stop()
        if self._failure is not None:
            raise self._failure
        raise anyio.ClosedResourceError

    def close(self) -> None:
        """End :meth:`run`. To be called before the file descriptor is closed, next to ``anyio.notify_closing``."""
        self._stop()

    def _ready(self) -> None:
        try:
            self._on_readable()
        except Exception as failure:
            self._failure = failure
            self._stop()

    def _stop(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._fd)
            self._loop = None
        if self._over is not None:
            self._over.set()
