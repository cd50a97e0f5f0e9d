"""Ports handed through the tunnel, both ways, and the command line around it."""

import base64
import json
import pathlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio
import pytest
from anyio.abc import ByteStream

from tests.wireguard.kit import IPS, IPS6, pair
from tsnetpy.base.errors import ConfigError
from tsnetpy.cli.main import main
from tsnetpy.netstack.udp import UdpSocket
from tsnetpy.wireguard import (
    Forward,
    HostPort,
    WireGuardNode,
    forward_tcp,
    forward_udp,
    parse_forward,
    reverse_tcp,
    reverse_udp,
)


@pytest.mark.parametrize(
    ("text", "listen", "target"),
    [
        ("8080:10.0.0.2:80", HostPort("", 8080), HostPort("10.0.0.2", 80)),
        ("0.0.0.0:8080:web.example:80", HostPort("0.0.0.0", 8080), HostPort("web.example", 80)),
        ("[::1]:8080:[fd00::2]:80", HostPort("::1", 8080), HostPort("fd00::2", 80)),
        ("8080:[fd00::2]:80", HostPort("", 8080), HostPort("fd00::2", 80)),
    ],
)
def test_forwards(text: str, listen: HostPort, target: HostPort) -> None:
    assert parse_forward(text) == Forward(listen, target)


@pytest.mark.parametrize(
    "text", ["", "80", "80:host", "80:host:x", "0:host:80", "80:fd00::2:80", "a:b:c:d:e", "80:[x]:1"]
)
def test_forwards_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="is no forward"):
        parse_forward(text)


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def joined() -> AsyncIterator[tuple[WireGuardNode, WireGuardNode, anyio.abc.TaskGroup]]:
    with anyio.fail_after(20):
        async with pair() as (a, b), anyio.create_task_group() as group:
            yield a, b, group
            group.cancel_scope.cancel()


async def shout(stream: ByteStream) -> None:
    """Read to the end, then answer in capitals: the half-close has to pass."""
    async with stream:
        data = b""
        async for piece in stream:
            data += piece
        await stream.send(data.upper())


async def ask(stream: ByteStream, data: bytes) -> bytes:
    async with stream:
        await stream.send(data)
        await stream.send_eof()
        got = b""
        async for piece in stream:
            got += piece
        return got


@pytest.mark.anyio
@pytest.mark.loopback
@pytest.mark.parametrize("family", [IPS, IPS6], ids=["v4", "v6"])
async def test_tcp_in_and_out_of_the_tunnel(family: list[str]) -> None:
    """Host -> a -> tunnel -> b -> host, with many bytes and an end that goes first."""
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as server, joined() as (a, b, group):
        group.start_soon(server.serve, shout)
        port = server.extra(anyio.abc.SocketAttribute.local_port)
        await group.start(reverse_tcp, b, Forward(HostPort("", 80), HostPort("127.0.0.1", port)))
        where = await group.start(forward_tcp, a, Forward(HostPort("", free_port()), HostPort(family[1], 80)))
        for _ in range(3):
            got = await ask(await anyio.connect_tcp(*where), b"hello" * 200_000)
            assert got == b"HELLO" * 200_000


@pytest.mark.anyio
@pytest.mark.loopback
async def test_a_target_that_refuses_ends_that_connection_only() -> None:
    async with joined() as (a, b, group):
        await group.start(reverse_tcp, b, Forward(HostPort("", 80), HostPort("127.0.0.1", free_port())))
        listen = free_port()
        for port, target in ((listen, 80), (free_port(), 81)):
            where = await group.start(forward_tcp, a, Forward(HostPort("", port), HostPort(IPS[1], target)))
            for _ in range(2):
                stream = await anyio.connect_tcp(*where)
                with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                    await stream.receive()
                await stream.aclose()
        with pytest.raises(ConfigError, match="cannot be opened"):
            await forward_tcp(a, Forward(HostPort("", listen), HostPort(IPS[1], 80)))


@pytest.mark.anyio
@pytest.mark.loopback
async def test_udp_in_and_out_of_the_tunnel() -> None:
    """Two clients keep their answers apart."""
    async with await anyio.create_udp_socket(local_host="127.0.0.1") as server, joined() as (a, b, group):

        async def serve() -> None:
            async for data, (host, port) in server:
                await server.sendto(data.upper(), host, port)

        group.start_soon(serve)
        port = server.extra(anyio.abc.SocketAttribute.local_port)
        await group.start(reverse_udp, b, Forward(HostPort("", 53), HostPort("127.0.0.1", port)))
        listen = HostPort("", free_port(socket.SOCK_DGRAM))
        where = await group.start(forward_udp, a, Forward(listen, HostPort(IPS[1], 53)))
        clients = [await anyio.create_connected_udp_socket(*where) for _ in range(2)]
        for number in range(3):
            for name, client in zip("xy", clients):
                await client.send(f"{name}{number}".encode())
        for name, client in zip("XY", clients):
            assert [await client.receive() for _ in range(3)] == [f"{name}{n}".encode() for n in range(3)]
            await client.aclose()


@pytest.mark.anyio
@pytest.mark.loopback
async def test_udp_flows_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsnetpy.wireguard.forward.MAX_FLOWS", 2)
    async with joined() as (a, b, group):
        theirs: UdpSocket = await b.create_udp_socket(53)
        listen = HostPort("", free_port(socket.SOCK_DGRAM))
        where = await group.start(forward_udp, a, Forward(listen, HostPort(IPS[1], 53)))
        clients = [await anyio.create_connected_udp_socket(*where) for _ in range(3)]
        sources = []
        for client in clients:
            await client.send(b"x")
            sources.append((await theirs.receive())[1])
        assert len(set(sources)) == 3
        await anyio.wait_all_tasks_blocked()
        await theirs.sendto(b"late", *sources[0])  # its flow is gone, the others' are not
        for client, source in zip(clients[1:], sources[1:]):
            await theirs.sendto(b"y", *source)
            assert await client.receive() == b"y"
        for client in clients:
            await client.aclose()


@contextmanager
def quick_file(directory: str, text: str) -> Iterator[str]:
    path = f"{directory}/wg0.conf"
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    yield path


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        ("[Interface]\nPrivateKey = x\n", [], "wg0.conf:2: PrivateKey"),
        ("[Interface]\n", ["--forward", "nonsense"], "'nonsense' is no forward"),
    ],
)
def test_the_command_tells_what_is_wrong(
    tmp_path: object, capsys: pytest.CaptureFixture[str], text: str, arguments: list[str], words: str
) -> None:
    with quick_file(str(tmp_path), text) as path:
        assert main(["wg", path, "--json", *arguments]) == 2
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["event"] == "error"
    assert words in told["message"]


def test_a_file_that_others_may_read_is_said(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = base64.b64encode(bytes(range(32))).decode()
    text = f"[Interface]\nPrivateKey = {key}\nAddress = 10.0.0.1/32\n"
    with quick_file(str(tmp_path), text) as path:
        pathlib.Path(path).chmod(0o644)
        # An address that is not of this host, so that it ends.
        assert main(["wg", path, "--json", "--forward", "198.51.100.77:8080:10.0.0.2:80"]) == 2
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["event"] for each in told] == ["warning", "error"]
    assert told[0]["message"] == f"other users may read {path}, which holds a private key"
    assert key not in json.dumps(told)
