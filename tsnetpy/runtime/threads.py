"""The only door to threads (besides the SSH engine's): limited, named and counted.

Threads break virtual time: a virtual clock jumps while a worker really works. The test kit therefore switches this
module off with :func:`refuse` for tests on a virtual clock, and such a test fails loudly instead of flaking.
"""

import threading
from collections.abc import Callable
from typing import Final, TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")

MAX_WORKERS: Final = 16
"""Blocking calls (``getaddrinfo``, file reads) that may run at the same time."""

_refusal: list[str] = []


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
    """
    _check()
    return await anyio.to_thread.run_sync(function, *args, abandon_on_cancel=abandon, limiter=limiter)


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
