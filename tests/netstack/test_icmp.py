"""Ping through the tunnel."""

import errno

import anyio
import pytest

from tests.netstack.kit import pair
from tsnetpy.base.addr import parse_ip
from tsnetpy.base.errors import DialError
from tsnetpy.base.instant import MILLISECOND
from tsnetpy.netstack import icmp
from tsnetpy.testing.internet import Link

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("target", ["100.64.0.2", "fd7a:115c:a1e0::2", "100.64.0.1"])
async def test_peer_answers_over_both_families_and_oneself(target: str) -> None:
    async with pair() as net:
        assert 0 <= await icmp.ping(net.a.pump, parse_ip(target), 5) < 5 * 10**9


async def test_round_trip_is_that_of_the_link() -> None:
    async with pair(Link(delay=5 * MILLISECOND)) as net:
        await icmp.ping(net.a.pump, net.b.ip, 5)  # the first one also waits for the handshake
        assert await icmp.ping(net.a.pump, net.b.ip, 5) >= 10 * MILLISECOND


async def test_silence_is_a_timeout() -> None:
    async with pair() as net:
        net.internet.link_between(net.a.underlay, net.b.underlay).up = False
        with pytest.raises(DialError) as caught:
            await icmp.ping(net.a.pump, net.b.ip, 0.05)
        assert caught.value.errno == errno.ETIMEDOUT


async def test_many_at_once() -> None:
    times: list[int] = []
    async with pair() as net:

        async def ping() -> None:
            times.append(await icmp.ping(net.a.pump, net.b.ip, 5))

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(ping)
    assert len(times) == 20
    assert min(times) >= 0
