"""The pump: what tasks that were woken together send goes out together."""

import anyio
import pytest

from tests.netstack.kit import pair
from tsnetpy.netstack.tcp import TcpStream

pytestmark = pytest.mark.anyio

STREAMS = 8


async def test_answers_of_tasks_woken_together_share_turns() -> None:
    async with pair() as net:
        ends = [await net.connected(1000 + n) for n in range(STREAMS)]

        async def answer(stream: TcpStream) -> None:
            await stream.send(b"answer to " + await stream.receive())

        async with anyio.create_task_group() as tasks:
            for _, b in ends:
                tasks.start_soon(answer, b)
            await anyio.wait_all_tasks_blocked()
            before = net.b.pump.turns
            for n, (a, _) in enumerate(ends):
                a._socket.send(b"%d" % n, net.a.pump.now())
            net.a.pump.kick()  # all in one batch of datagrams
            for n, (a, _) in enumerate(ends):
                assert await a.receive() == b"answer to %d" % n
        assert net.b.pump.turns - before <= 2
        for a, b in ends:
            await a.aclose()
            await b.aclose()


async def test_a_lone_answer_goes_out_at_once() -> None:
    async with pair() as net:
        a, b = await net.connected()
        sent_by_then: list[int] = []

        async def answer() -> None:
            data = await b.receive()
            before = net.b.pump.dataplane.stats().tx_datagrams
            await b.send(data)
            sent_by_then.append(net.b.pump.dataplane.stats().tx_datagrams - before)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer)
            await a.send(b"question")
            assert await a.receive() == b"question"
        assert sent_by_then == [1]
        await a.aclose()
        await b.aclose()
