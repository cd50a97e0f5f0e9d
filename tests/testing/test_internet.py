"""The internet in memory does what its links say, the same at each run."""

from collections.abc import Sequence

import anyio
import pytest

from tsnetpy.base.instant import MILLISECOND, SECOND, Instant
from tsnetpy.base.packet import Buffer, TxBatch
from tsnetpy.crypto import dh
from tsnetpy.runtime.clock import monotonic_ns
from tsnetpy.runtime.underlay import PathId, UnderlayConfig, UnderlayPeer
from tsnetpy.testing.clock import virtual_backend
from tsnetpy.testing.entropy import SeededEntropy
from tsnetpy.testing.internet import Internet, Link, MemoryUnderlay

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return virtual_backend(request.param)


def wire(internet: Internet) -> tuple[MemoryUnderlay, MemoryUnderlay, bytes]:
    """Return two attachments that know each other, and the second one's key."""
    entropy = SeededEntropy(1)
    keys = [dh.generate(entropy) for _ in range(2)]
    ends = [internet.underlay() for _ in keys]
    for n, end in enumerate(ends):
        end.configure(UnderlayConfig(keys[n], (UnderlayPeer(dh.public_key(keys[1 - n]), None),)))
    return ends[0], ends[1], dh.public_key(keys[1])


async def carry(link: Link, datagrams: list[bytes], seed: int = 1) -> list[tuple[Instant, bytes]]:
    """Send *datagrams* at once over *link*; return what arrives, with the time since sending."""
    internet = Internet(seed, link)
    a, b, key = wire(internet)
    got: list[tuple[Instant, bytes]] = []
    async with anyio.create_task_group() as group:
        started = monotonic_ns()

        def deliver(batch: Sequence[Buffer], path: PathId, now: Instant) -> None:
            assert path == a.path
            got.extend((now - started, bytes(datagram)) for datagram in batch)

        async def run() -> None:
            await b.run(deliver)

        group.start_soon(run)
        for datagram in datagrams:
            a.send(key, TxBatch(datagram, len(datagram)))
        await anyio.sleep(60)
        group.cancel_scope.cancel()
    return got


NUMBERED = [n.to_bytes(2, "big") * 20 for n in range(500)]


async def test_perfect_link_keeps_everything_in_order_at_once() -> None:
    got = await carry(Link(), NUMBERED)
    assert [data for _, data in got] == NUMBERED
    assert got[-1][0] < MILLISECOND


async def test_delay() -> None:
    got = await carry(Link(delay=30 * MILLISECOND), NUMBERED)
    assert [data for _, data in got] == NUMBERED
    assert all(30 * MILLISECOND - 2000 <= at <= 31 * MILLISECOND for at, _ in got)


async def test_loss_is_about_right_and_repeats_with_the_seed() -> None:
    first = await carry(Link(loss=0.2), NUMBERED, seed=3)
    assert 350 < len(first) < 450
    assert [d for _, d in first] == [d for _, d in await carry(Link(loss=0.2), NUMBERED, seed=3)]
    assert [d for _, d in first] != [d for _, d in await carry(Link(loss=0.2), NUMBERED, seed=4)]


async def test_reorder_and_duplicate() -> None:
    reordered = [data for _, data in await carry(Link(delay=MILLISECOND, reorder=0.1), NUMBERED)]
    assert reordered != NUMBERED
    assert sorted(reordered) == sorted(NUMBERED)
    doubled = await carry(Link(duplicate=0.5), NUMBERED)
    assert 650 < len(doubled) < 850


async def test_rate() -> None:
    got = await carry(Link(rate=1_000_000), NUMBERED[:100])
    wanted = 100 * (40 + 28) * 8 * SECOND // 1_000_000
    assert abs(got[-1][0] - wanted) < wanted // 50


async def test_black_holes() -> None:
    small = await carry(Link(mtu=100), [bytes(72), bytes(73)])
    assert [len(data) for _, data in small] == [72]
    assert await carry(Link(up=False), NUMBERED) == []


async def test_gso_batches_are_taken_apart() -> None:
    internet = Internet()
    a, b, key = wire(internet)
    a.send(key, TxBatch(bytes(100) + bytes(50), 100))
    sizes: list[int] = []
    async with anyio.create_task_group() as group:
        group.start_soon(b.run, lambda batch, path, now: sizes.extend(map(len, batch)))
        await anyio.sleep(1)
        group.cancel_scope.cancel()
    assert sizes == [100, 50]


async def test_ping_is_the_links_round_trip() -> None:
    internet = Internet(default=Link(delay=20 * MILLISECOND))
    a, b, key = wire(internet)
    found = await a.ping(key, 5)
    assert found is not None
    assert found.latency_ns == 40 * MILLISECOND
    internet.link(a, b, Link(up=False))
    assert await a.ping(key, 0.5) is None
