"""TCP streams behave as anyio's own do, on asyncio and trio, over two nodes in memory."""

import errno

import anyio
import pytest
from anyio import BrokenResourceError, BusyResourceError, ClosedResourceError, EndOfStream
from anyio.abc import SocketAttribute

from tests.netstack.kit import BLOCKED_PORT, pair
from tsnetpy.base.addr import Endpoint, parse_ip
from tsnetpy.base.errors import DialError
from tsnetpy.netstack import tcp
from tsnetpy.netstack.attributes import TsnetAttribute
from tsnetpy.netstack.tcp import TcpStream
from tsnetpy.tcp import TcpConfig

pytestmark = pytest.mark.anyio


async def read_all(stream: TcpStream) -> bytes:
    out = bytearray()
    async for chunk in stream:
        out += chunk
    return bytes(out)


async def test_echo_and_addresses() -> None:
    async with pair() as net:
        client, server = await net.connected(7)
        await client.send(b"hello")
        assert await server.receive() == b"hello"
        await server.send(b"world")
        assert await client.receive(3) == b"wor"
        assert await client.receive() == b"ld"
        assert client.extra(SocketAttribute.remote_address) == ("100.64.0.2", 7)
        assert server.extra(SocketAttribute.local_address) == ("100.64.0.2", 7)
        assert server.extra(SocketAttribute.remote_address) == client.extra(SocketAttribute.local_address)
        assert client.extra(TsnetAttribute.peer, None) is None


async def test_ipv6() -> None:
    async with pair() as net:
        listener = tcp.listen(net.b.pump, 80)
        stream = await tcp.connect(net.a.pump, Endpoint(net.b.ip6, 80))
        other = await listener.accept()
        await stream.send(b"six")
        assert await other.receive() == b"six"
        assert other.extra(SocketAttribute.remote_address)[0] == "fd7a:115c:a1e0::1"


async def test_bulk_both_ways_at_once() -> None:
    data = bytes(range(256)) * 8192  # 2 MiB
    async with pair() as net:
        a, b = await net.connected()
        got: dict[str, bytes] = {}

        async def send(stream: TcpStream) -> None:
            await stream.send(data)
            await stream.send_eof()

        async def receive(name: str, stream: TcpStream) -> None:
            got[name] = await read_all(stream)

        async with anyio.create_task_group() as group:
            group.start_soon(send, a)
            group.start_soon(send, b)
            group.start_soon(receive, "a", a)
            group.start_soon(receive, "b", b)
        assert got == {"a": data, "b": data}


async def test_half_close_leaves_the_other_direction_open() -> None:
    async with pair() as net:
        a, b = await net.connected()
        await a.send(b"question")
        await a.send_eof()
        assert await read_all(b) == b"question"
        with pytest.raises(ClosedResourceError):
            await a.send(b"more")
        await b.send(b"answer")
        await b.aclose()
        assert await read_all(a) == b"answer"
        with pytest.raises(EndOfStream):
            await a.receive()


async def test_close_delivers_what_was_sent() -> None:
    data = b"x" * 200_000
    async with pair() as net:
        a, b = await net.connected()
        await a.send(data)
        await a.aclose()
        assert await read_all(b) == data


async def test_closed_stream_refuses_and_wakes_waiters() -> None:
    async with pair() as net:
        a, _ = await net.connected()
        raised: list[type[BaseException]] = []

        async def wait() -> None:
            try:
                await a.receive()
            except Exception as error:
                raised.append(type(error))

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            await a.aclose()
        assert raised == [ClosedResourceError]
        for call in (a.receive(), a.send(b""), a.send_eof()):
            with pytest.raises(ClosedResourceError):
                await call
        await a.aclose()


async def test_reset_is_broken_with_errno() -> None:
    async with pair() as net:
        a, b = await net.connected()
        b.abort()
        with pytest.raises(BrokenResourceError) as caught:
            await a.receive()
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.ECONNRESET
        with pytest.raises(BrokenResourceError):
            await a.send(b"x")


async def test_two_tasks_in_one_direction_are_busy() -> None:
    async with pair() as net:
        a, b = await net.connected()
        async with anyio.create_task_group() as group:
            group.start_soon(a.receive)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(BusyResourceError):
                await a.receive()
            await b.send(b"x")


async def test_cancelled_receive_loses_nothing() -> None:
    async with pair() as net:
        a, b = await net.connected()
        with anyio.move_on_after(0.01) as scope:
            await a.receive()
        assert scope.cancelled_caught
        await b.send(b"kept")
        await anyio.wait_all_tasks_blocked()
        with anyio.CancelScope() as cancelled:
            cancelled.cancel()
            await a.receive()
        assert await a.receive() == b"kept"


