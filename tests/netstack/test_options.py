"""Options of streams, over two nodes in memory."""

import errno

import anyio
import pytest
from anyio import BrokenResourceError, ClosedResourceError

from tests.netstack.kit import pair
from tsnetpy.base.errors import DialError
from tsnetpy.nic.taps import PcapTap
from tsnetpy.testing.internet import Link

pytestmark = pytest.mark.anyio


@pytest.mark.checklist(81)
async def test_a_cork_gathers_small_writes() -> None:
    async with pair() as net:
        client, server = await net.connected()
        client.set_options(cork=True)
        for word in (b"GET ", b"/ ", b"HTTP/1.1\r\n\r\n"):
            await client.send(word)
        with anyio.move_on_after(0.05) as scope:
            await server.receive()
        assert scope.cancelled_caught
        client.set_options(cork=False)
        assert await server.receive() == b"GET / HTTP/1.1\r\n\r\n"


@pytest.mark.checklist(81)
async def test_a_cork_that_was_forgotten_gives_way() -> None:
    async with pair() as net:
        client, server = await net.connected()
        client.set_options(cork=True)
        await client.send(b"left in")
        with anyio.fail_after(2):
            assert await server.receive() == b"left in"


@pytest.mark.checklist(84)
async def test_header_fields_of_a_stream() -> None:
    async with pair() as net:
        client, server = await net.connected()
        tap = PcapTap()
        client.set_options(hop_limit=9, traffic_class=0xBB, nodelay=False)
        net.a.pump.dataplane.nic.add_tap(tap)
        await client.send(b"x")
        assert await server.receive() == b"x"
        packet = tap.take()[24 + 16 :]
        assert (packet[8], packet[1]) == (9, 0xB8)


async def test_keep_alive_breaks_a_stream_whose_peer_vanished() -> None:
    async with pair() as net:
        client, _ = await net.connected()
        client.set_options(keepalive_s=0.05, keepalive_interval_s=0.05, keepalive_probes=2, user_timeout_s=1)
        net.internet.link(net.a.underlay, net.b.underlay, Link(up=False))
        with anyio.fail_after(5), pytest.raises(BrokenResourceError) as caught:
            await client.receive()
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.ETIMEDOUT


async def test_values_that_cannot_be() -> None:
    async with pair() as net:
        client, _ = await net.connected()
        for bad in (
            {"hop_limit": 0}, {"hop_limit": 256}, {"traffic_class": -1}, {"keepalive_s": -1.0},
            {"keepalive_s": 1.0, "keepalive_probes": 0}, {"user_timeout_s": -1.0},
        ):  # fmt: skip
            with pytest.raises(DialError) as caught:
                client.set_options(**bad)
            assert caught.value.errno == errno.EINVAL
        await client.aclose()
        with pytest.raises(ClosedResourceError):
            client.set_options(nodelay=True)
