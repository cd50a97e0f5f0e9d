"""The one place where the shell reads a clock, and where float seconds become integer nanoseconds.

Monotonic time is the *event loop's* time, so that a node on a virtual clock (trio's ``MockClock``, the test kit's
loop) sees virtual time everywhere. Wall time is only for TAI64N stamps and certificate dates; the two never mix.
"""

import time
from collections.abc import Callable

import anyio

from tsnetpy.base.instant import SECOND, Duration, Instant

from .loop import native_loop


def monotonic_ns() -> Instant:
    """Return the event loop's monotonic time; only callable inside a running loop."""
    return int(anyio.current_time() * 1e9)


def loop_clock() -> Callable[[], Instant]:
    """Return what :func:`monotonic_ns` is in the running event loop, without looking the loop up at each call.

    asyncio's own loops count by ``time.monotonic()`` (a virtual clock overrides the method, or puts another function
    into the loop); asking the system directly costs an eighth of asking them, and a small packet asks four times.
    """
    loop = native_loop()
    if loop is None:
        return monotonic_ns
    if getattr(loop.time, "__module__", "") == "asyncio.base_events":
        return time.monotonic_ns
    seconds = loop.time
    return lambda: int(seconds() * 1e9)


def wall_ns() -> int:
    """Return nanoseconds since the Unix epoch."""
    return time.time_ns()


async def sleep_until(deadline: Instant) -> None:
    """Sleep until :func:`monotonic_ns` is at least *deadline* (a past deadline is a plain checkpoint)."""
    await anyio.sleep_until(deadline / SECOND)


async def sleep(duration: Duration) -> None:
    """Sleep for *duration* nanoseconds."""
    await anyio.sleep(max(0, duration) / SECOND)
