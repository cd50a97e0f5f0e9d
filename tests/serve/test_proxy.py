"""The reverse proxy beyond the recordings: bodies, back-pressure, reuse, failures, and who waits for whom."""

import errno
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
import anyio.abc
import pytest

from tests.serve.app_kit import Client, serving
from tests.serve.kit import PIPE_BYTES, MemoryStream, receive_all, settle, stream_pair
from tsnetpy.serve import backend, parse_target, proxy, single_target
from tsnetpy.serve.config import ProxyTarget

pytestmark = pytest.mark.anyio

CONFIG = single_target(parse_target("3000"), 80)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Scripted:
    """A backend of which every connection runs a script."""

    def __init__(self, group: anyio.abc.TaskGroup, script: Callable[[MemoryStream], Awaitable[None]]) -> None:
        self._group = group
        self._script = script
        self.streams: list[MemoryStream] = []

    async def dial(self, target: ProxyTarget) -> MemoryStream:
        await anyio.lowlevel.checkpoint()
        near, far = stream_pair()
        self.streams.append(far)
        self._group.start_soon(self._run, far)
        return near

    async def _run(self, stream: MemoryStream) -> None:
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            await self._script(stream)
        await stream.aclose()


async def answer_ok(stream: MemoryStream) -> None:
    while True:
        await stream.receive()
        await stream.send(OK)


async def test_requests_reuse_one_backend_connection_and_each_side_gets_one_send() -> None:
    async with anyio.create_task_group() as group:
        script = Scripted(group, answer_ok)
        async with serving(CONFIG, script.dial) as served:
            stream = served.connect()
            client = Client(stream)
            for _ in range(5):
                assert (await client.get("/")).body == b"ok"
            assert len(script.streams) == 1
            assert stream.sends == 5
            assert [entry.status for entry in served.log] == [200] * 5
            assert served.log[0].login == "alice@example.com"


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_large_body_passes_unchanged_both_ways(chunked: bool) -> None:
    body = os.urandom(1_500_000)

    async def echo(stream: MemoryStream) -> None:
        reader = Client(stream)
        line = await reader._line()
        fields: dict[str, str] = {}
        while item := await reader._line():
            name, _, value = item.decode().partition(": ")
            fields[name.lower()] = value
        assert line == b"POST /up HTTP/1.1"
        got = b""
        if fields.get("transfer-encoding") == "chunked":
            while size := int(await reader._line(), 16):
                got += await reader.exactly(size)
                await reader._line()
        else:
            got = await reader.exactly(int(fields["content-length"]))
        await stream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for at in range(0, len(got), 50_000):
            piece = got[at : at + 50_000]
            await stream.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        await stream.send(b"0\r\n\r\n")

    async with anyio.create_task_group() as group, serving(CONFIG, Scripted(group, echo).dial) as served:
        stream = served.connect()
        client = Client(stream)

        async def upload() -> None:
            if chunked:
                await stream.send(b"POST /up HTTP/1.1\r\nHost: server\r\nTransfer-Encoding: chunked\r\n\r\n")
                for at in range(0, len(body), 70_001):
                    piece = body[at : at + 70_001]
                    await stream.send(b"%x\r\n%s\r\n" % (len(piece), piece))
                await stream.send(b"0\r\n\r\n")
            else:
                head = b"POST /up HTTP/1.1\r\nHost: server\r\nContent-Length: %d\r\n\r\n" % len(body)
                await stream.send(head + body)

        group.start_soon(upload)
        answer = await client.read_answer()
        assert answer.body == body


async def test_a_backend_that_does_not_read_stops_the_client() -> None:
    async def stuck(stream: MemoryStream) -> None:
        await anyio.sleep_forever()

    async with anyio.create_task_group() as group, serving(CONFIG, Scripted(group, stuck).dial) as served:
        stream = served.connect()
        taken = 0

        async def upload() -> None:
            nonlocal taken
            await stream.send(b"POST / HTTP/1.1\r\nHost: server\r\nContent-Length: 100000000\r\n\r\n")
            while True:
                await stream.send(bytes(10_000))
                taken += 10_000

        group.start_soon(upload)
        await settle(400)
        assert taken < 4 * PIPE_BYTES
        group.cancel_scope.cancel()


