"""The sample programs in apps/ do what they say."""

import importlib.util
from pathlib import Path
from types import ModuleType

import anyio
import pytest

from tsnetpy import Node
from tsnetpy.testing.tailnet import Tailnet

pytestmark = [pytest.mark.anyio, pytest.mark.loopback]

APPS = Path(__file__).parents[2] / "apps"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"app_{name}", APPS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def environment(monkeypatch: pytest.MonkeyPatch, tailnet: Tailnet) -> None:
    monkeypatch.setenv("TS_CONTROL_URL", tailnet.coordinator.url)
    monkeypatch.setenv("TS_AUTHKEY", tailnet.coordinator.create_auth_key())
    monkeypatch.delenv("TS_STATE_DIR", raising=False)


async def test_echo(monkeypatch: pytest.MonkeyPatch) -> None:
    with anyio.fail_after(20):
        async with Tailnet() as tailnet, anyio.create_task_group() as group:
            visitor = await tailnet.node("visitor")
            environment(monkeypatch, tailnet)
            group.start_soon(load("echo").main, "echo")
            await visitor.netmap.wait_for(lambda m: m is not None and m.peer_by_name("echo") is not None)
            async with await visitor.connect_tcp("echo", 7) as stream:
                await stream.send(b"hello")
                assert await stream.receive() == b"hello"
            async with await visitor.create_udp_socket() as socket:
                await socket.sendto(b"hello", "echo", 7)
                assert (await socket.receive())[0] == b"hello"
            group.cancel_scope.cancel()


async def test_hello_web(monkeypatch: pytest.MonkeyPatch) -> None:
    with anyio.fail_after(20):
        async with Tailnet() as tailnet, anyio.create_task_group() as group:
            visitor = await tailnet.node("visitor")
            environment(monkeypatch, tailnet)
            group.start_soon(load("hello_web").main)
            page = b""
            while not page:
                try:
                    page = await fetch(visitor, "hello")
                except OSError:
                    await anyio.sleep(0.01)  # neither known nor listening yet
            assert page.startswith(b"HTTP/1.1 200")
            assert b"Hello from hello." in page
            group.cancel_scope.cancel()


async def test_reverse_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    heads: list[bytes] = []

    async def backend(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            heads.append(await stream.receive())
            await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")

    with anyio.fail_after(20):
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as local,
            Tailnet() as tailnet,
            anyio.create_task_group() as group,
        ):
            visitor = await tailnet.node("visitor", user="bob@example.com")
            environment(monkeypatch, tailnet)
            group.start_soon(local.serve, backend)
            url = f"http://127.0.0.1:{local.extra(anyio.abc.SocketAttribute.local_port)}"
            group.start_soon(load("reverse_proxy").main, "front", url)
            page = b""
            while not page:
                try:
                    page = await fetch(visitor, "front")
                except OSError:
                    await anyio.sleep(0.01)  # neither known nor listening yet
            assert page.endswith(b"hi")
            assert b"bob@example.com" in heads[-1]
            group.cancel_scope.cancel()


async def test_ssh_box(monkeypatch: pytest.MonkeyPatch) -> None:
    with anyio.fail_after(20):
        async with Tailnet() as tailnet, anyio.create_task_group() as group:
            visitor = await tailnet.node("visitor")
            environment(monkeypatch, tailnet)
            group.start_soon(load("ssh_box").main, None)
            banner = b""
            while not banner:
                try:
                    async with await visitor.connect_tcp("box", 22) as stream:
                        banner = await stream.receive()
                except OSError:
                    await anyio.sleep(0.01)
            assert banner.startswith(b"SSH-2.0-")
            group.cancel_scope.cancel()


async def fetch(visitor: Node, host: str) -> bytes:
    """Return the whole answer to a GET for the root of *host*."""
    page = b""
    async with await visitor.connect_tcp(host, 80) as stream:
        await stream.send(b"GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % host.encode())
        async for chunk in stream:
            page += chunk
    return page
