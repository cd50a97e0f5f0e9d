"""The only door to threads (besides the SSH engine's): limited, named and counted.

Threads break virtual time: a virtual clock jumps while a worker really works. The test kit therefore switches this
module off with :func:`refuse` for tests on a virtual clock, and such a test fails loudly instead of flaking.
"""

import errno
import threading
from collections.abc import Callable
from typing import Final, TypeVar

import anyio
import anyio.to_thread
from anyio.from_thread import BlockingPortal

T = TypeVar("T")

MAX_WORKERS: Final = 16
"""Blocking calls (``getaddrinfo``, file reads) that may run at the same time."""

MAX_LEFT_BEHIND: Final = 64
"""Threads of calls that nobody may wait for any more; they end when their call does."""

_refusal: list[str] = []
_left_behind = threading.Semaphore(MAX_LEFT_BEHIND)


def refuse(reason: str | None) -> None:
    """Make every later call raise ``RuntimeError(reason)``; ``None`` allows threads again."""
    _refusal[:] = [] if reason is None else [reason]


def _check() -> None:
    if _refusal:
        raise RuntimeError(_refusal[0])


async def run_blocking(
    function: Callable[..., T], *args: object, abandon: bool = False, limiter: anyio.CapacityLimiter | None = None
) -> T:
    """Run ``function(*args)`` in a worker thread and return its result.

    Args:
        function: blocking and thread-safe.
        args: its positional arguments.
        abandon: let cancellation leave the thread behind (for calls without side effects, such as ``getaddrinfo``).
        limiter: a limit of the caller's own instead of anyio's default one.

    Raises:
        OSError: ``EAGAIN``: too many calls were left behind and still hang.
    """
    _check()
    if abandon and limiter is None:
        return await _run_left_behind(function, args)
    return await anyio.to_thread.run_sync(function, *args, abandon_on_cancel=abandon, limiter=limiter)


async def _run_left_behind(function: Callable[..., T], args: tuple[object, ...]) -> T:
    """Run the call in a daemon thread of its own.

    The worker threads of asyncio and anyio are joined when the interpreter ends, so a name server that does not answer,
    or a terminal on which nobody types, would keep a process alive that has been told to stop.
    """
    if not _left_behind.acquire(blocking=False):
        raise OSError(errno.EAGAIN, "too many blocking calls hang")
    results: list[T] = []
    failures: list[BaseException] = []
    finished = anyio.Event()

    async with BlockingPortal() as portal:

        def work() -> None:
            try:
                results.append(function(*args))
            except BaseException as error:
                failures.append(error)
            finally:
                _left_behind.release()
            try:
                portal.start_task_soon(finished.set)
            except RuntimeError:
                return  # nobody waits any more, or the event loop is gone

        start_thread("blocking", work)
        await finished.wait()
    if failures:
        raise failures[0]
    return results[0]


def new_limiter(workers: int = MAX_WORKERS) -> anyio.CapacityLimiter:
    """Return a limiter for :func:`run_blocking`; make one per event loop."""
    return anyio.CapacityLimiter(workers)


def start_thread(name: str, target: Callable[[], object]) -> threading.Thread:  # noqa: TID251 - this is the door
    """Start a daemon thread called ``tsnetpy-<name>`` and return it."""
    _check()
    thread = threading.Thread(target=target, name=f"tsnetpy-{name}", daemon=True)  # noqa: TID251 - as above
    thread.start()
    return thread


def count() -> int:
    """Return how many of our named threads are alive."""
    return sum(thread.name.startswith("tsnetpy-") for thread in threading.enumerate())