async def test_a_client_that_does_not_read_stops_the_backend() -> None:
    sent = 0

    async def flood(stream: MemoryStream) -> None:
        nonlocal sent
        await stream.receive()
        await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        while True:
            await stream.send(bytes(10_000))
            sent += 10_000

    async with anyio.create_task_group() as group:
        async with serving(CONFIG, Scripted(group, flood).dial) as served:
            await served.connect().send(b"GET / HTTP/1.1\r\nHost: server\r\n\r\n")
            await settle(400)
            assert 0 < sent < 5 * PIPE_BYTES
        group.cancel_scope.cancel()


async def test_pieces_of_a_stream_are_passed_on_as_they_come() -> None:
    proceed = [anyio.Event(), anyio.Event()]

    async def events(stream: MemoryStream) -> None:
        await stream.receive()
        await stream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\none\n\n\r\n")
        await proceed[0].wait()
        await stream.send(b"5\r\ntwo\n\n\r\n0\r\n\r\n")

    async with anyio.create_task_group() as group, serving(CONFIG, Scripted(group, events).dial) as served:
        stream = served.connect()
        client = Client(stream)
        await stream.send(b"GET / HTTP/1.1\r\nHost: server\r\n\r\n")
        await client.read_head()
        assert await client.exactly(10) == b"5\r\none\n\n\r\n"
        proceed[0].set()
        assert await client.exactly(15) == b"5\r\ntwo\n\n\r\n0\r\n\r\n"


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("POST", 502)])
async def test_only_repeatable_requests_survive_a_connection_that_had_died(method: str, status: int) -> None:
    async def once(stream: MemoryStream) -> None:
        await stream.receive()
        await stream.send(OK)
        await stream.receive()  # the next request gets no answer

    async with anyio.create_task_group() as group:
        script = Scripted(group, once)
        async with serving(CONFIG, script.dial) as served:
            client = Client(served.connect())
            assert (await client.get("/")).status == 200
            answer = await client.get("/", method=method)
            assert answer.status == status
            assert len(script.streams) == (2 if status == 200 else 1)


async def test_a_post_takes_no_connection_that_was_idle_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "FRESH_NS", -1)
    async with anyio.create_task_group() as group:
        script = Scripted(group, answer_ok)
        async with serving(CONFIG, script.dial) as served:
            client = Client(served.connect())
            assert (await client.get("/")).status == 200
            assert (await client.get("/", method="POST", body=b"x")).status == 200
            assert len(script.streams) == 2


async def test_a_refused_backend_is_named_with_the_reason() -> None:
    async def refuse(target: ProxyTarget) -> MemoryStream:
        await anyio.lowlevel.checkpoint()
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    async with serving(CONFIG, refuse) as served:
        client = Client(served.connect())
        answer = await client.get("/")
        assert answer.status == 502
        assert b"http://127.0.0.1:3000 cannot be reached: connection refused" in answer.body
        assert (await client.get("/")).status == 502  # the connection lives on


async def test_a_silent_backend_is_a_504(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "WATCH_AFTER_S", 0.0)
    monkeypatch.setattr(proxy, "RESPONSE_TIMEOUT_S", 0.01)

    async def silent(stream: MemoryStream) -> None:
        await anyio.sleep_forever()

    async with anyio.create_task_group() as group, serving(CONFIG, Scripted(group, silent).dial) as served:
        answer = await Client(served.connect()).get("/")
        assert answer.status == 504
        assert b"did not answer within" in answer.body
        group.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["fin", "reset"])
