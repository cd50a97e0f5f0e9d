"""One HTTP/1.1 request over a stream, and upgrades with bytes behind the answer."""

import contextlib

import anyio
import pytest

from tests.control.kit import MemoryStream, read_head, stream_pair
from tsnetpy.base.errors import RemoteProtocolError
from tsnetpy.runtime import http1

pytestmark = pytest.mark.anyio


async def answer(stream: MemoryStream, *pieces: bytes, close: bool = True) -> tuple[str, dict[str, str], bytes]:
    head = await read_head(stream)
    with contextlib.suppress(anyio.BrokenResourceError):  # the client has seen enough
        for piece in pieces:
            await stream.send(piece)
    if close:
        await stream.aclose()
    return head


async def test_a_request_and_its_answer_in_pieces() -> None:
    near, far = stream_pair()
    async with anyio.create_task_group() as group:
        group.start_soon(answer, far, b"HTTP/1.1 200 OK\r\nX-Te", b"st: a\r\nContent-Length: 5\r\n\r\nhe", b"llo")
        got = await http1.request(near, "GET", "/key?v=1", host="h:80")
    assert (got.status, got.body, got.header("X-TEST"), got.header("none")) == (200, b"hello", "a", "")


async def test_what_is_sent() -> None:
    near, far = stream_pair()
    async with anyio.create_task_group() as group:
        heads: list[tuple[str, dict[str, str], bytes]] = []

        async def serve() -> None:
            heads.append(await answer(far, b"HTTP/1.1 204 No Content\r\n\r\n"))

        group.start_soon(serve)
        got = await http1.request(near, "POST", "/p", host="h", headers=[("X-A", "b")], body=b"body")
    line, headers, rest = heads[0]
    assert line == "POST /p HTTP/1.1"
    assert headers == {"host": "h", "connection": "close", "x-a": "b", "content-length": "4"}
    assert rest == b"body"
    assert got.status == 204


async def test_an_answer_to_head_has_no_body() -> None:
    near, far = stream_pair()
    async with anyio.create_task_group() as group:
        group.start_soon(answer, far, b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
        assert (await http1.request(near, "HEAD", "/", host="h")).body == b""


async def test_a_body_that_ends_with_the_connection() -> None:
    near, far = stream_pair()
    async with anyio.create_task_group() as group:
        group.start_soon(answer, far, b"HTTP/1.1 200 OK\r\n\r\nabc")
        assert (await http1.request(near, "GET", "/", host="h")).body == b"abc"


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100001\r\n\r\n" + bytes(100001),
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20000,
    ],
)
async def test_broken_answers(reply: bytes) -> None:
    near, far = stream_pair()
    async with anyio.create_task_group() as group:
        group.start_soon(answer, far, reply)
        with pytest.raises(RemoteProtocolError):
            await http1.request(near, "GET", "/", host="h")
        await near.aclose()


async def test_an_upgrade_keeps_what_follows() -> None:
    near, far = stream_pair()
    async with anyio.create_task_group() as group:
        heads: list[tuple[str, dict[str, str], bytes]] = []
        reply = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: upgrade\r\n\r\n\x01\x02after"

        async def serve() -> None:
            heads.append(await answer(far, reply, close=False))

        group.start_soon(serve)
        got, leftover = await http1.upgrade(near, "/derp", host="h", protocol="derp", headers=[("X-Y", "z")])
    assert got.status == 101
    assert leftover == b"\x01\x02after"
    line, headers, rest = heads[0]
    assert line == "GET /derp HTTP/1.1"
    assert headers == {"host": "h", "upgrade": "derp", "connection": "upgrade", "x-y": "z"}
    assert rest == b""


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "404"),
        (b"HTTP/1.1 101 X\r\nUpgrade: other\r\nConnection: upgrade\r\n\r\n", "other"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "closed"),
        (b"", "closed"),
    ],
)
async def test_refused_upgrades(reply: bytes, says: str) -> None:
    near, far = stream_pair()
    async with anyio.create_task_group() as group:
        group.start_soon(answer, far, reply)
        with pytest.raises(RemoteProtocolError, match=says):
            await http1.upgrade(near, "/x", host="h", protocol="p", method="POST")
