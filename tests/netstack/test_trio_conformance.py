"""trio's own stream conformance suite, over an adapter from anyio's names to trio's."""

import operator
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import pytest
import trio
from trio.testing import check_half_closeable_stream

from tests.netstack.kit import pair
from tsnetpy.netstack.tcp import TcpStream
from tsnetpy.tcp import TcpConfig
from tsnetpy.testing.clock import virtual_backend

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return virtual_backend("trio")


@contextmanager
def trio_errors() -> Iterator[None]:
    try:
        yield
    except anyio.ClosedResourceError as error:
        raise trio.ClosedResourceError from error
    except anyio.BrokenResourceError as error:
        raise trio.BrokenResourceError from error
    except anyio.BusyResourceError as error:
        raise trio.BusyResourceError from error


class TrioStream(trio.abc.HalfCloseableStream):
    """A :class:`TcpStream` with trio's names."""

    def __init__(self, stream: TcpStream) -> None:
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with trio_errors():
            await self._stream.send(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        with trio_errors():
            await self._stream.wait_writable()

    async def send_eof(self) -> None:
        with trio_errors():
            await self._stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        with trio_errors():
            try:
                return await self._stream.receive(65536 if max_bytes is None else operator.index(max_bytes))
            except anyio.EndOfStream:
                return b""

    async def aclose(self) -> None:
        await self._stream.aclose()


async def test_half_closeable_stream() -> None:
    small = TcpConfig(rcv_buf=16384, rcv_buf_max=16384, snd_buf=16384, snd_buf_max=16384)
    async with pair(tcp_config=small) as net:

        async def make() -> tuple[TrioStream, TrioStream]:
            a, b = await net.connected()
            return TrioStream(a), TrioStream(b)

        async def clogged() -> tuple[TrioStream, TrioStream]:
            a, b = await net.connected()
            await clog(a)
            await clog(b)
            return TrioStream(a), TrioStream(b)

        await check_half_closeable_stream(make, clogged)


async def clog(stream: TcpStream) -> None:
    """Send until nothing more is taken, nor will be when the last delayed ACK has come."""
    while True:
        with anyio.move_on_after(0.06) as scope:
            await stream.send(bytes(1024))
        if scope.cancelled_caught and not stream._socket.send_space:
            return