async def test_a_client_that_leaves_takes_the_request_to_the_backend_with_it(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy, "WATCH_AFTER_S", 0.0)
    left = anyio.Event()

    async def wait(stream: MemoryStream) -> None:
        await stream.receive()
        await receive_all(stream)
        left.set()

    async with anyio.create_task_group() as group, serving(CONFIG, Scripted(group, wait).dial) as served:
        stream = served.connect()
        await stream.send(b"GET / HTTP/1.1\r\nHost: server\r\n\r\n")
        await settle()
        if how == "fin":
            await stream.send_eof()
            assert (await Client(stream).read_answer()).status == 502
        else:
            stream.abort()
        with anyio.fail_after(5):
            await left.wait()


async def test_pipelined_requests_are_kept_while_a_slow_backend_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "WATCH_AFTER_S", 0.0)
    proceed = anyio.Event()

    async def slow(stream: MemoryStream) -> None:
        while True:
            await stream.receive()
            await proceed.wait()
            await stream.send(OK)

    async with anyio.create_task_group() as group, serving(CONFIG, Scripted(group, slow).dial) as served:
        stream = served.connect()
        client = Client(stream)
        await stream.send(b"GET /1 HTTP/1.1\r\nHost: server\r\n\r\n")
        await settle()
        await stream.send(b"GET /2 HTTP/1.1\r\nHost: server\r\n\r\n")
        await settle()
        proceed.set()
        assert (await client.read_answer()).body == b"ok"
        assert (await client.read_answer()).body == b"ok"
        assert [entry.target for entry in served.log] == ["/1", "/2"]


async def test_the_body_of_an_upgrade_request_is_never_read_as_a_request() -> None:
    seen: list[bytes] = []

    async def record(stream: MemoryStream) -> None:
        while True:
            seen.append(await stream.receive())
            await stream.send(OK)

    body = b"GET /smuggled HTTP/1.1\r\nHost: server\r\n\r\n"
    async with anyio.create_task_group() as group, serving(CONFIG, Scripted(group, record).dial) as served:
        stream = served.connect()
        client = Client(stream)
        await stream.send(
            b"POST /1 HTTP/1.1\r\nHost: server\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
            b"Content-Length: %d\r\n\r\n%s"
            b"GET /2 HTTP/1.1\r\nHost: server\r\n\r\n" % (len(body), body)
        )
        assert (await client.read_answer()).status == 200
        assert (await client.read_answer()).status == 200
        assert [entry.target for entry in served.log] == ["/1", "/2"]
        assert b"upgrade" not in seen[0].lower()
        assert seen[0].endswith(body)


async def test_bytes_sent_with_the_handshake_reach_the_other_protocol() -> None:
    async def switch(stream: MemoryStream) -> None:
        await stream.receive()
        await stream.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: foo\r\n\r\nhello ")
        while True:
            await stream.send(b"<" + await stream.receive() + b">")

    async with anyio.create_task_group() as group, serving(CONFIG, Scripted(group, switch).dial) as served:
        stream = served.connect()
        client = Client(stream)
        await stream.send(b"GET / HTTP/1.1\r\nHost: server\r\nConnection: upgrade\r\nUpgrade: foo\r\n\r\nearly")
        assert (await client.read_head())[0] == 101
        assert await client.exactly(13) == b"hello <early>"
        await stream.send_eof()
        assert await receive_all(stream) == b""


async def test_an_answer_before_the_end_of_the_body_ends_the_connection() -> None:
    async def early(stream: MemoryStream) -> None:
        await stream.receive()
        await stream.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await receive_all(stream)

    async with anyio.create_task_group() as group, serving(CONFIG, Scripted(group, early).dial) as served:
        stream = served.connect()
        await stream.send(b"POST / HTTP/1.1\r\nHost: server\r\nContent-Length: 1000\r\n\r\nabc")
        answer = await Client(stream).read_answer()
        assert answer.status == 413
        assert answer.fields["connection"] == "close"
