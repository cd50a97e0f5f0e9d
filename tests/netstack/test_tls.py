"""anyio's TLS, and its buffered streams, over our streams: they ask for what any ByteStream must do."""

import ssl

import anyio
import pytest
from anyio import BrokenResourceError, EndOfStream
from anyio.abc import SocketAttribute
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.tls import TLSAttribute, TLSListener, TLSStream

from tests.netstack.kit import Pair, pair
from tsnetpy.base.instant import MILLISECOND
from tsnetpy.crypto.x509 import make_self_signed
from tsnetpy.netstack import tcp
from tsnetpy.netstack.tcp import TcpStream
from tsnetpy.runtime.clock import wall_ns
from tsnetpy.testing.clock import virtual_backend
from tsnetpy.testing.internet import Link

pytestmark = pytest.mark.anyio

Contexts = tuple[ssl.SSLContext, ssl.SSLContext]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return virtual_backend(request.param)


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> Contexts:
    """For the client, which verifies, and for the server."""
    made = make_self_signed(["server.test"], [], 30, wall_ns())
    place = tmp_path_factory.mktemp("tls")
    (place / "pair.pem").write_bytes(made.cert_pem + made.key_pem)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(place / "pair.pem")
    client = ssl.create_default_context(cadata=made.cert_pem.decode())
    for context in (client, server):
        context.set_alpn_protocols(["test"])
    return client, server


async def secured(net: Pair, contexts: Contexts, *, strict: bool = True) -> tuple[TLSStream, TLSStream]:
    """Return the client's and the server's end of a new TLS connection."""
    a, b = await net.connected(443)
    ends: dict[str, TLSStream] = {}

    async def accept() -> None:
        ends["b"] = await TLSStream.wrap(b, server_side=True, ssl_context=contexts[1], standard_compatible=strict)

    async with anyio.create_task_group() as group:
        group.start_soon(accept)
        ends["a"] = await TLSStream.wrap(a, hostname="server.test", ssl_context=contexts[0], standard_compatible=strict)
    return ends["a"], ends["b"]


async def read_all(stream: TLSStream | TcpStream) -> bytes:
    return b"".join([chunk async for chunk in stream])


async def test_handshake_and_attributes(contexts: Contexts) -> None:
    async with pair(Link(delay=5 * MILLISECOND)) as net:
        a, b = await secured(net, contexts)
        assert a.extra(TLSAttribute.tls_version) == "TLSv1.3"
        assert a.extra(TLSAttribute.alpn_protocol) == b.extra(TLSAttribute.alpn_protocol) == "test"
        assert (a.extra(TLSAttribute.server_side), b.extra(TLSAttribute.server_side)) == (False, True)
        assert a.extra(SocketAttribute.remote_address) == b.extra(SocketAttribute.local_address) == ("100.64.0.2", 443)


@pytest.mark.parametrize("loss", [0.0, 0.02])
async def test_big_transfers_both_ways_and_a_clean_end(contexts: Contexts, loss: float) -> None:
    data = b"".join(n.to_bytes(4, "big") for n in range(500_000))
    async with pair(Link(delay=5 * MILLISECOND, loss=loss)) as net:
        a, b = await secured(net, contexts)
        got: dict[str, bytes] = {}

        async def exchange(name: str, stream: TLSStream, size: int) -> None:
            async def send() -> None:
                for start in range(0, len(data), size):
                    await stream.send(data[start : start + size])

            received = bytearray()
            async with anyio.create_task_group() as group:
                group.start_soon(send)
                while len(received) < len(data):
                    received += await stream.receive(size)
            got[name] = bytes(received)

        async with anyio.create_task_group() as group:
            group.start_soon(exchange, "a", a, 100_000)
            group.start_soon(exchange, "b", b, 7_001)
        assert got == {"a": data, "b": data}
        async with anyio.create_task_group() as group:  # close_notify goes both ways
            group.start_soon(a.aclose)
            with pytest.raises(EndOfStream):
                await b.receive()
            await b.aclose()


