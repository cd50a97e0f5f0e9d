"""Virtual time: hours of protocol time in milliseconds, and the same result at each run.

With anyio's pytest plugin::

    @pytest.fixture(params=VIRTUAL_BACKENDS)
    def anyio_backend(request): return request.param

On trio this is its own ``MockClock``. On asyncio an idle event loop jumps to its next timer instead of waiting for it.
Threads really work while virtual time jumps, so :func:`virtual_time` switches ``runtime.threads`` off.
"""

import asyncio
import contextlib
import selectors
from collections.abc import Iterator, Mapping
from typing import Any, Final

from tsnetpy.runtime import threads


class _JumpingSelector(selectors.DefaultSelector):
    """Never waits: what would be a wait moves the loop's clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            # No timer is set: only a file descriptor or another thread can go on from here.
            return super().select(None)
        self.now += max(timeout, 0.0)
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An asyncio loop whose ``time()`` starts at 0 and jumps over idle waits."""

    def __init__(self) -> None:
        self._selector_clock = _JumpingSelector()
        super().__init__(self._selector_clock)
        # asyncio fires a timer once `when < time() + resolution`; with a resolution of 0 an exact jump never would.
        self._clock_resolution = 1e-9

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._selector_clock.now


def trio_options() -> dict[str, Any]:
    """Return trio's run options with a clock that jumps when every task waits."""
    from trio.testing import MockClock

    return {"clock": MockClock(autojump_threshold=0)}


VIRTUAL_ASYNCIO: Final[tuple[str, Mapping[str, Any]]] = ("asyncio", {"loop_factory": VirtualTimeLoop})
"""A value for the ``anyio_backend`` fixture."""


def virtual_backend(name: str) -> tuple[str, dict[str, Any]]:
    """Return the value of the ``anyio_backend`` fixture for *name* (``asyncio`` or ``trio``) on virtual time.

    Make a new one for each test: a ``MockClock`` serves one run only.
    """
    return (name, trio_options()) if name == "trio" else (name, dict(VIRTUAL_ASYNCIO[1]))


@contextlib.contextmanager
def virtual_time() -> Iterator[None]:
    """Refuse worker threads inside the block."""
    threads.refuse("a worker thread under virtual time: the clock would jump while it works")
    try:
        yield
    finally:
        threads.refuse(None)
