"""Streams over links that lose, reorder and delay, on virtual time."""

import anyio
import pytest
from anyio import BrokenResourceError

from tests.netstack.kit import pair
from tsnetpy.base.addr import parse_ip
from tsnetpy.base.errors import DialError
from tsnetpy.base.instant import MILLISECOND
from tsnetpy.crypto import dh
from tsnetpy.netstack import tcp
from tsnetpy.runtime.clock import monotonic_ns, wall_ns
from tsnetpy.testing.clock import virtual_backend
from tsnetpy.testing.entropy import SeededEntropy
from tsnetpy.testing.internet import Link
from tsnetpy.wg import Device

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return virtual_backend(request.param)


@pytest.mark.parametrize("seed", [1, 2])
async def test_everything_arrives_in_order(seed: int) -> None:
    data = b"".join(n.to_bytes(4, "big") for n in range(50_000))
    link = Link(
        delay=20 * MILLISECOND, jitter=5 * MILLISECOND, loss=0.03, reorder=0.02, duplicate=0.01, rate=20_000_000
    )
    async with pair(link, seed=seed) as net:
        a, b = await net.connected()

        async def send() -> None:
            await a.send(data)
            await a.send_eof()

        got = bytearray()
        async with anyio.create_task_group() as group:
            group.start_soon(send)
            async for chunk in b:
                got += chunk
        assert got == data
        assert net.internet.drops.counts["loss"] > 0


async def test_idle_connection_survives_an_hour_and_an_outage() -> None:
    async with pair(Link(delay=10 * MILLISECOND)) as net:
        a, b = await net.connected()
        await anyio.sleep(3600)
        await a.send(b"still here")
        assert await b.receive() == b"still here"
        link = net.internet.link_between(net.a.underlay, net.b.underlay)
        link.up = False
        await a.send(b"through the outage")
        await anyio.sleep(20)
        link.up = True
        with anyio.fail_after(60):
            assert await b.receive() == b"through the outage"


async def test_dead_peer_breaks_the_stream_in_the_end() -> None:
    async with pair(Link(delay=10 * MILLISECOND)) as net:
        a, _ = await net.connected()
        net.internet.link_between(net.a.underlay, net.b.underlay).up = False
        await a.send(b"x")
        started = anyio.current_time()
        with pytest.raises(BrokenResourceError, match="timeout"):
            await a.receive()
        assert 60 < anyio.current_time() - started < 1500  # RFC 9293 §3.8.3 wants at least 100 s


async def test_dial_gives_up_by_itself() -> None:
    async with pair() as net:
        net.internet.link_between(net.a.underlay, net.b.underlay).up = False
        started = anyio.current_time()
        with pytest.raises(DialError) as caught:
            await tcp.connect(net.a.pump, net.b.at(80))
        assert caught.value.errno == 110
        assert anyio.current_time() - started < 300


async def test_an_idle_pump_sleeps() -> None:
    """An hour with an open connection and a session that has run out: nothing is due, so nothing wakes up."""
    async with pair() as net:
        a, b = await net.connected()
        await a.send(b"x")
        await b.receive()
        await anyio.sleep(600)  # the session's own timers
        before = [(host.pump.turns, host.pump.wakeups) for host in (net.a, net.b)]
        await anyio.sleep(3600)
        for host, (turns, wakeups) in zip((net.a, net.b), before, strict=True):
            assert host.pump.turns - turns <= 20
            assert host.pump.wakeups - wakeups <= 20


async def test_under_a_handshake_flood_a_peer_still_connects_by_cookie() -> None:
    async with pair(Link(delay=MILLISECOND)) as net:
        listener = net.listen(80)
        stranger = Device(dh.generate(SeededEntropy(8)), SeededEntropy(9))
        target = net.b.key
        stranger.wall_offset_ns = wall_ns() - monotonic_ns()
        stranger.add_peer(target, [], monotonic_ns())
        stranger.initiate(target, monotonic_ns())
        ((_, batch),) = stranger.take_outgoing()

        async def flood() -> None:
            while True:
                net.b.pump.deliver([bytes(batch.data)] * 300, ("udp", parse_ip("198.51.100.1"), 9), monotonic_ns())
                await anyio.sleep(0.2)

        async with anyio.create_task_group() as group:
            group.start_soon(flood)
            await anyio.sleep(1)
            with anyio.fail_after(30):
                stream = await tcp.connect(net.a.pump, net.b.at(80))
            await stream.send(b"through")
            assert await (await listener.accept()).receive() == b"through"
            group.cancel_scope.cancel()
        assert net.b.underlay.drops.counts["unknown_path"] > 0  # the stranger's replies went nowhere
