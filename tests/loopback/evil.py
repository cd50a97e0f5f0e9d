"""A coordination server that breaks the protocol in a chosen way and place, on a loopback port or in memory.

Up to the chosen place it is honest: it is made of the same engines as our coordinator.
"""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import ByteStream, SocketAttribute, TaskGroup

from tests.control.kit import ACCEPT, CHALLENGE, MemoryStream, read_head, self_node, stream_pair
from tsnetpy.base.entropy import SystemEntropy
from tsnetpy.base.errors import RemoteProtocolError
from tsnetpy.base.keys import MachinePublic
from tsnetpy.crypto import dh
from tsnetpy.runtime.http2 import Http2Request, serve_http2
from tsnetpy.runtime.noise_stream import NoiseStream
from tsnetpy.tailcfg import MapRequest, MapResponse, RegisterRequest, RegisterResponse, decode, encode
from tsnetpy.tailcfg.register import ServerKeys
from tsnetpy.ts2021.framing import MapFrameWriter
from tsnetpy.ts2021.server import ServerEngine

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\r\n"
NOISE = bytes(range(256))


class EvilServer:
    """One server, one way of being evil: ``"<place> <what>"``, or ``"good"``.

    Attributes:
        mode: may be changed while it runs.
        registers, maps: decoded requests in order of arrival.
        hold: a registration is answered only once this is set, if it is there.
        url: what to join.
    """

    def __init__(self) -> None:
        self.mode = "good"
        self.private = dh.generate(SystemEntropy())
        self.registers: list[RegisterRequest] = []
        self.maps: list[MapRequest] = []
        self.streams: list[Http2Request] = []
        self.hold: anyio.Event | None = None
        self.url = ""

    async def serve(self, stream: ByteStream) -> None:
        """Serve one connection."""
        try:
            await self._serve(stream)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, RemoteProtocolError, OSError):
            return  # the victim has had enough
        finally:
            await anyio.aclose_forcefully(stream)

    async def _serve(self, stream: ByteStream) -> None:
        mode = self.mode
        if mode == "tcp hangs up":
            return
        line, headers, rest = await read_head(stream)
        place, _, what = mode.partition(" ")
        if place in ("tcp", "http"):
            await self._bad_http(stream, what)
        elif line.startswith("GET /key"):
            await self._key(stream, what if place == "key" else "")
        elif place == "switch":
            await self._bad_switch(stream, what)
        else:
            await stream.send(SWITCH)
            initiation = base64.b64decode(headers["x-tailscale-handshake"])
            engine = ServerEngine(self.private, initiation, dh.generate(SystemEntropy()))
            noise = await NoiseStream.accept(stream, engine, challenge=CHALLENGE, leftover=rest)
            if place == "noise":
                await noise.send({"garbage": NOISE * 8, "hangs up": b""}[what])
                return
            await serve_http2(noise, self._handle)

    async def _bad_http(self, stream: ByteStream, what: str) -> None:
        if what == "silent":
            await anyio.sleep_forever()
        elif what == "endless head":
            await stream.send(b"HTTP/1.1 200 OK\r\n")
            await _for_ever(stream, b"X-More: " + b"x" * 4000 + b"\r\n")
        elif what == "endless body":
            await stream.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
            await _for_ever(stream, b'{"publicKey": ' * 1000)
        else:
            page = b"<html><title>Welcome to the airport</title></html>"
            await stream.send(
                {
                    "no http": b"SSH-2.0-OpenSSH_9.2\r\n" + NOISE,
                    "500": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 3\r\n\r\nno\n",
                    "redirect": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n",
                    "page": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(page) + page,
                    "cut": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
                }[what]
            )

    async def _key(self, stream: ByteStream, what: str) -> None:
        key = MachinePublic(dh.public_key(self.private))
        good = encode(ServerKeys(public_key=key))
        other = encode(ServerKeys(public_key=MachinePublic(dh.public_key(bytes([1]) * 32))))
        body = {
            "": good,
            "zero": encode(ServerKeys(public_key=MachinePublic.zero())),
            "other": other,
            "low order": encode(ServerKeys(public_key=MachinePublic(bytes(31) + b"\x80"))),
            "number": b'{"publicKey": 7}',
        }[what]
        await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    async def _bad_switch(self, stream: ByteStream, what: str) -> None:
        await stream.send(
            {
                "404": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
                "websocket": SWITCH.replace(b"tailscale-control-protocol", b"websocket"),
                "garbage": SWITCH + NOISE,
                "wrong answer": SWITCH + b"\x02\x00\x30" + bytes(48),
                "hangs up": SWITCH,
            }[what]
        )

    async def _handle(self, request: Http2Request) -> None:
        place, _, what = self.mode.partition(" ")
        body = await request.read()
        if request.path == "/machine/register":
            asked = decode(body, RegisterRequest)
            self.registers.append(asked)
            if self.hold is not None:
                await self.hold.wait()
            answer: bytes = encode(ACCEPT)
            if place == "register":
                answer = {
                    "500": b"no",
                    "cut": b'{"User": {"ID": 1',
                    "null": b"null",
                    "binary": NOISE,
                    "types": b'{"User": [], "MachineAuthorized": "perhaps"}',
                    "script": encode(RegisterResponse(auth_url="javascript:alert(1)")),
                    "huge": b'{"Error": "' + b"x" * (8 << 20) + b'"}',
                }[what]
            await request.respond(500 if what == "500" else 200, answer)
        elif request.path == "/machine/map":
            await self._map(request, decode(body, MapRequest), what if place == "map" else "")

    async def _map(self, request: Http2Request, asked: MapRequest, what: str) -> None:
        self.maps.append(asked)
        if what == "500":
            await request.respond(500, b"no")
        elif not asked.stream:
            await request.respond(200)
        else:
            await request.start(200)
            self.streams.append(request)
            if what:
                await request.send(BAD_FRAMES[what])
            else:
                first = MapResponse(node=self_node(asked))
                await request.send(MapFrameWriter(compressed=True).frame(encode(first)))
            if what != "end":
                await anyio.sleep_forever()


def _frame(body: bytes) -> bytes:
    return MapFrameWriter(compressed=True).frame(body)


BAD_FRAMES = {
    "cut": _frame(b'{"Node": {"ID": 7'),
    "null": _frame(b"null"),
    "types": _frame(b'{"Node": [], "Peers": 7, "DERPMap": "none"}'),
    "no zstd": len(NOISE).to_bytes(4, "little") + NOISE,
    "huge": (0xFFFFFFFF).to_bytes(4, "little") + NOISE,
    "bomb": _frame(b" " * (65 << 20)),
    "end": b"",
}
"""What is sent on a map stream instead of a network map."""


async def _for_ever(stream: ByteStream, data: bytes) -> None:
    while True:
        await stream.send(data)


@asynccontextmanager
async def evil_server() -> AsyncIterator[EvilServer]:
    """Run a server on a free loopback port."""
    server = EvilServer()
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        server.url = f"http://127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, server.serve)
            yield server
            group.cancel_scope.cancel()


class EvilServerInMemory(EvilServer):
    """The same without sockets: on virtual time nothing but waiting takes time, and a busy machine changes nothing."""

    def __init__(self, group: TaskGroup) -> None:
        super().__init__()
        self.url = "http://127.0.0.1:8080"
        self._group = group

    async def connect(self, host: str, port: int) -> MemoryStream:
        """Stand in for a node's TCP dial."""
        near, far = stream_pair()
        self._group.start_soon(self.serve, far)
        await anyio.lowlevel.checkpoint()
        return near
