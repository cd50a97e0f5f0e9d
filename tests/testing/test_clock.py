"""Virtual time: waits cost nothing, order is kept, threads are refused."""

import time

import anyio
import pytest

from tsnetpy.runtime import threads
from tsnetpy.testing.clock import virtual_backend, virtual_time

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return virtual_backend(request.param)


async def test_hours_pass_at_once_and_in_order() -> None:
    order: list[int] = []

    async def nap(hours: int) -> None:
        await anyio.sleep(hours * 3600)
        order.append(hours)

    started = anyio.current_time()
    real = time.perf_counter()
    async with anyio.create_task_group() as group:
        for hours in (3, 1, 2):
            group.start_soon(nap, hours)
    assert order == [1, 2, 3]
    assert abs(anyio.current_time() - started - 3 * 3600) < 0.001
    assert time.perf_counter() - real < 5


async def test_timeouts_fire_at_their_time() -> None:
    started = anyio.current_time()
    with anyio.move_on_after(30) as scope:
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert abs(anyio.current_time() - started - 30) < 0.001


async def test_threads_are_refused_inside_virtual_time() -> None:
    with virtual_time(), pytest.raises(RuntimeError, match="virtual time"):
        await threads.run_blocking(int)
    assert await threads.run_blocking(int) == 0
