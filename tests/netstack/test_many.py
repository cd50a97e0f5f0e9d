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

INITIAL_WINDOW = 10 * 1228
"""RFC 6928, with the segments that a tunnel of 1,280 bytes has room for."""


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


def jain(shares: list[int]) -> float:
    """Return Jain's index: 1 if all are equal, 1/n if one has all."""
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


@pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
async def test_many_connections_share_a_narrow_way(down: bool) -> None:
    """All send for as long as it lasts, and get the like of it although each fills the way by itself."""
    count = 100
    window = TcpConfig(rcv_buf=6144, rcv_buf_max=6144, snd_buf=6144, snd_buf_max=6144)
    async with pair(Link(delay=10 * MILLISECOND, rate=50_000_000), tcp_config=window) as net:
        near, far, _ = await open_many(net, count)
        sources, sinks = (far, near) if down else (near, far)
        got = [0] * count

        async def send(stream: TcpStream) -> None:
            while True:
                await stream.send(bytes(6144))

        async def receive(n: int, stream: TcpStream) -> None:
            while True:
                got[n] += len(await stream.receive())

        with anyio.move_on_after(0.6):
            async with anyio.create_task_group() as group:
                for n in range(count):
                    group.start_soon(send, sources[n])
                    group.start_soon(receive, n, sinks[n])
        assert sum(got) > 2_500_000  # the way was full
        assert jain(got) >= 0.95, (min(got), max(got))


async def test_slow_readers_stop_their_senders_at_a_bounded_memory() -> None:
    """Nobody reads, every sender goes on until it is stopped; what both ends hold is what their buffers may hold."""
    count, buffer = 100, 32768
    config = TcpConfig(rcv_buf=buffer, rcv_buf_max=buffer, snd_buf=buffer, snd_buf_max=buffer)
    async with pair(Link(delay=5 * MILLISECOND), tcp_config=config) as net:
        near, far, _ = await open_many(net, count)
        taken = [0] * count

        async def send(n: int) -> None:
            while True:
                await near[n].send(bytes(8192))
                taken[n] += 8192

        async with anyio.create_task_group() as group:
            for n in range(count):
                group.start_soon(send, n)
            await anyio.sleep(30)
            stopped = list(taken)
            assert all(buffer <= size <= 2 * buffer + 8192 for size in stopped)
            held = sum(stream._socket.readable_bytes for stream in far)
            assert held <= count * buffer
            await anyio.sleep(30)
            assert taken == stopped
            # One reader wakes its own sender and nobody else's.
            for _ in range(20):
                await far[7].receive()
                await anyio.sleep(0.1)
            assert taken[7] > stopped[7]
            assert [n for n in range(count) if taken[n] != stopped[n]] == [7]
            group.cancel_scope.cancel()


async def test_nobody_is_served_a_third_time_before_everybody_was_served() -> None:
    """On a way without limits it is the node that makes them wait: whose turn is over goes to the end of the line."""
    count = 300
    async with pair() as net:
        near, far, _ = await open_many(net, count)
        got = [0] * count
        when_all_had_some: list[list[int]] = []

        async def receive(n: int) -> None:
            async for chunk in far[n]:
                if not got[n] and got.count(0) == 1:
                    when_all_had_some.append(list(got))
                got[n] += len(chunk)

        async def send(n: int) -> None:
            await near[n].send(bytes(100_000))
            await near[n].send_eof()

        async with anyio.create_task_group() as group:
            for n in range(count):
                group.start_soon(receive, n)
            for n in range(count):
                group.start_soon(send, n)
        assert set(got) == {100_000}
        # One window, and the doubled one behind its acknowledgments: trio starts the senders in a random order.
        assert max(when_all_had_some[0]) <= 3 * INITIAL_WINDOW, max(when_all_had_some[0])
