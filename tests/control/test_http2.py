"""HTTP/2 client against server, through Noise, over a pipe in memory."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import h2.config
import h2.connection
import h2.events
import pytest

from tests.control.kit import CHALLENGE, MemoryStream, stream_pair
from tsnetpy.base.entropy import SystemEntropy
from tsnetpy.base.errors import RemoteProtocolError
from tsnetpy.crypto import dh
from tsnetpy.runtime.http2 import Handler, Http2Client, Http2Request, serve_http2
from tsnetpy.runtime.noise_stream import NoiseStream
from tsnetpy.ts2021.client import ClientEngine
from tsnetpy.ts2021.server import ServerEngine

pytestmark = pytest.mark.anyio


async def noise_pair() -> tuple[NoiseStream, NoiseStream]:
    """Both ends of a Noise connection with early payload."""
    near, far = stream_pair()
    entropy = SystemEntropy()
    machine, server, ephemeral = (dh.generate(entropy) for _ in range(3))
    client_engine = ClientEngine(117, machine, dh.public_key(server), ephemeral)
    server_engine = ServerEngine(server, client_engine.initiation, dh.generate(entropy))
    accepted = await NoiseStream.accept(far, server_engine, challenge=CHALLENGE)
    return await NoiseStream.connect(near, client_engine), accepted


@asynccontextmanager
async def connection(handler: Handler) -> AsyncIterator[tuple[Http2Client, NoiseStream]]:
    """A client of a server that answers with *handler*; also the server's transport, to break it."""
    near, far = await noise_pair()
    async with anyio.create_task_group() as group:
        group.start_soon(serve_http2, far, handler)
        client = Http2Client(near, authority="h:1")
        await group.start(client.run)
        yield client, far
        group.cancel_scope.cancel()


async def echo(request: Http2Request) -> None:
    body = await request.read(10**8)
    await request.respond(200, body, [("X-Path", request.path), ("X-Method", request.method), ("A", request.authority)])


async def test_a_request() -> None:
    async with connection(echo) as (client, _):
        response, body = await client.request("POST", "/p?q", headers=[("Ts-Lb", "x")], body=b"hello")
        assert (response.status, body) == (200, b"hello")
        assert (response.header("x-path"), response.header("X-Method"), response.header("a")) == ("/p?q", "POST", "h:1")


async def test_a_get_with_a_body_and_another_authority() -> None:
    async with connection(echo) as (client, _):
        response, body = await client.request("GET", "/machine/tka/init/begin", body=b"{}", authority="unused")
        assert (body, response.header("a")) == (b"{}", "unused")


