"""The reader that stays registered, on asyncio; and its equal on trio."""

import asyncio
import socket
from collections.abc import Iterator

import anyio
import pytest

from tsnetpy.runtime.clock import loop_clock, monotonic_ns
from tsnetpy.runtime.loop import Reader, wakeups

pytestmark = pytest.mark.anyio


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    a, b = socket.socketpair()
    a.setblocking(False)
    with a, b:
        yield a, b


async def test_called_whenever_there_is_something(ends: tuple[socket.socket, socket.socket]) -> None:
    a, b = ends
    seen: list[bytes] = []
    fresh = anyio.Event()

    def take() -> None:
        nonlocal fresh
        seen.append(a.recv(100))
        fresh.set()
        fresh = anyio.Event()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Reader(a.fileno(), take).run)
        for word in (b"one", b"two", b"three"):
            event = fresh
            b.send(word)
            await event.wait()
        tasks.cancel_scope.cancel()
    assert seen == [b"one", b"two", b"three"]
    b.send(b"after the end")
    await anyio.wait_all_tasks_blocked()
    assert len(seen) == 3


async def test_a_failure_comes_out_of_run(ends: tuple[socket.socket, socket.socket]) -> None:
    a, b = ends

    def take() -> None:
        raise LookupError("no")

    b.send(b"x")
    with pytest.raises(LookupError):
        await Reader(a.fileno(), take).run()


async def test_close_ends_run(ends: tuple[socket.socket, socket.socket]) -> None:
    a, _ = ends
    reader = Reader(a.fileno(), lambda: None)

    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await reader.run()
            tasks.cancel_scope.cancel()

        tasks.start_soon(run)
        await anyio.wait_all_tasks_blocked()
        anyio.notify_closing(a)
        reader.close()


async def test_the_loops_clock_is_the_clock() -> None:
    clock = loop_clock()
    before = monotonic_ns()
    between = clock()
    assert before <= between <= monotonic_ns()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_clock_that_was_put_into_the_loop_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: 5.0)
    clock = loop_clock()
    monkeypatch.undo()
    assert clock() == 5_000_000_000


async def test_a_wakeup_wakes_and_may_be_set_twice() -> None:
    wakeup = wakeups()()
    woken = 0

    async def wait() -> None:
        nonlocal woken
        await wakeup.wait()
        woken += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        assert not woken
        wakeup.set()
        wakeup.set()
    assert woken == 1


async def test_a_wakeup_whose_task_was_cancelled_may_still_be_set() -> None:
    wakeup = wakeups()()
    with anyio.move_on_after(0.001) as scope:
        await wakeup.wait()
    assert scope.cancelled_caught
    wakeup.set()