async def test_backpressure_bounds_memory_and_cancel_frees_the_sender() -> None:
    config = TcpConfig(rcv_buf=65536, rcv_buf_max=65536, snd_buf=65536, snd_buf_max=65536)
    async with pair(tcp_config=config) as net:
        a, b = await net.connected()
        sent = 0
        with anyio.move_on_after(0.3):
            while True:
                await a.send(bytes(4096))
                sent += 4096
        assert 65536 <= sent <= 65536 * 3
        assert net.b.pump.stack.drops.total == 0
        # The sender is not stuck: once the reader reads, it goes on.
        got = 0
        while got < sent:
            got += len(await b.receive())
        await a.send(b"end")
        assert (await b.receive())[-3:] == b"end"


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_sender_blocked_on_a_full_window_can_be_stopped(how: str) -> None:
    async with pair() as net:
        a, _ = await net.connected()
        raised: list[type[BaseException]] = []

        async def flood() -> None:
            try:
                await a.send(bytes(64 << 20))
            except Exception as error:
                raised.append(type(error))

        async with anyio.create_task_group() as group:
            group.start_soon(flood)
            await anyio.sleep(0.2)
            if how == "cancel":
                group.cancel_scope.cancel()
            else:
                await a.aclose()
        assert raised == ([] if how == "cancel" else [ClosedResourceError])


async def test_refused_unreachable_and_forbidden_dials() -> None:
    async with pair() as net:
        with pytest.raises(DialError) as refused:
            await tcp.connect(net.a.pump, net.b.at(81))
        assert refused.value.errno == errno.ECONNREFUSED
        assert "refused" in str(refused.value)
        with pytest.raises(DialError) as forbidden:
            await tcp.connect(net.a.pump, net.b.at(BLOCKED_PORT))
        assert forbidden.value.errno == errno.ECONNREFUSED
        with pytest.raises(DialError) as bad:
            await tcp.connect(net.a.pump, Endpoint(parse_ip("127.0.0.1"), 80))
        assert bad.value.errno == errno.EINVAL
        assert not net.a.pump.sockets  # nothing of them is kept


async def test_cancelled_dial_leaves_nothing_behind() -> None:
    async with pair() as net:
        net.internet.link_between(net.a.underlay, net.b.underlay).up = False
        with anyio.move_on_after(0.05):
            await tcp.connect(net.a.pump, net.b.at(80))
        assert not net.a.pump.sockets


async def test_listener_serves_until_closed() -> None:
    async with pair() as net:
        listener = net.listen(80)

        async def echo(stream: TcpStream) -> None:
            async with stream:
                async for chunk in stream:
                    await stream.send(chunk.upper())

        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, echo)
            for word in (b"one", b"two"):
                async with await tcp.connect(net.a.pump, net.b.at(80)) as stream:
                    await stream.send(word)
                    assert await stream.receive() == word.upper()
            await listener.aclose()
        with pytest.raises(DialError):
            await tcp.connect(net.a.pump, net.b.at(80))


async def test_backlog_is_bounded() -> None:
    async with pair() as net:
        listener = net.listen(80, backlog=2)
        streams: list[TcpStream] = []
        with anyio.move_on_after(0.2) as scope:
            while len(streams) < 50:
                streams.append(await tcp.connect(net.a.pump, net.b.at(80)))
        assert scope.cancelled_caught
        # Handshakes that were under way when the queue became full may still be added to it.
        assert 2 <= len(streams) <= 4
        await (await listener.accept()).aclose()


async def test_port_taken() -> None:
    async with pair() as net:
        net.listen(80)
        with pytest.raises(DialError) as caught:
            net.listen(80)
        assert caught.value.errno == errno.EADDRINUSE


async def test_dial_to_oneself() -> None:
    async with pair() as net:
        listener = net.listen(80)
        stream = await tcp.connect(net.b.pump, net.b.at(80))
        other = await listener.accept()
        await stream.send(b"me")
        assert await other.receive() == b"me"


async def test_closing_the_pump_delivers_and_wakes_everybody() -> None:
    async with pair() as net:
        a, b = await net.connected()
        listener = tcp.listen(net.a.pump, 81)
        raised: list[type[BaseException]] = []

        async def accept() -> None:
            try:
                await listener.accept()
            except Exception as error:
                raised.append(type(error))

        await a.send(b"last words")
        async with anyio.create_task_group() as group:
            group.start_soon(accept)
            await anyio.wait_all_tasks_blocked()
            await net.a.pump.close(5)
        assert raised == [ClosedResourceError]
        assert await read_all(b) == b"last words"
        with pytest.raises(ClosedResourceError):
            await a.receive()


async def test_streams_leave_no_trace_once_closed() -> None:
    async with pair(tcp_config=TcpConfig(time_wait=1)) as net:
        for _ in range(3):
            a, b = await net.connected()
            await a.aclose()
            with pytest.raises(EndOfStream):
                await b.receive()
            await b.aclose()
        with anyio.fail_after(5):
            while net.a.pump.sockets or net.b.pump.sockets:
                await anyio.lowlevel.checkpoint()