async def test_many_large_requests_at_once() -> None:
    async with connection(echo) as (client, _):
        done: list[int] = []

        async def one(size: int) -> None:
            payload = size.to_bytes(4, "big") * (size // 4)
            _, body = await client.request("POST", "/", body=payload, max_body_bytes=10**8)
            assert body == payload
            done.append(size)

        async with anyio.create_task_group() as group:
            for n in range(12):
                group.start_soon(one, 4 * 30_000 * n)
        assert len(done) == 12


async def test_a_body_is_streamed_as_it_comes() -> None:
    go = anyio.Event()

    async def handler(request: Http2Request) -> None:
        await request.start(200)
        await request.send(b"first")
        await go.wait()
        await request.send(b"second", end=True)

    async with connection(handler) as (client, _), client.stream("GET", "/") as response:
        assert await response.receive() == b"first"
        go.set()
        assert await response.receive() == b"second"
        with pytest.raises(anyio.EndOfStream):
            await response.receive()


async def test_a_reader_that_stops_holds_the_sender() -> None:
    sent = 0

    async def handler(request: Http2Request) -> None:
        nonlocal sent
        await request.start(200)
        while sent < 64 * 2**20:
            await request.send(bytes(2**18))
            sent += 2**18

    async with connection(handler) as (client, _):
        async with client.stream("GET", "/") as response:
            await anyio.sleep(10)
            held = sent
            assert 2**20 <= held <= 8 * 2**20, "bounded by window and write buffer"
            total = 0
            while total < held:
                total += len(await response.receive())
            await anyio.sleep(10)
            assert sent > held, "reading opens the window again"
        await anyio.sleep(10)
        stopped = sent
        await anyio.sleep(10)
        assert sent == stopped, "leaving resets the stream"


async def test_leaving_early_cancels_the_handler() -> None:
    cancelled = anyio.Event()

    async def handler(request: Http2Request) -> None:
        if request.path == "/ok":
            await request.respond(200)
            return
        await request.start(200)
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    async with connection(handler) as (client, _):
        async with client.stream("GET", "/"):
            pass
        await cancelled.wait()
        with anyio.move_on_after(1):
            await client.request("GET", "/never")
        assert (await client.request("GET", "/ok"))[0].status == 200


async def test_a_handler_without_an_answer() -> None:
    async def handler(request: Http2Request) -> None:
        return

    async with connection(handler) as (client, _):
        assert (await client.request("POST", "/", body=bytes(100_000)))[0].status == 500


async def test_an_answer_before_the_request_is_complete() -> None:
    async def handler(request: Http2Request) -> None:
        await request.respond(413, b"too much")

    async with connection(handler) as (client, _):
        for _ in range(5):  # the connection's window must not leak away
            try:
                response, body = await client.request("POST", "/", body=bytes(3 * 2**20))
            except RemoteProtocolError:
                continue  # reset while still sending
            assert (response.status, body) == (413, b"too much")
        assert (await client.request("POST", "/", body=b"small"))[0].status == 413


async def test_a_body_beyond_the_bound() -> None:
    async with connection(echo) as (client, _):
        with pytest.raises(RemoteProtocolError, match="more than 1000"):
            await client.request("POST", "/", body=bytes(5000), max_body_bytes=1000)
        assert (await client.request("POST", "/", body=b"x"))[1] == b"x"


async def test_a_lost_connection_ends_every_request() -> None:
    started = anyio.Event()

    async def handler(request: Http2Request) -> None:
        started.set()
        await anyio.sleep_forever()

    async with connection(handler) as (client, far):
        failures: list[str] = []

        async def one() -> None:
            with pytest.raises(RemoteProtocolError) as caught:
                await client.request("GET", "/")
            failures.append(str(caught.value))

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(one)
            await started.wait()
            await far.aclose()
        assert len(failures) == 3
        assert client.closed_reason
        with pytest.raises(RemoteProtocolError):
            await client.request("GET", "/")


async def test_requests_beyond_the_limit_wait_their_turn() -> None:
    running = most = 0

    async def handler(request: Http2Request) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(1)
        running -= 1
        await request.respond(204)

    async with connection(handler) as (client, _), anyio.create_task_group() as group:
        for _ in range(150):
            group.start_soon(client.request, "GET", "/")
    assert 50 < most <= 100


@pytest.mark.parametrize("noise", [b"HTTP/1.1 400 Bad Request\r\n\r\n" * 4, b"\0\0\4\x08\0\0\0\0\1\0\0\0\0" * 2])
async def test_a_peer_that_breaks_http2_ends_the_connection(noise: bytes) -> None:
    near, far = stream_pair()
    async with anyio.create_task_group() as group:
        client = Http2Client(near, authority="h")
        await group.start(client.run)
        await far.send(noise)
        with pytest.raises(RemoteProtocolError):
            await client.request("GET", "/")
        group.cancel_scope.cancel()


async def test_a_server_with_a_client_that_is_no_http2() -> None:
    near, far = stream_pair()
    async with anyio.create_task_group() as group:
        group.start_soon(serve_http2, far, echo)
        await near.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with anyio.fail_after(5):
            answer = b"".join([data async for data in near])  # ends because the server closes
        assert b"HTTP/1.1" not in answer


async def test_a_goaway_refuses_new_requests() -> None:
    near, far = stream_pair()
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    async with anyio.create_task_group() as group:
        client = Http2Client(near, authority="h")
        await group.start(client.run)
        server.initiate_connection()
        server.receive_data(await far.receive())
        server.close_connection()
        await far.send(server.data_to_send())
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(RemoteProtocolError, match="going away"):
            await client.request("GET", "/")
        group.cancel_scope.cancel()


async def test_noise_ends_inside_a_record() -> None:
    near, far = stream_pair()
    entropy = SystemEntropy()
    server = dh.generate(entropy)
    engine = ClientEngine(117, dh.generate(entropy), dh.public_key(server), dh.generate(entropy))
    server_engine = ServerEngine(server, engine.initiation, dh.generate(entropy))
    whole = server_engine.send(b"\0\0\0\x04\0\0\0\0\0whole")
    await far.send(server_engine.response + whole + server_engine.send(b"x")[:9])
    await far.aclose()
    stream = await NoiseStream.connect(near, engine)
    assert await stream.receive(4) == b"\0\0\0\x04"
    assert await stream.receive() == b"\0\0\0\0\0whole"
    with pytest.raises(RemoteProtocolError):
        await stream.receive()


async def test_noise_that_is_refused() -> None:
    near, far = stream_pair()
    entropy = SystemEntropy()
    engine = ClientEngine(117, dh.generate(entropy), dh.public_key(dh.generate(entropy)), dh.generate(entropy))
    await far.aclose()
    with pytest.raises(RemoteProtocolError, match="key or our version"):
        await NoiseStream.connect(near, engine)
    assert isinstance(far, MemoryStream)
