"""A client that sends without end meets a handler that does not read: what waits stays in the kernel."""

import hashlib
import socket

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from tsnetpy.runtime.accepted import hold_reading

pytestmark = [pytest.mark.anyio, pytest.mark.loopback]

BLOCK = bytes(range(256)) * 256
FAR_TOO_MUCH = 64 << 20


def push(client: socket.socket) -> int:
    """Send blocks until the kernel takes no more; return how many bytes that were."""
    sent = 0
    try:
        while sent < FAR_TOO_MUCH:
            sent += client.send(BLOCK[sent % len(BLOCK) :])
    except BlockingIOError:
        pass
    return sent


async def test_nothing_is_read_ahead_and_nothing_is_lost() -> None:
    reading = anyio.Event()
    digest = hashlib.sha256()
    got = 0

    async def handle(stream: SocketStream) -> None:
        nonlocal got
        hold_reading(stream)
        async with stream:
            await reading.wait()
            async for piece in stream:
                digest.update(piece)
                got += len(piece)
        group.cancel_scope.cancel()

    with anyio.fail_after(20), socket.socket() as client:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        async with listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, handle)
            client.connect(("127.0.0.1", listener.extra(SocketAttribute.local_port)))
            client.setblocking(False)
            sent = push(client)
            for _ in range(200):  # turns of the loop, in which a transport would go on reading
                await anyio.lowlevel.checkpoint()
                sent += push(client)
            assert sent < FAR_TOO_MUCH // 2
            client.shutdown(socket.SHUT_WR)
            reading.set()
    whole = BLOCK * (sent // len(BLOCK) + 1)
    assert got == sent
    assert digest.digest() == hashlib.sha256(whole[:sent]).digest()


async def test_other_streams_are_left_alone() -> None:
    hold_reading(object())
