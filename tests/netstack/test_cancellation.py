"""Cancellation at every await: each call is cancelled after 0, 1, 2, … turns of the event loop until it gets through.

Whenever it comes, nothing is lost or doubled, nothing stays behind in a stack, and the object goes on to work.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio
import pytest
from anyio.lowlevel import checkpoint

from tests.netstack.kit import Host, Pair, pair
from tsnetpy.base.errors import DialError
from tsnetpy.netstack import icmp, tcp, udp
from tsnetpy.netstack.tcp import TcpStream
from tsnetpy.tcp import TcpConfig
from tsnetpy.testing.clock import virtual_backend

pytestmark = pytest.mark.anyio

T = TypeVar("T")
MOST_STEPS = 200
SMALL = TcpConfig(rcv_buf=16384, rcv_buf_max=16384, snd_buf=16384, snd_buf_max=16384)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return virtual_backend(request.param)


async def cancelled_after(steps: int, call: Callable[[], Awaitable[T]]) -> tuple[bool, T | None]:
    """Await ``call()``, cancelled before it (0) or in the n-th turn of the loop; tell if it returned, and what."""
    result: list[T] = []

    async def cancel() -> None:
        for _ in range(steps - 1):
            await checkpoint()
        scope.cancel()

    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            if steps:
                group.start_soon(cancel)
            else:
                scope.cancel()
            result.append(await call())
        group.cancel_scope.cancel()
    return bool(result), result[0] if result else None


async def at_each_step(attempt: Callable[[int], Awaitable[bool]], least: int = 1) -> None:
    """Call *attempt* with 0, 1, 2, … until it got through three times in a row; it must fail *least* times before."""
    through = 0
    for steps in range(MOST_STEPS):
        through = through + 1 if await attempt(steps) else 0
        if through == 3:
            assert steps - 2 >= least, f"cancelled {steps - 2} times only"
            return
    raise AssertionError(f"not through after {MOST_STEPS} turns")


async def nothing_is_left(*hosts: Host) -> None:
    """Both stacks come to forget everything, as soon as TIME-WAIT is over."""
    await anyio.sleep(300)
    for host in hosts:
        assert not host.pump.sockets
        assert not host.pump.others
        assert host.pump.stack.tcp_connections == 0
        assert not host.pump.stack._datagrams._idents
        assert not host.pump.stack._datagrams._udp


@asynccontextmanager
async def clean_pair(tcp_config: TcpConfig | None = None) -> AsyncIterator[Pair]:
    """Two hosts that have nothing left at the end."""
    async with pair(tcp_config=tcp_config) as net:
        await icmp.ping(net.a.pump, net.b.ip, 10)  # the tunnel's handshake is not what is tested
        yield net
        await nothing_is_left(net.a, net.b)


async def close_all(*streams: TcpStream) -> None:
    for stream in streams:
        await stream.aclose()


async def test_connect() -> None:
    async with clean_pair() as net, net.listen(80) as listener:

        async def echo(stream: TcpStream) -> None:
            async with stream:
                async for chunk in stream:
                    await stream.send(chunk)

        async def attempt(steps: int) -> bool:
            through, stream = await cancelled_after(steps, lambda: tcp.connect(net.a.pump, net.b.at(80)))
            if stream is not None:
                await stream.send(b"x")
                assert await stream.receive() == b"x"
                await stream.aclose()
            return through

        async with anyio.create_task_group() as group:
            group.start_soon(_serve_quietly, listener, echo)
            await at_each_step(attempt, least=2)
            await anyio.sleep(1)
            assert not net.a.pump.sockets, "kept although nobody has it"
            assert not net.b.pump.sockets, "the peer was not told"
            group.cancel_scope.cancel()


async def _serve_quietly(listener: tcp.TcpListener, handler: Callable[[TcpStream], Awaitable[None]]) -> None:
    async def handle(stream: TcpStream) -> None:
        try:
            await handler(stream)
        except anyio.BrokenResourceError:
            return  # dialled and cancelled: a reset

    await listener.serve(handle)


async def test_a_dial_without_an_answer() -> None:
    """Every step of the wait, and the word that nobody is there, which comes in the middle of it."""
    async with clean_pair() as net:

        async def refused() -> None:
            with pytest.raises(DialError):
                await tcp.connect(net.a.pump, net.b.at(81))

        async def attempt(steps: int) -> bool:
            return (await cancelled_after(steps, refused))[0]

        await at_each_step(attempt, least=2)


@pytest.mark.parametrize("already_there", [True, False])
async def test_accept(already_there: bool) -> None:
    async with clean_pair() as net, net.listen(80) as listener:

        async def attempt(steps: int) -> bool:
            near: list[TcpStream] = []

            async def dial() -> None:
                near.append(await tcp.connect(net.a.pump, net.b.at(80)))

            async with anyio.create_task_group() as group:
                group.start_soon(dial)
                if already_there:
                    await anyio.sleep(1)
                through, far = await cancelled_after(steps, listener.accept)
                accepted = far or await listener.accept()  # it is still there
            assert accepted.remote == near[0].local
            with anyio.move_on_after(1) as nobody_else:
                await listener.accept()
            assert nobody_else.cancelled_caught
            await close_all(near[0], accepted)
            return through

        await at_each_step(attempt)


@pytest.mark.parametrize("already_there", [True, False])
async def test_receive_loses_nothing(already_there: bool) -> None:
    async with clean_pair() as net:
        near, far = await net.connected()
        sent = bytearray()
        got = bytearray()

        async def attempt(steps: int) -> bool:
            word = b"%06d" % steps
            sent.extend(word)
            async with anyio.create_task_group() as group:
                if already_there:
                    await near.send(word)
                    await anyio.sleep(1)
                else:
                    group.start_soon(near.send, word)
                through, data = await cancelled_after(steps, lambda: far.receive(4))
                got.extend(data or b"")
            while len(got) < len(sent):
                got.extend(await far.receive())
            assert got == sent
            return through

        await at_each_step(attempt)
        await close_all(near, far)


async def test_send_takes_a_beginning_and_nothing_twice() -> None:
    async with clean_pair(SMALL) as net:
        near, far = await net.connected()
        got = bytearray()

        async def read() -> None:
            async for chunk in far:
                got.extend(chunk)
                await checkpoint()

        async def attempt(steps: int) -> bool:
            item = bytes([steps]) * 60_000  # several times what the buffers hold
            before = len(got)
            through, _ = await cancelled_after(steps, lambda: near.send(item))
            await near.send(b"end")
            await anyio.sleep(1)
            arrived = got[before:]
            assert arrived == item[: len(arrived) - 3] + b"end"
            assert not through or len(arrived) == 60_003
            return through

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await at_each_step(attempt, least=2)
            await near.aclose()
        await far.aclose()


async def test_wait_writable() -> None:
    async with clean_pair(SMALL) as net:
        near, far = await net.connected()
        while near._socket.send_space:
            with anyio.move_on_after(1):
                await near.send(bytes(1024))

        async def attempt(steps: int) -> bool:
            through, _ = await cancelled_after(steps, near.wait_writable)
            if steps == 5:  # from here on there is room
                await far.receive(16384)
                await anyio.sleep(1)
            return through

        await at_each_step(attempt, least=5)
        near.abort()
        await far.aclose()


async def test_send_eof() -> None:
    async with clean_pair() as net:

        async def attempt(steps: int) -> bool:
            near, far = await net.connected()
            through, _ = await cancelled_after(steps, near.send_eof)
            await far.send(b"still open")
            assert await near.receive() == b"still open"
            await near.send_eof()
            with pytest.raises(anyio.EndOfStream):
                await far.receive()
            await close_all(near, far)
            return through

        await at_each_step(attempt)


async def test_close_takes_place_although_it_is_cancelled() -> None:
    async with clean_pair() as net:

        async def attempt(steps: int) -> bool:
            near, far = await net.connected()
            listener = net.listen(81)
            socket = udp.bind(net.a.pump, 82)
            through = True
            for thing in (near, listener, socket):
                through &= (await cancelled_after(steps, thing.aclose))[0]
            with pytest.raises(anyio.EndOfStream):
                await far.receive()
            await far.aclose()
            await net.listen(81).aclose()  # the ports are free again
            await udp.bind(net.a.pump, 82).aclose()
            return through

        await at_each_step(attempt)


@pytest.mark.parametrize("already_there", [True, False])
async def test_datagrams_are_neither_lost_nor_doubled(already_there: bool) -> None:
    async with clean_pair() as net, udp.bind(net.a.pump) as near, udp.bind(net.b.pump, 53) as far:
        got: list[bytes] = []

        async def attempt(steps: int) -> bool:
            word = b"%d" % steps
            async with anyio.create_task_group() as group:
                if already_there:
                    await near.sendto(word, "100.64.0.2", 53)
                    await anyio.sleep(1)
                else:
                    group.start_soon(near.sendto, word, "100.64.0.2", 53)
                through, found = await cancelled_after(steps, far.receive)
                got.append((found or await far.receive())[0])
            assert got == [b"%d" % n for n in range(steps + 1)]
            return through

        await at_each_step(attempt)


async def test_a_datagram_is_sent_once_or_not_at_all() -> None:
    async with clean_pair() as net, udp.bind(net.a.pump) as near, udp.bind(net.b.pump, 53) as far:

        async def attempt(steps: int) -> bool:
            through, _ = await cancelled_after(steps, lambda: near.sendto(b"%d" % steps, "100.64.0.2", 53))
            await near.sendto(b"end", "100.64.0.2", 53)
            words = []
            while (word := (await far.receive())[0]) != b"end":
                words.append(word)
            assert words in ([b"%d" % steps], [])
            assert words or not through
            return through

        await at_each_step(attempt)


async def test_ping() -> None:
    async with clean_pair() as net:

        async def attempt(steps: int) -> bool:
            return (await cancelled_after(steps, lambda: icmp.ping(net.a.pump, net.b.ip, 5)))[0]

        await at_each_step(attempt)


async def test_closing_the_pump() -> None:
    async with pair() as net:
        near, far = await net.connected()
        await near.send(bytes(100_000))
        through, _ = await cancelled_after(1, lambda: net.a.pump.close(60))
        assert not through
        got = 0
        async for chunk in far:
            got += len(chunk)
        assert got == 100_000  # what was sent arrives all the same
        await far.aclose()
        await anyio.sleep(300)
        assert not net.a.pump.sockets
