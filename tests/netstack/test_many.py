"""Many connections of one node at once, on virtual time: how fast they open, how fairly they share, what they hold."""

import anyio
import pytest

from tests.netstack.kit import Pair, pair
from tsnetpy.base.instant import MILLISECOND
from tsnetpy.netstack import tcp
from tsnetpy.netstack.tcp import TcpStream
from tsnetpy.tcp import TcpConfig
from tsnetpy.testing.clock import virtual_backend
from tsnetpy.testing.internet import Link

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return virtual_backend(request.param)


async def open_many(net: Pair, count: int) -> tuple[list[TcpStream], list[TcpStream], list[float]]:
    """Open connections from a to b all at once; return both ends of each, in the same order, and the times it took."""
    started = anyio.current_time()
    near: dict[int, TcpStream] = {}
    far: dict[int, TcpStream] = {}
    times: list[float] = []

    async def dial() -> None:
        stream = await tcp.connect(net.a.pump, net.b.at(80))
        near[stream.local.port] = stream
        times.append(anyio.current_time() - started)

    async with net.listen(80, backlog=count) as listener, anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(dial)
        for _ in range(count):
            stream = await listener.accept()
            far[stream.remote.port] = stream
    return [near[port] for port in near], [far[port] for port in near], times


@pytest.mark.parametrize("count", [200, 500])
async def test_a_crowd_that_arrives_at_once_waits_for_no_retransmission(count: int) -> None:
    """One that was dropped for lack of room would come again after a second (RFC 6298 §2.1)."""
    async with pair(Link(delay=20 * MILLISECOND)) as net:
        await (await net.connected(7))[0].aclose()  # the tunnel's own handshake
        _, _, times = await open_many(net, count)
        assert max(times) < 0.2
        assert "syn_limit" not in net.b.pump.stack.drops.counts
