"""The HTTP/1.1 server itself: limits, silence, and what must not be confused."""

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.serve.app_kit import Client, serving
from tests.serve.kit import MemoryStream, receive_all, stream_pair
from tsnetpy.serve import TextTarget, http1, server, single_target
from tsnetpy.serve.http1 import BadRequest, Http1Connection

pytestmark = pytest.mark.anyio

CONFIG = single_target(TextTarget("hi"), 80)
REQUEST = b"GET / HTTP/1.1\r\nHost: server\r\n\r\n"


async def test_a_request_cut_anywhere_is_the_same_request() -> None:
    async with serving(CONFIG) as served:
        for cut in range(1, len(REQUEST)):
            stream = served.connect()
            await stream.send(REQUEST[:cut])
            await stream.send(REQUEST[cut:])
            assert (await Client(stream).read_answer()).body == b"hi"
            await stream.aclose()


async def test_too_large_a_head_is_refused_without_being_kept() -> None:
    async with serving(CONFIG) as served:
        stream = served.connect()

        async def flood() -> None:
            try:
                await stream.send(b"GET / HTTP/1.1\r\nHost: server\r\nX: ")
                while True:
                    await stream.send(b"a" * 10_000)
            except anyio.BrokenResourceError:
                return

        async with anyio.create_task_group() as group:
            group.start_soon(flood)
            answer = await Client(stream).read_answer()
            assert answer.status == 431
            group.cancel_scope.cancel()


async def test_endless_trailers_are_refused() -> None:
    async with serving(CONFIG) as served:
        stream = served.connect()
        await stream.send(b"POST / HTTP/1.1\r\nHost: server\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
        await stream.send(b"".join(b"X-%d: %s\r\n" % (n, b"v" * 1000) for n in range(40)))
        client = Client(stream)
        assert (await client.read_answer()).status == 200
        with pytest.raises(anyio.EndOfStream):
            await client.exactly(1)


async def test_silent_connections_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FIRST_REQUEST_S", 0.01)
    monkeypatch.setattr(server, "IDLE_S", 0.01)
    monkeypatch.setattr(server, "SWEEP_S", 0.005)
    async with serving(CONFIG) as served:
        slow, idle = served.connect(), served.connect()
        await slow.send(b"GET / HT")
        assert (await Client(idle).get("/")).status == 200
        with anyio.fail_after(5):
            assert await receive_all(slow) == b""
            assert await receive_all(idle) == b""


async def test_nobody_is_timed_while_nothing_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted(float):
        """A number that tells how often the sweeper sleeps for it."""

    sleeps = 0
    sleep = anyio.sleep

    async def counting(seconds: float) -> None:
        nonlocal sleeps
        sleeps += isinstance(seconds, Counted)
        await sleep(seconds)

    monkeypatch.setattr(server, "IDLE_S", 0.02)
    monkeypatch.setattr(server, "SWEEP_S", Counted(0.001))
    monkeypatch.setattr(anyio, "sleep", counting)
    async with serving(CONFIG) as served:
        for _ in range(2):
            await sleep(0.02)
            before = sleeps
            await sleep(0.02)
            assert sleeps == before
            idle = served.connect()
            assert (await Client(idle).get("/")).status == 200
            with anyio.fail_after(5):
                assert await receive_all(idle) == b""
            assert sleeps > before
            await sleep(0.01)


async def test_connections_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    async with serving(CONFIG) as served:
        kept = [served.connect() for _ in range(2)]
        for stream in kept:
            assert (await Client(stream).get("/")).status == 200
        assert await receive_all(served.connect()) == b""
        await kept[0].aclose()
        await anyio.lowlevel.checkpoint()
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        assert (await Client(served.connect()).get("/")).status == 200


async def test_after_an_unwanted_upgrade_the_connection_goes_on_as_http() -> None:
    async with serving(CONFIG) as served:
        stream = served.connect()
        upgrade = b"GET / HTTP/1.1\r\nHost: server\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
        await stream.send(upgrade + REQUEST + upgrade + REQUEST)
        client = Client(stream)
        for _ in range(4):
            assert (await client.read_answer()).body == b"hi"


async def test_an_unwanted_body_that_is_too_long_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "MAX_DISCARD_BYTES", 10)
    async with serving(CONFIG) as served:
        client = Client(served.connect())
        assert (await client.get("/", method="POST", body=b"x" * 20)).status == 200
        with pytest.raises(anyio.EndOfStream):
            await client.get("/")


async def test_a_host_in_the_target_is_checked_like_the_field() -> None:
    async with serving(CONFIG) as served:
        assert (await Client(served.connect()).get("http://server/")).status == 200
        assert (await Client(served.connect()).get("http://user@server/")).status == 400


async def test_the_log_names_the_caller_and_the_request() -> None:
    async with serving(CONFIG) as served:
        await Client(served.connect()).get("/a%0a?b")
        line = served.log[0].line()
        assert line.startswith('100.64.0.3 alice@example.com "GET /a%0a?b" 200 ')


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_any_bytes_end_in_a_request_an_error_or_the_end(pieces: list[bytes]) -> None:
    async def feed() -> None:
        near, far = stream_pair()
        for piece in pieces:
            await near.send(piece)
        await near.send_eof()
        connection = Http1Connection(far, "100.64.0.3")
        try:
            while (request := await connection.next_request()) is not None:
                while await connection.read_body(request):
                    pass
        except (BadRequest, http1.ClientGone):
            return

    anyio.run(feed)


async def test_bodies_and_requests_never_mix_however_they_are_cut() -> None:
    inner = b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 37\r\n\r\nGET /bad HTTP/1.1\r\nHost: b\r\n\r\n1234567"
    stream_bytes = b"".join(inner % n for n in range(4))
    for step in (1, 2, 3, 7, 64, 1000):
        near, far = stream_pair()
        connection = Http1Connection(far, "100.64.0.3")
        targets: list[bytes] = []

        async def send(near: MemoryStream = near, step: int = step) -> None:
            for at in range(0, len(stream_bytes), step):
                await near.send(stream_bytes[at : at + step])
            await near.send_eof()

        async with anyio.create_task_group() as group:
            group.start_soon(send)
            while (request := await connection.next_request()) is not None:
                body = b""
                while data := await connection.read_body(request):
                    body += data
                assert len(body) == 37
                targets.append(request.target)
        assert targets == [b"/0", b"/1", b"/2", b"/3"]
