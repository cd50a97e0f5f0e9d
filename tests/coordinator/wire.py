"""A client of the control server that is made from the protocol engines alone: no line of tsnetpy.control is in it."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import msgspec

from tsnetpy.base.entropy import SystemEntropy
from tsnetpy.base.keys import MachinePublic
from tsnetpy.coordinator.compile import Json
from tsnetpy.crypto import dh
from tsnetpy.runtime import http1
from tsnetpy.runtime.http2 import Http2Client, Http2Response
from tsnetpy.runtime.noise_stream import NoiseStream
from tsnetpy.ts2021.client import ClientEngine
from tsnetpy.ts2021.framing import MapFrameReader

VERSION = 117


class Maps:
    """The messages of one map stream."""

    def __init__(self, response: Http2Response, compressed: bool) -> None:
        self.response = response
        self._reader = MapFrameReader(compressed)
        self._messages: list[bytes] = []

    async def next(self) -> Json:
        """Return the next message; ``EndOfStream`` at the end."""
        with anyio.fail_after(10):
            while not self._messages:
                self._messages += self._reader.feed(await self.response.receive())
        message = msgspec.json.decode(self._messages.pop(0))
        assert isinstance(message, dict)
        return message

    async def until(self, member: str) -> Json:
        """Return the next message that has *member*."""
        while member not in (message := await self.next()):
            pass
        return message


class WireNode:
    """One machine with one node key on one connection."""

    def __init__(self, client: Http2Client, number: int, engine: ClientEngine) -> None:
        self.client = client
        self.engine = engine
        self.node_key = "nodekey:" + bytes([0xB0, number]).hex() * 16
        self.disco_key = "discokey:" + bytes([0xD0, number]).hex() * 16

    async def post(self, path: str, body: Json) -> tuple[int, bytes]:
        response, data = await self.client.request("POST", path, body=msgspec.json.encode(body))
        return response.status, data

    async def register(self, key: str = "", **members: object) -> Json:
        hostinfo = {"Hostname": f"wire-{self.node_key[-2:]}", "OS": "linux"}
        body: Json = {"Version": VERSION, "NodeKey": self.node_key, "Hostinfo": hostinfo, **members}
        if key:
            body["Auth"] = {"AuthKey": key}
        status, data = await self.post("/machine/register", body)
        assert status == 200, data
        answer = msgspec.json.decode(data)
        assert isinstance(answer, dict)
        return answer

    def _map_request(self, **members: object) -> Json:
        return {"Version": VERSION, "NodeKey": self.node_key, "DiscoKey": self.disco_key, **members}

    async def update(self, **members: object) -> int:
        status, _ = await self.post("/machine/map", self._map_request(OmitPeers=True, **members))
        return status

    @asynccontextmanager
    async def maps(self, *, compress: str = "zstd", **members: object) -> AsyncIterator[Maps]:
        body = self._map_request(Stream=True, Compress=compress, KeepAlive=True, **members)
        async with self.client.stream("POST", "/machine/map", body=msgspec.json.encode(body)) as response:
            yield Maps(response, compress == "zstd")


def host_port(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)


async def fetch(url: str, method: str, target: str, body: bytes = b"") -> http1.HttpResponse:
    """Make one plain HTTP/1.1 request."""
    async with await anyio.connect_tcp(*host_port(url)) as stream:
        return await http1.request(stream, method, target, host="box", body=body)


@asynccontextmanager
async def connect(url: str, number: int) -> AsyncIterator[WireNode]:
    """Connect machine *number* as a node does: fetch the key, upgrade, Noise, HTTP/2."""
    entropy = SystemEntropy()
    keys = msgspec.json.decode((await fetch(url, "GET", f"/key?v={VERSION}")).body)
    server = MachinePublic.parse(keys["publicKey"])
    engine = ClientEngine(VERSION, dh.clamp(bytes([number]) * 32), server.raw, dh.generate(entropy))
    stream = await anyio.connect_tcp(*host_port(url))
    handshake = base64.b64encode(engine.initiation).decode()
    _, leftover = await http1.upgrade(
        stream,
        "/ts2021",
        host="box",
        protocol="tailscale-control-protocol",
        method="POST",
        headers=[("X-Tailscale-Handshake", handshake)],
    )
    noise = await NoiseStream.connect(stream, engine, leftover)
    client = Http2Client(noise, authority="unused")
    async with anyio.create_task_group() as tasks:
        await tasks.start(client.run)
        yield WireNode(client, number, engine)
        tasks.cancel_scope.cancel()
