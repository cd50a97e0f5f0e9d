"""Blocking calls that may be left behind, and connections to names."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import anyio
import pytest

from tsnetpy.runtime import threads
from tsnetpy.runtime.dial import connect_tcp, look_up

pytestmark = pytest.mark.anyio


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


async def test_results_and_failures_come_back() -> None:
    assert await threads.run_blocking(int, "7", abandon=True) == 7
    with pytest.raises(ValueError, match="seven"):
        await threads.run_blocking(int, "seven", abandon=True)


async def test_cancellation_leaves_the_call_behind(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    with anyio.move_on_after(0.05) as scope:
        await threads.run_blocking(os.read, reader, 1, abandon=True)
    assert scope.cancelled_caught
    left = [thread for thread in threading.enumerate() if thread.name == "tsnetpy-blocking"]
    assert left
    os.write(writer, b"x")
    for thread in left:
        thread.join(5)
        assert not thread.is_alive()


async def test_calls_that_hang_are_bounded(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    with anyio.move_on_after(0.2):
        async with anyio.create_task_group() as group:
            for _ in range(threads.MAX_LEFT_BEHIND):
                group.start_soon(_read_left_behind, reader)
            await anyio.sleep(0.1)
            with pytest.raises(OSError, match="hang"):
                await threads.run_blocking(int, "7", abandon=True)
    os.write(writer, bytes(threads.MAX_LEFT_BEHIND))
    for thread in threading.enumerate():
        if thread.name == "tsnetpy-blocking":
            thread.join(5)
    assert await threads.run_blocking(int, "7", abandon=True) == 7


async def _read_left_behind(reader: int) -> None:
    await threads.run_blocking(os.read, reader, 1, abandon=True)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_hanging_call_does_not_keep_the_process(backend: str) -> None:
    code = f"""
import anyio, time
from tsnetpy.runtime.threads import run_blocking
async def main():
    with anyio.move_on_after(0.1):
        await run_blocking(time.sleep, 60, abandon=True)
anyio.run(main, backend={backend!r})
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=20, check=False).returncode == 0


async def test_a_name_that_cannot_be_is_an_os_error() -> None:
    for name in ("a" * 64 + ".test", "a..b"):
        with pytest.raises(OSError, match="no host name"):
            await look_up(name, 80)


@pytest.mark.loopback
async def test_addresses_of_a_name_are_raced(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def getaddrinfo(host: str, port: int, family: int, kind: int) -> list[tuple[object, ...]]:
            assert host == "server.test"
            ips = ("::1", "127.0.0.2", "127.0.0.1") if server.fileno() >= 0 else ()
            return [(0, 0, 0, "", (ip, port)) for ip in ips]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        async with await connect_tcp("server.test", port) as stream:
            assert stream.extra(anyio.abc.SocketAttribute.remote_address) == ("127.0.0.1", port)
    with pytest.raises(OSError, match="no address"):
        await connect_tcp("server.test", port)


@pytest.mark.loopback
async def test_all_addresses_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda *_: [(0, 0, 0, "", (ip, port)) for ip in ("127.0.0.1", "127.0.0.2")]
        )
        with pytest.raises(OSError, match=r".") as caught:
            await connect_tcp("server.test", port)
    assert isinstance(caught.value.__cause__ or caught.value, OSError)
