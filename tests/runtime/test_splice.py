"""Two streams joined: every byte, half-closes, and what breaks."""

import anyio
import pytest

from tests.serve.kit import MemoryStream, stream_pair
from tsnetpy.runtime.splice import splice

pytestmark = pytest.mark.anyio


class NoHalfClose(MemoryStream):
    """As a TLS stream is."""

    async def send_eof(self) -> None:
        raise NotImplementedError


async def read_all(stream: MemoryStream) -> bytes:
    return b"".join([chunk async for chunk in stream])


async def test_each_direction_ends_on_its_own_and_is_counted() -> None:
    client, left = stream_pair()
    right, server = stream_pair()
    counts: list[tuple[int, int]] = []

    async def join() -> None:
        counts.append(await splice(left, right))

    async with anyio.create_task_group() as group:
        group.start_soon(join)
        await client.send(b"question")
        await client.send_eof()
        assert await read_all(server) == b"question"
        await server.send(b"the answer, after your end")
        await server.send_eof()
        assert await read_all(client) == b"the answer, after your end"
    assert counts == [(8, 26)]


@pytest.mark.parametrize("side", [0, 1])
async def test_a_broken_side_ends_both(side: int) -> None:
    client, left = stream_pair()
    right, server = stream_pair()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(splice, left, right)
            await anyio.wait_all_tasks_blocked()
            (client, server)[side].abort()


async def test_an_end_that_cannot_be_told_ends_both_after_the_last_byte() -> None:
    client, left = stream_pair()
    right, server = stream_pair()
    sink = NoHalfClose(right._in, right._out, right._local, right._remote)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(splice, left, sink)
            await client.send(b"last words")
            await client.send_eof()
            assert await server.receive() == b"last words"


async def test_a_slow_sink_holds_the_source_back() -> None:
    client, left = stream_pair()
    right, _server = stream_pair()  # nobody reads
    sent = 0
    async with anyio.create_task_group() as group:
        group.start_soon(splice, left, right)
        with anyio.move_on_after(0.05):
            while True:
                await client.send(bytes(4096))
                sent += 4096
        group.cancel_scope.cancel()
    assert sent < 1 << 20
