"""A thousand connections at once through one pair of nodes, over real UDP sockets: all are served, and alike."""

import time

import anyio
import pytest

from tests.netstack.test_many import jain
from tests.wireguard.kit import IPS, pair
from tsnetpy.netstack.tcp import TcpStream

pytestmark = [pytest.mark.anyio, pytest.mark.loopback, pytest.mark.slow]

COUNT = 1000
SIZE = 160 << 10


@pytest.mark.parametrize(("anyio_backend", "down"), [("asyncio", False), ("trio", True)], ids=["up", "down"])
async def test_a_thousand_connections_are_served_alike(down: bool) -> None:
    """Measured when three quarters of all bytes have arrived and the first are about to be done, and at the end.

    The clock is this process's time: on a busy machine the other one tells of the machine.
    """
    near: dict[int, TcpStream] = {}
    far: dict[int, TcpStream] = {}
    got = dict.fromkeys(range(COUNT), 0)
    total = [0]
    done: list[float] = []
    late: list[float] = []

    with anyio.fail_after(110):
        async with pair() as (a, b):
            await a.ping(IPS[1])
            listener = await b.create_tcp_listener(80, backlog=COUNT)

            async def dial() -> None:
                stream = await a.connect_tcp(IPS[1], 80)
                near[stream.local.port] = stream

            async with anyio.create_task_group() as group:
                for _ in range(COUNT):
                    group.start_soon(dial)
                for _ in range(COUNT):
                    stream = await listener.accept()
                    far[stream.remote.port] = stream
            ends = [(near[port], far[port]) for port in near]
            started = time.process_time()

            async def send(stream: TcpStream) -> None:
                await stream.send(bytes(SIZE))
                await stream.send_eof()

            async def receive(n: int, stream: TcpStream) -> None:
                async for chunk in stream:
                    got[n] += len(chunk)
                    total[0] += len(chunk)
                    if not late and total[0] >= COUNT * SIZE * 3 // 4:
                        late.append(jain(list(got.values())))
                done.append(time.process_time() - started)

            async with anyio.create_task_group() as group:
                for n, end in enumerate(ends):
                    group.start_soon(receive, n, end[1 - down])
                    group.start_soon(send, end[down])
            assert set(got.values()) == {SIZE}
            for end in ends:
                for stream in end:
                    stream.abort()
    done.sort()
    first, middle, last = done[0], done[COUNT // 2], done[-1]
    print(f"Jain's index at 3/4: {late[0]:.3f}; first done after {first:.2f} s, median {middle:.2f}, last {last:.2f}")
    assert late[0] >= 0.9
    assert last <= 2 * middle