@pytest.mark.parametrize("strict", [True, False])
async def test_an_end_without_close_notify(contexts: Contexts, strict: bool) -> None:
    """Truncation must be visible to who asks for it (RFC 8446 §6.1)."""
    async with pair() as net:
        a, b = await secured(net, contexts, strict=strict)
        await a.send(b"cut ")
        await a.transport_stream.send_eof()
        assert await b.receive() == b"cut "
        with pytest.raises(BrokenResourceError if strict else EndOfStream):
            await b.receive()


async def test_a_reset_is_broken_in_both_directions(contexts: Contexts) -> None:
    async with pair() as net:
        a, b = await secured(net, contexts)
        below = a.transport_stream
        assert isinstance(below, TcpStream)
        below.abort()
        with pytest.raises(BrokenResourceError):
            await b.receive()
        with pytest.raises(BrokenResourceError):
            await b.send(b"x")


async def test_no_half_close_but_back_to_plain(contexts: Contexts) -> None:
    async with pair() as net:
        a, b = await secured(net, contexts)
        with pytest.raises(NotImplementedError):
            await a.send_eof()
        async with anyio.create_task_group() as group:
            group.start_soon(b.unwrap)
            plain, left = await a.unwrap()
        assert left == b""
        await plain.send(b"plain again")
        await plain.send_eof()
        assert await read_all(b.transport_stream) == b"plain again"  # type: ignore[arg-type]


async def test_a_handshake_that_fails_breaks_both_ends(contexts: Contexts) -> None:
    async with pair() as net:
        a, b = await net.connected()
        failures: list[type[Exception]] = []

        async def accept() -> None:
            try:
                await TLSStream.wrap(b, server_side=True, ssl_context=contexts[1])
            except (BrokenResourceError, ssl.SSLError) as error:
                failures.append(type(error))
                await b.aclose()

        async with anyio.create_task_group() as group:
            group.start_soon(accept)
            with pytest.raises(ssl.SSLCertVerificationError):
                await TLSStream.wrap(a, hostname="other.test", ssl_context=contexts[0])
            await a.aclose()
        assert len(failures) == 1


async def test_a_tls_listener_over_our_listener(contexts: Contexts) -> None:
    """A client that never speaks is cut off after the handshake's time; others are served meanwhile."""
    async with pair() as net:
        listener = TLSListener(tcp.listen(net.b.pump, 443), contexts[1], handshake_timeout=10)

        async def shout(stream: TLSStream) -> None:
            async with stream:
                await stream.send((await stream.receive()).upper())

        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, shout)
            silent = await tcp.connect(net.a.pump, net.b.at(443))
            async with await TLSStream.wrap(
                await tcp.connect(net.a.pump, net.b.at(443)), hostname="server.test", ssl_context=contexts[0]
            ) as stream:
                await stream.send(b"hello")
                assert await stream.receive() == b"HELLO"
            started = anyio.current_time()
            with pytest.raises((EndOfStream, BrokenResourceError)):
                await silent.receive()
            assert anyio.current_time() - started <= 10
            group.cancel_scope.cancel()
        assert listener.listener.extra(SocketAttribute.local_port) == 443
        await listener.aclose()


async def test_a_cancelled_handshake_can_be_dropped(contexts: Contexts) -> None:
    async with pair() as net:
        a, b = await net.connected()
        with anyio.move_on_after(1) as scope:
            await TLSStream.wrap(a, hostname="server.test", ssl_context=contexts[0])
        assert scope.cancelled_caught
        await anyio.aclose_forcefully(a)
        await anyio.aclose_forcefully(b)
        with anyio.fail_after(300):
            while net.a.pump.sockets or net.b.pump.sockets:  # noqa: ASYNC110 - virtual time
                await anyio.sleep(1)


async def test_buffered_reading() -> None:
    async with pair() as net:
        a, b = await net.connected()
        reader = BufferedByteReceiveStream(b)
        await a.send(b"first line\nand 10 more")
        assert await reader.receive_until(b"\n", 100) == b"first line"
        assert await reader.receive_exactly(11) == b"and 10 more"
        await a.send(b"short")
        await a.send_eof()
        with pytest.raises(anyio.IncompleteRead):
            await reader.receive_exactly(6)
