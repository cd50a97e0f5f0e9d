"""The pump: what tasks that were woken together send goes out together."""

import contextlib
import errno

import anyio
import pytest

from tests.netstack.kit import pair
from tsnetpy.base.errors import DialError
from tsnetpy.base.instant import MILLISECOND
from tsnetpy.base.packet import PeerId, TxBatch
from tsnetpy.netstack import tcp
from tsnetpy.netstack.pump import BREATH, Pump
from tsnetpy.netstack.tcp import TcpStream
from tsnetpy.testing.internet import Link

pytestmark = pytest.mark.anyio

STREAMS = 8
INITIAL_WINDOW = 12_000


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


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # trio runs tasks in random order, other turns go on meanwhile
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
            await anyio.wait_all_tasks_blocked()
            await a.send(b"question")
            assert await a.receive() == b"question"
        assert sent_by_then == [1]
        await a.aclose()
        await b.aclose()


async def test_sends_in_one_turn_of_the_loop_go_out_together() -> None:
    async with pair() as net:
        ends = [await net.connected(1000 + n) for n in range(STREAMS)]
        go = anyio.Event()

        async def speak(stream: TcpStream) -> None:
            await go.wait()
            await stream.send(b"hello")

        async with anyio.create_task_group() as tasks:
            for a, _ in ends:
                tasks.start_soon(speak, a)
            await anyio.wait_all_tasks_blocked()
            before = net.a.pump.turns
            go.set()
            for _, b in ends:
                assert await b.receive() == b"hello"
        assert net.a.pump.turns - before <= 3
        for a, b in ends:
            await a.aclose()
            await b.aclose()


class Meter:
    """Counts what a pump sends within one turn of the event loop."""

    def __init__(self, pump: Pump) -> None:
        self.most = self.now = 0
        self._send = pump._underlay.send
        pump._underlay.send = self.send  # type: ignore[method-assign]  # the wire is looked at

    def send(self, peer: PeerId, batch: TxBatch) -> None:
        self.now += len(batch.data)
        self.most = max(self.most, self.now)
        self._send(peer, batch)

    async def tell_turns(self) -> None:
        while True:
            self.now = 0
            await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # trio's turns begin with calls of run_sync_soon, all at once
async def test_after_a_quarter_megabyte_the_loop_has_its_turns() -> None:
    count = 60
    async with pair() as net:
        ends = [await net.connected(1000 + n) for n in range(count)]
        meter = Meter(net.a.pump)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(meter.tell_turns)
            await anyio.lowlevel.checkpoint()
            for a, _ in ends:
                a._socket.send(bytes(INITIAL_WINDOW), net.a.pump.now())
            net.a.pump.kick()  # twice as much as may go
            for _, b in ends:
                got = 0
                while got < INITIAL_WINDOW:
                    got += len(await b.receive())
            tasks.cancel_scope.cancel()
        assert BREATH / 2 < meter.most <= 2 * BREATH < count * INITIAL_WINDOW


async def test_a_pump_that_is_closed_while_the_loop_has_its_turns_sends_the_rest() -> None:
    async with pair() as net:
        ends = [await net.connected(1000 + n) for n in range(60)]
        for a, _ in ends:
            a._socket.send(bytes(INITIAL_WINDOW), net.a.pump.now())
        net.a.pump.kick()
        assert net.a.pump._held
        got = 0

        async def take(stream: TcpStream) -> None:
            nonlocal got
            async for piece in stream:
                got += len(piece)

        async with anyio.create_task_group() as tasks:
            for _, b in ends:
                tasks.start_soon(take, b)
            await net.a.pump.close(5)
        assert got == 60 * INITIAL_WINDOW


async def test_a_dial_that_outlives_the_node_says_so() -> None:
    async with pair(Link(delay=MILLISECOND, up=False)) as net:

        async def dial() -> None:
            with pytest.raises(DialError, match="this node has ended") as caught:
                await tcp.connect(net.a.pump, net.b.at(80))
            assert caught.value.errno == errno.ECONNABORTED

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(dial)
            await anyio.wait_all_tasks_blocked()
            await net.a.pump.close(0)
        await dial()  # and so does a later one


async def test_a_failure_of_the_data_plane_ends_the_pump() -> None:
    def explode(*_: object) -> None:
        raise LookupError("broken")

    async def send(stream: TcpStream) -> None:
        with contextlib.suppress(LookupError):
            await stream.send(b"x")

    async def fail() -> None:
        async with pair() as net:
            streams = [(await net.connected(1000 + n))[0] for n in range(2)]
            await anyio.wait_all_tasks_blocked()
            net.a.pump._underlay.send = explode  # type: ignore[method-assign, assignment]  # the wire breaks
            async with anyio.create_task_group() as tasks:
                for stream in streams:
                    tasks.start_soon(send, stream)
                await anyio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        await fail()
    assert caught.group_contains(LookupError)
