"""Serve in front of a backend that is not there, does not answer, or talks nonsense: the client is told which.

The 504 after five minutes of silence is tested on virtual time in ``tests/serve``.
"""

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
import pytest
from anyio.abc import SocketAttribute, SocketStream

from tests.loopback.kit import PROMISE_S, Bench, Box
from tsnetpy.node.node import Node

pytestmark = [pytest.mark.anyio, pytest.mark.loopback]

Handler = Callable[[SocketStream], Awaitable[None]]


@asynccontextmanager
async def backend(handler: Handler) -> AsyncIterator[int]:
    """Run a backend; yield its port."""

    async def serve(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            await handler(stream)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        yield listener.extra(SocketAttribute.local_port)
        group.cancel_scope.cancel()


async def fetch(node: Node, host: str) -> bytes:
    """Return the whole answer to a GET."""
    answer = b""
    async with await node.connect_tcp(host, 80) as stream:
        await stream.send(f"GET /page HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        async for data in stream:
            answer += data
    return answer


async def hang_up(stream: SocketStream) -> None:
    await stream.aclose()


async def talk_nonsense(stream: SocketStream) -> None:
    await stream.send(b"SSH-2.0-OpenSSH_9.2\r\n" + bytes(200))


async def break_off(stream: SocketStream) -> None:
    await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf of it")


async def answer_well(stream: SocketStream) -> None:
    await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nfine")


async def test_what_a_client_hears_of_a_bad_backend(bench: Bench, box: Box) -> None:
    handlers: list[Handler] = [hang_up]

    async def handle(stream: SocketStream) -> None:
        await handlers[0](stream)

    with anyio.fail_after(30):
        async with backend(handle) as port:
            program = bench.start("tsnetpy.serve", str(port), "--hostname", "web", "--json", env=box.env())
            event = await anyio.to_thread.run_sync(program.wait_event, "running")
            url = f"http://127.0.0.1:{port}"
            async with Node("client", control_url=box.url, auth_key=box.key()) as node:
                for handler, status, words in (
                    (hang_up, 502, "closed the connection without a response"),
                    (talk_nonsense, 502, "sent no valid HTTP response"),
                    (answer_well, 200, "fine"),
                ):
                    handlers[0] = handler
                    head, _, body = (await fetch(node, event["name"])).decode("latin-1").partition("\r\n\r\n")
                    assert head.split()[1] == str(status), body
                    assert words in body
                    assert status == 200 or f"the backend {url} " in body
                handlers[0] = break_off
                answer = await fetch(node, event["name"])
                assert answer.startswith(b"HTTP/1.1 200 ")
                assert answer.endswith(b"half of it"), "the connection ends where the body breaks off"
                assert len(program.err) == 0
    requests = [event for event in program.events if event["event"] == "request"]
    assert [event["status"] for event in requests] == [502, 502, 200, 200]
    assert all(event["error"] for event in requests if event["status"] == 502)
    assert requests[-1]["error"]


async def test_a_backend_that_comes_up_later(bench: Bench, box: Box) -> None:
    async with backend(answer_well) as port:
        pass
    with anyio.fail_after(30):
        program = bench.start("tsnetpy.serve", str(port), "--hostname", "late", env=box.env())
        await anyio.to_thread.run_sync(program.wait_text, "Ctrl-C ends it.")
        async with Node("client", control_url=box.url, auth_key=box.key()) as node:
            name = next(word for word in program.err.split() if word.startswith("http://late")).split("/")[2]
            answer = await fetch(node, name)
            assert answer.startswith(b"HTTP/1.1 502 ")
            assert f"the backend http://127.0.0.1:{port} cannot be reached: connection refused".encode() in answer
            async with await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port) as listener:

                async def serve(stream: SocketStream) -> None:
                    async with stream:
                        await stream.receive()
                        await answer_well(stream)

                async with anyio.create_task_group() as group:
                    group.start_soon(listener.serve, serve)
                    assert (await fetch(node, name)).endswith(b"fine")
                    group.cancel_scope.cancel()
        assert '"GET /page HTTP/1.1" 502' in program.err or '"GET /page" 502' in program.err


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_silent_backend_holds_neither_the_client_nor_the_end(bench: Bench, box: Box) -> None:
    asked, left = anyio.Event(), anyio.Event()

    async def be_silent(stream: SocketStream) -> None:
        asked.set()
        try:
            await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            left.set()

    with anyio.fail_after(30):
        async with backend(be_silent) as port:
            program = bench.start("tsnetpy.serve", str(port), "--hostname", "slow", "--json", env=box.env())
            event = await anyio.to_thread.run_sync(program.wait_event, "running")
            async with Node("client", control_url=box.url, auth_key=box.key()) as node:
                with anyio.move_on_after(0.5):
                    await fetch(node, event["name"])
                await asked.wait()
                await left.wait()  # the request goes when its client goes
                asked = anyio.Event()
                async with anyio.create_task_group() as group:
                    group.start_soon(fetch, node, event["name"])
                    await asked.wait()
                    code, seconds = await anyio.to_thread.run_sync(program.signal, signal.SIGINT)
                    assert code == 130
                    assert seconds < PROMISE_S
                    # The client does not wait for ever either: its connection has ended.
