"""Watch, queues, kicks, backoff and supervision, on both event loops."""

import anyio
import anyio.lowlevel
import pytest

from tsnetpy.base.instant import SECOND
from tsnetpy.runtime import threads
from tsnetpy.runtime.queues import DropQueue, Kick
from tsnetpy.runtime.supervise import Backoff, Supervisor
from tsnetpy.runtime.watch import Watch

pytestmark = pytest.mark.anyio


class ConstantEntropy:
    def __init__(self, value: int) -> None:
        self.value = value

    def bytes(self, n: int) -> bytes:
        return bytes(n)

    def u32(self) -> int:
        return self.value


async def test_watch_wakes_every_waiter_with_the_latest_value() -> None:
    cell = Watch("a")
    seen: list[str] = []

    async def follow() -> None:
        version = 0
        for _ in range(2):
            seen.append(await cell.wait_change(version))
            version = cell.version

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            tasks.start_soon(follow)
            await anyio.wait_all_tasks_blocked()
            cell.set("b")
            cell.set("c")  # before anybody ran: "b" is skipped
            await anyio.wait_all_tasks_blocked()
            assert seen == ["c", "c"]
            cell.set("d")
    assert seen == ["c", "c", "d", "d"]
    assert (cell.value, cell.version) == ("d", 3)


async def test_watch_returns_at_once_if_behind() -> None:
    cell = Watch(1)
    cell.set(2)
    assert await cell.wait_change(0) == 2
    assert not cell.set_if_changed(2)
    assert cell.version == 1
    assert await cell.wait_for(lambda value: value == 2) == 2
    async for value in cell.changes():
        assert value == 2
        break


async def test_watch_survives_a_cancelled_waiter() -> None:
    cell = Watch(0)
    with anyio.move_on_after(0.01):
        await cell.wait_change(0)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cell.wait_change, 0)
            await anyio.wait_all_tasks_blocked()
            cell.set(1)
    assert (cell.value, cell.version) == (1, 1)


async def test_drop_queue_drops_the_oldest_and_ends() -> None:
    queue: DropQueue[int] = DropQueue(2)
    assert [queue.put(i) for i in range(3)] == [True, True, False]
    assert queue.dropped == 1
    assert await queue.get() == 1
    queue.close()
    assert not queue.put(9)
    assert await queue.get_many() == [2]
    with pytest.raises(anyio.EndOfStream):
        await queue.get()


async def test_kicks_before_a_wait_count_once() -> None:
    kick = Kick()
    kick.kick()
    kick.kick()
    with anyio.fail_after(5):
        await kick.wait()
    with anyio.move_on_after(0.01) as scope:
        await kick.wait()
    assert scope.cancelled_caught


def test_backoff_grows_to_its_maximum() -> None:
    backoff = Backoff(SECOND, 5 * SECOND, 2.0, ConstantEntropy(2**32 - 1))
    spans = [round(backoff.next_pause() / SECOND, 3) for _ in range(5)]
    assert spans == [1.0, 2.0, 4.0, 5.0, 5.0]
    backoff.attempts = 10_000_000  # a node that was offline for years
    assert round(backoff.next_pause() / SECOND, 3) == 5.0
    backoff.reset()
    low = Backoff(SECOND, 5 * SECOND, 2.0, ConstantEntropy(0))
    assert low.next_pause() == SECOND // 2


async def test_supervisor_restarts_and_passes_fatal_errors_on() -> None:
    calls = 0

    async def work() -> None:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise OSError("no luck")
        if calls == 3:
            return
        raise ValueError("broken")

    supervisor = Supervisor()
    backoff = Backoff(1, 1)
    await supervisor.run("worker", work, backoff=backoff)
    assert calls == 3
    assert supervisor.health["worker"].restarts == 2
    assert supervisor.health["worker"].last_error == "OSError: no luck"
    with pytest.raises(ValueError, match="broken"):
        await supervisor.run("worker", work, fatal=(ValueError,))
    assert not supervisor.health["worker"].running


async def test_threads_can_be_refused() -> None:
    assert await threads.run_blocking(sum, [1, 2]) == 3
    threads.refuse("virtual clock")
    try:
        with pytest.raises(RuntimeError, match="virtual clock"):
            await threads.run_blocking(sum, [1, 2])
        with pytest.raises(RuntimeError):
            threads.start_thread("x", lambda: None)
    finally:
        threads.refuse(None)
