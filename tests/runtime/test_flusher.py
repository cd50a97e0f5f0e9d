"""A kernel that takes no more: who is told, and for how long."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest

from tsnetpy.runtime.flusher import HOLD_S, RETRY_S, Flusher
from tsnetpy.testing.clock import virtual_backend

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return virtual_backend(request.param)


class Socket:
    """The part of a UDP socket that a flusher uses."""

    def __init__(self) -> None:
        self.pending = 0
        self.writable = anyio.Event()
        self.takes = 1 << 30
        self.flushes = 0
        self.on_pending: Callable[[], None] | None = None

    async def wait_writable(self) -> None:
        await self.writable.wait()

    def flush(self) -> bool:
        self.flushes += 1
        self.pending = max(0, self.pending - self.takes)
        return not self.pending

    def keep(self) -> None:
        self.pending += 1
        if self.on_pending is not None:
            self.on_pending()


@asynccontextmanager
async def flushing(*socks: Socket) -> AsyncIterator[list[tuple[float, bool]]]:
    flusher = Flusher()
    started = anyio.current_time()
    told: list[tuple[float, bool]] = []
    flusher.on_blocked = lambda blocked: told.append((round(anyio.current_time() - started, 2), blocked))
    async with anyio.create_task_group() as group:
        group.start_soon(flusher.run, socks)
        await anyio.sleep(0.1)
        started = anyio.current_time()
        yield told
        group.cancel_scope.cancel()


async def test_the_owner_waits_until_the_kernel_takes_more() -> None:
    sock = Socket()
    async with flushing(sock) as told:
        for _ in range(2):
            sock.writable = anyio.Event()
            sock.keep()
            sock.keep()
            await anyio.sleep(0.3)
            sock.writable.set()
            await anyio.sleep(0.2)
        assert told == [(0.0, True), (0.3, False), (0.5, True), (0.8, False)]
        assert sock.pending == 0


async def test_a_way_out_that_stays_shut_is_not_waited_for() -> None:
    sock = Socket()
    async with flushing(sock) as told:
        sock.keep()
        await anyio.sleep(30)
        sock.keep()  # sent in vain, and once more nobody is to wait
        await anyio.sleep(30)
        assert told == [(0.0, True), (HOLD_S, False)]
        sock.writable.set()
        await anyio.sleep(1)
        sock.writable = anyio.Event()
        sock.keep()  # it was open in between: the next time counts again
        assert told[2:] == [(61.0, True)]


async def test_one_family_that_is_shut_does_not_hold_up_the_other() -> None:
    shut, other = Socket(), Socket()
    async with flushing(shut, other) as told:
        shut.keep()
        other.keep()
        await anyio.sleep(0.2)
        other.writable.set()
        await anyio.sleep(0.2)
        assert (shut.pending, other.pending) == (1, 0)
        await anyio.sleep(10)
        assert told == [(0.0, True), (HOLD_S, False)]
        other.writable = anyio.Event()
        other.keep()
        await anyio.sleep(0.5)
        other.writable.set()
        await anyio.sleep(0.1)
        assert told[2:] == [(10.4, True), (10.9, False)]


async def test_a_socket_that_is_writable_and_takes_nothing_is_asked_a_thousand_times_a_second_at_most() -> None:
    sock = Socket()
    sock.takes = 0
    sock.writable.set()
    async with flushing(sock) as told:
        sock.keep()
        await anyio.sleep(2)
        assert told == [(0.0, True), (HOLD_S, False)]
        assert 0 < sock.flushes <= 2 / RETRY_S + 1
        sock.takes = 1
        await anyio.sleep(0.1)
        assert sock.pending == 0


async def test_a_slow_way_out_is_waited_for_as_long_as_it_takes() -> None:
    sock = Socket()
    sock.takes = 1
    async with flushing(sock) as told:
        for _ in range(4):
            sock.keep()
        for _ in range(4):
            await anyio.sleep(0.8)
            sock.writable.set()
            sock.writable = anyio.Event()
        await anyio.sleep(0.1)
        assert sock.pending == 0
        assert told == [(0.0, True), (3.2, False)]


async def test_what_was_kept_before_anybody_watched_is_sent() -> None:
    sock = Socket()
    sock.keep()
    sock.writable.set()
    async with flushing(sock):
        await anyio.sleep(0.1)
        assert sock.pending == 0


async def test_who_ends_lets_nobody_wait() -> None:
    sock = Socket()
    async with flushing(sock) as told:
        sock.keep()
        await anyio.sleep(0.1)
    assert told == [(0.0, True), (0.1, False)]
    assert sock.on_pending is None
