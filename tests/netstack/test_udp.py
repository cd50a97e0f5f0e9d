"""UDP sockets over two nodes in memory."""

import errno

import anyio
import pytest
from anyio import BusyResourceError, ClosedResourceError
from anyio.abc import SocketAttribute

from tests.netstack.kit import BLOCKED_PORT, pair
from tsnetpy.base.addr import Endpoint
from tsnetpy.base.errors import DialError
from tsnetpy.netstack import udp
from tsnetpy.nic.taps import PcapTap

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


async def test_a_connected_socket_talks_to_one_end_and_is_told_when_nobody_is_there() -> None:
    async with pair() as net:
        server = udp.bind(net.b.pump, 5353)
        stranger = udp.bind(net.b.pump, 9999)
        client = udp.connect(net.a.pump, net.b.at(5353))
        await client.send(b"ping")
        data, address = await server.receive()
        assert data == b"ping"
        await stranger.sendto(b"not for you", *address)
        await server.sendto(b"pong", *address)
        assert await client.receive() == b"pong"
        assert client.extra(SocketAttribute.remote_address) == ("100.64.0.2", 5353)
        assert client.extra(SocketAttribute.remote_port) == 5353
        assert client.extra(SocketAttribute.local_port) == address[1] == client.local.port
        assert client.remote == net.b.at(5353)
        await server.aclose()
        for call in (client.receive, lambda: client.send(b"again")):
            await client.send(b"anybody?")
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(DialError) as caught:
                await call()
            assert caught.value.errno == errno.ECONNREFUSED
        await client.aclose()
        with pytest.raises(ClosedResourceError):
            await client.send(b"x")


async def test_ends_that_cannot_be_connected_to() -> None:
    async with pair() as net:
        for remote, number in ((Endpoint(bytes((224, 0, 0, 1)), 1), errno.EINVAL), (net.b.at(0), errno.EINVAL)):
            with pytest.raises(DialError) as caught:
                udp.connect(net.a.pump, remote)
            assert caught.value.errno == number
        assert net.a.pump.stack.udp_bind(32768) is not None  # nothing is left bound


async def test_an_answer_leaves_from_where_the_question_went() -> None:
    async with pair() as net:
        server = udp.bind(net.b.pump, 5353)
        client = udp.bind(net.a.pump)
        await client.sendto(b"ping", "fd7a:115c:a1e0::2", 5353)
        found = await server.receive_datagram()
        assert found.local_address == "fd7a:115c:a1e0::2"
        await server.sendto(b"pong", *found.remote, source=found.local_address)
        assert await client.receive() == (b"pong", ("fd7a:115c:a1e0::2", 5353))
        for source, number in (("fd7a:115c:a1e0::9", errno.EADDRNOTAVAIL), ("100.64.0.2", errno.EINVAL)):
            with pytest.raises(DialError) as caught:
                await server.sendto(b"pong", *found.remote, source=source)
            assert caught.value.errno == number


async def test_many_datagrams_in_one_call() -> None:
    async with pair() as net:
        server = udp.bind(net.b.pump, 5353)
        client = udp.connect(net.a.pump, net.b.at(5353))
        await client.send(bytes(range(250)) * 40, segment=1000)
        assert [len((await server.receive())[0]) for _ in range(10)] == [1000] * 10
        with pytest.raises(DialError) as caught:
            await client.send(bytes(5000), segment=1300)
        assert caught.value.errno == errno.EMSGSIZE


async def test_header_fields_of_datagrams() -> None:
    async with pair() as net:
        tap = PcapTap()
        net.a.pump.dataplane.nic.add_tap(tap)
        client = udp.connect(net.a.pump, net.b.at(9))
        client.set_options(hop_limit=9, traffic_class=0xBB)
        await client.send(b"x")
        packet = tap.take()[24 + 16 :]
        assert (packet[8], packet[1]) == (9, 0xB8)
        for bad in ({"hop_limit": 0}, {"traffic_class": 256}):
            with pytest.raises(DialError) as caught:
                client.set_options(**bad)
            assert caught.value.errno == errno.EINVAL
        await client.aclose()
        with pytest.raises(ClosedResourceError):
            client.set_options(hop_limit=9)
