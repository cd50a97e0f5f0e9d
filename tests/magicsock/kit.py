"""A DERP and STUN server on loopback, and nodes that record what they were delivered."""

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import anyio
from anyio.abc import ByteStream
from anyio.streams.tls import TLSListener

from tsnetpy.base.addr import Endpoint
from tsnetpy.base.entropy import SystemEntropy
from tsnetpy.base.errors import DecodeError
from tsnetpy.base.instant import Instant
from tsnetpy.base.packet import Buffer, TxBatch
from tsnetpy.crypto import dh
from tsnetpy.derp.regions import DerpMap, DerpNode, DerpRegion
from tsnetpy.derp.server import DerpServer
from tsnetpy.disco import stun
from tsnetpy.magicsock import MagicSock
from tsnetpy.runtime.clock import monotonic_ns
from tsnetpy.runtime.queues import Kick
from tsnetpy.runtime.udp import UdpPort
from tsnetpy.runtime.underlay import PathId, UnderlayConfig, UnderlayPeer

REGION = 900
WIREGUARD = b"\x04\0\0\0"


class Relay:
    """DERP over plain TCP or TLS, and STUN."""

    def __init__(self) -> None:
        self.engine = DerpServer(dh.generate(SystemEntropy()), SystemEntropy())
        self.port = 0
        self.stun_port = 0
        self.streams: list[ByteStream] = []
        self.stun_requests = 0

    def derp_map(self, cert_name: str = "", *, plain: bool = True, insecure: bool = False) -> DerpMap:
        node = DerpNode(
            name="900a",
            region_id=REGION,
            host_name="127.0.0.1",
            cert_name=cert_name,
            ipv4="127.0.0.1",
            ipv6="none",
            stun_port=self.stun_port,
            derp_port=self.port,
            insecure_for_tests=insecure,
            plain_http=plain,
        )
        return DerpMap({REGION: DerpRegion(REGION, "test", "test", (node,))})

    async def drop_everybody(self) -> None:
        for stream in self.streams:
            await anyio.aclose_forcefully(stream)
        self.streams.clear()

    async def serve(self, stream: ByteStream) -> None:
        head = b""
        async with stream:
            try:
                while b"\r\n\r\n" not in head:
                    head += await stream.receive()
                await stream.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n")
                await self._serve_frames(stream)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                return

    async def _serve_frames(self, stream: ByteStream) -> None:
        connection = self.engine.accept(monotonic_ns())
        kick = Kick()
        connection.owner = kick
        self.streams.append(stream)

        async def write() -> None:
            while not connection.closed_reason:
                data = connection.data_to_send()
                if data:
                    await stream.send(data)
                else:
                    await kick.wait()

        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(write)
                try:
                    while not connection.closed_reason:
                        connection.receive_data(await stream.receive(), monotonic_ns())
                        self._wake()
                except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                    pass
                tasks.cancel_scope.cancel()
        finally:
            connection.close()
            self._wake()

    def _wake(self) -> None:
        for ready in self.engine.take_ready():
            if isinstance(ready.owner, Kick):
                ready.owner.kick()

    async def serve_stun(self, port: UdpPort) -> None:
        sock = port.v4
        assert sock is not None
        while True:
            await sock.wait_readable()
            for batch in sock.receive():
                try:
                    txid = stun.decode_request(batch.data)
                except DecodeError:
                    continue
                self.stun_requests += 1
                answer = stun.encode_response(txid, batch.source, v4_mapped=True)
                port.send(answer, len(answer), batch.source)


@asynccontextmanager
async def running_relay(context: ssl.SSLContext | None = None) -> AsyncIterator[Relay]:
    relay = Relay()
    stun_port = UdpPort.open(ipv6=False)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    relay.port = listener.extra(anyio.abc.SocketAttribute.local_port)
    assert stun_port.v4 is not None
    relay.stun_port = stun_port.v4.port
    try:
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(relay.serve_stun, stun_port)
            if context is None:
                tasks.start_soon(listener.serve, relay.serve)
            else:
                tasks.start_soon(TLSListener(listener, context, standard_compatible=False).serve, relay.serve)
            yield relay
            tasks.cancel_scope.cancel()
    finally:
        stun_port.close()


class TestNode:
    """A MagicSock with a key, and what came out of it."""

    __test__ = False

    def __init__(self, *, udp: bool = True) -> None:
        self.private = dh.generate(SystemEntropy())
        self.public = dh.public_key(self.private)
        self.sock = MagicSock(udp=udp, ipv6=False)
        self.received: list[tuple[bytes, PathId]] = []
        self._arrived = Kick()

    def deliver(self, batch: Sequence[Buffer], path: PathId, now: Instant) -> None:
        self.received += [(bytes(data), path) for data in batch]
        self._arrived.kick()

    def configure(self, derp_map: DerpMap, *peers: "TestNode", disco: bool = True, endpoints: bool = True) -> None:
        self.sock.configure(
            UnderlayConfig(
                self.private,
                tuple(
                    UnderlayPeer(
                        peer.public,
                        peer.sock.disco_public if disco else None,
                        (peer.loopback,) if endpoints and peer.sock.local_port else (),
                        REGION if disco else 0,
                    )
                    for peer in peers
                ),
                derp_map,
            )
        )

    @property
    def loopback(self) -> Endpoint:
        return Endpoint(bytes((127, 0, 0, 1)), self.sock.local_port)

    async def wait_received(self, count: int) -> list[tuple[bytes, PathId]]:
        with anyio.fail_after(10):
            while len(self.received) < count:
                await self._arrived.wait()
        return self.received

    def send(self, peer: "TestNode", text: bytes, count: int = 1) -> None:
        one = (WIREGUARD + text).ljust(64, b".")
        self.sock.send(peer.public, TxBatch(one * count, len(one)))


def text_of(data: bytes) -> bytes:
    return data[4:].rstrip(b".")


@asynccontextmanager
async def running_nodes(*nodes: TestNode) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        for node in nodes:
            await tasks.start(partial(node.sock.run, node.deliver))
        yield
        tasks.cancel_scope.cancel()


async def wait_home(*nodes: TestNode) -> None:
    with anyio.fail_after(10):
        for node in nodes:
            await node.sock.state.wait_for(lambda state: state.home_derp == REGION)


async def wait_connected(relay: Relay, *nodes: TestNode) -> None:
    with anyio.fail_after(10):
        for node in nodes:
            while not relay.engine.is_connected(node.public):  # noqa: ASYNC110 - the engine has no event for it
                await anyio.sleep(0.01)


__all__ = [
    "REGION",
    "WIREGUARD",
    "Relay",
    "TestNode",
    "running_nodes",
    "running_relay",
    "text_of",
    "wait_connected",
    "wait_home",
]
