"""UDP sockets over two nodes in memory."""

import errno

import anyio
import pytest
from anyio import BusyResourceError, ClosedResourceError
from anyio.abc import SocketAttribute

from tests.netstack.kit import BLOCKED_PORT, pair
from tsnetpy.base.errors import DialError
from tsnetpy.netstack import udp

pytestmark = pytest.mark.anyio


async def test_there_and_back_with_addresses() -> None:
    async with pair() as net:
        server = udp.bind(net.b.pump, 5353)
        client = udp.bind(net.a.pump)
        await client.send((b"ping", ("100.64.0.2", 5353)))
        found = await server.receive_datagram()
        assert (found.data, found.local_address, found.peer) == (b"ping", "100.64.0.2", None)
        assert found.remote == ("100.64.0.1", client.extra(SocketAttribute.local_port))
        await server.sendto(b"pong", *found.remote)
        assert await client.receive() == (b"pong", ("100.64.0.2", 5353))


async def test_large_datagrams_are_fragmented_and_put_together() -> None:
    data = bytes(range(256)) * 200
    async with pair() as net:
        server = udp.bind(net.b.pump, 5353)
        client = udp.bind(net.a.pump)
        await client.sendto(data, "100.64.0.2", 5353)
        assert (await server.receive())[0] == data
        with pytest.raises(DialError) as caught:
            await client.sendto(bytes(70_000), "100.64.0.2", 5353)
        assert caught.value.errno == errno.EMSGSIZE


async def test_answers_pass_the_filter_and_others_do_not() -> None:
    async with pair() as net:
        inside = udp.bind(net.b.pump, BLOCKED_PORT)
        outside = udp.bind(net.a.pump, 4000)
        await outside.sendto(b"let me in", "100.64.0.2", BLOCKED_PORT)
        with anyio.move_on_after(0.05) as scope:
            await inside.receive()
        assert scope.cancelled_caught
        await inside.sendto(b"question", "100.64.0.1", 4000)
        assert (await outside.receive())[0] == b"question"
        await outside.sendto(b"answer", "100.64.0.2", BLOCKED_PORT)
        assert (await inside.receive())[0] == b"answer"


async def test_unread_datagrams_are_bounded() -> None:
    async with pair() as net:
        server = udp.bind(net.b.pump, 5353)
        client = udp.bind(net.a.pump)
        for n in range(3000):
            await client.sendto(n.to_bytes(2, "big") * 500, "100.64.0.2", 5353)
        await client.sendto(b"last", "100.64.0.2", 5353)
        await anyio.wait_all_tasks_blocked()
        got = 0
        while (await server.receive())[0] != b"last":
            got += 1
        assert got < 2900


async def test_closed_and_busy() -> None:
    async with pair() as net:
        socket = udp.bind(net.a.pump, 4000)
        with pytest.raises(DialError) as caught:
            udp.bind(net.a.pump, 4000)
        assert caught.value.errno == errno.EADDRINUSE
        async with anyio.create_task_group() as group:

            async def wait() -> None:
                with pytest.raises(ClosedResourceError):
                    await socket.receive()

            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(BusyResourceError):
                await socket.receive()
            await socket.aclose()
        with pytest.raises(ClosedResourceError):
            await socket.sendto(b"", "100.64.0.2", 1)
        await udp.bind(net.a.pump, 4000).aclose()  # the port is free again
