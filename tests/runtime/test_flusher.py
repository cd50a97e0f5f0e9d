"""A kernel that takes no more: who is told, and for how long."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from tsnetpy.runtime.flusher import HOLD_S, Flusher
from tsnetpy.testing.clock import virtual_backend

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return virtual_backend(request.param)


class Socket:
    """The part of a UDP socket that a flusher uses."""

    def __init__(self) -> None:
        self.kept = 0
        self.writable = anyio.Event()

    @property
    def has_pending(self) -> bool:
        return self.kept > 0

    async def wait_writable(self) -> None:
        await self.writable.wait()

    def flush(self) -> bool:
        self.kept = 0
        return True


@asynccontextmanager
async def flushing(sock: Socket) -> AsyncIterator[tuple[Flusher, list[tuple[float, bool]]]]:
    flusher = Flusher()
    started = anyio.current_time()
    told: list[tuple[float, bool]] = []
    flusher.on_blocked = lambda blocked: told.append((round(anyio.current_time() - started, 2), blocked))
    async with anyio.create_task_group() as group:
        group.start_soon(flusher.run, [sock])
        yield flusher, told
        group.cancel_scope.cancel()


async def test_the_owner_waits_until_the_kernel_takes_more() -> None:
    sock = Socket()
    async with flushing(sock) as (flusher, told):
        for _ in range(2):
            sock.writable = anyio.Event()
            sock.kept = 1
            flusher.note_pending()
            flusher.note_pending()
            await anyio.sleep(0.3)
            sock.writable.set()
            await anyio.sleep(0.2)
        assert told == [(0.0, True), (0.3, False), (0.5, True), (0.8, False)]
        assert sock.kept == 0


async def test_a_way_out_that_stays_shut_is_not_waited_for() -> None:
    sock = Socket()
    async with flushing(sock) as (flusher, told):
        sock.kept = 1
        flusher.note_pending()
        await anyio.sleep(30)
        flusher.note_pending()  # sent in vain, and once more nobody is to wait
        await anyio.sleep(30)
        assert told == [(0.0, True), (HOLD_S, False)]
        sock.writable.set()
        await anyio.sleep(1)
        sock.writable = anyio.Event()
        sock.kept = 1
        flusher.note_pending()  # it was open in between: the next time counts again
        assert told[2:] == [(61.0, True)]


async def test_who_ends_lets_nobody_wait() -> None:
    sock = Socket()
    async with flushing(sock) as (flusher, told):
        sock.kept = 1
        flusher.note_pending()
        await anyio.sleep(0.1)
    assert told == [(0.0, True), (0.1, False)]
