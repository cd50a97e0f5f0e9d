"""A coordination server in memory, as small as a test can use it."""

import base64
import ssl
from collections.abc import Callable, Mapping
from typing import Any

import anyio
import anyio.lowlevel
from anyio.abc import ByteStream, TaskGroup
from anyio.streams.tls import TLSStream

from tsnetpy.base.entropy import SystemEntropy
from tsnetpy.base.errors import RemoteProtocolError
from tsnetpy.base.keys import DiscoPublic, MachinePrivate, MachinePublic, NodePrivate
from tsnetpy.control import ControlClient, ControlConfig
from tsnetpy.crypto import dh
from tsnetpy.runtime.http2 import Http2Request, serve_http2
from tsnetpy.runtime.noise_stream import NoiseStream
from tsnetpy.tailcfg import Hostinfo, MapRequest, MapResponse, Node, RegisterRequest, RegisterResponse, decode, encode
from tsnetpy.tailcfg.register import Login, ServerKeys, User
from tsnetpy.ts2021.framing import MapFrameWriter
from tsnetpy.ts2021.server import ServerEngine

ACCEPT = RegisterResponse(machine_authorized=True, user=User(id=1), login=Login(id=1, login_name="alice"))
CHALLENGE = "chalpub:" + "11" * 32


class _Lane:
    """Bytes on their way from one end to the other."""

    LIMIT = 64 * 1024

    def __init__(self) -> None:
        self.data = bytearray()
        self.ended = self.broken = False
        self._changed = anyio.Event()

    def wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def wait(self) -> None:
        await self._changed.wait()


class MemoryStream(ByteStream):
    """One end of a byte pipe without sockets; it holds at most 64 KiB each way."""

    def __init__(self, outgoing: _Lane, incoming: _Lane) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self._closed = False

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await anyio.lowlevel.checkpoint()
        lane = self._incoming
        while not lane.data:
            if self._closed:
                raise anyio.ClosedResourceError
            if lane.ended:
                raise anyio.EndOfStream
            await lane.wait()
        out = bytes(lane.data[:max_bytes])
        del lane.data[:max_bytes]
        lane.wake()
        return out

    async def send(self, item: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        lane = self._outgoing
        while item:
            if self._closed:
                raise anyio.ClosedResourceError
            if lane.broken:
                raise anyio.BrokenResourceError
            room = lane.LIMIT - len(lane.data)
            if room:
                lane.data += item[:room]
                item = item[room:]
                lane.wake()
            else:
                await lane.wait()

    async def send_eof(self) -> None:
        self._outgoing.ended = True
        self._outgoing.wake()

    async def aclose(self) -> None:
        self._closed = True
        self._outgoing.ended = True
        self._incoming.broken = True
        self._outgoing.wake()
        self._incoming.wake()
        await anyio.lowlevel.checkpoint()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {}


def stream_pair() -> tuple[MemoryStream, MemoryStream]:
    """Two ends of one connection."""
    there, back = _Lane(), _Lane()
    return MemoryStream(there, back), MemoryStream(back, there)


async def read_head(stream: ByteStream) -> tuple[str, dict[str, str], bytes]:
    """Read one HTTP/1.1 head: request line, headers by lower-case name, and what followed."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += await stream.receive()
    head, _, rest = data.partition(b"\r\n\r\n")
    line, *fields = head.decode("latin-1").split("\r\n")
    return line, {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}, rest


class Server:
    """What the client talks to. Tests set the attributes and read the records.

    Attributes:
        register: answers each register request.
        status_of_map: HTTP status of map requests.
        down: dials fail while true.
        registers, reports, polls, heads: what came in, in order.
        dials: host and port of each connection.
        streams: open map streams; send a message to the last with :meth:`say`.
    """

    def __init__(self, group: TaskGroup) -> None:
        self._group = group
        self.private = dh.generate(SystemEntropy())
        self.register: Callable[[RegisterRequest], RegisterResponse] = lambda request: ACCEPT
        self.register_status = 200
        self.register_headers: list[tuple[str, str]] = []
        self.status_of_map = 200
        self.down = False
        self.refused_ports: set[int] = set()
        self.tls_ports: dict[int, ssl.SSLContext] = {}
        self.first_map: Callable[[MapRequest], MapResponse] = lambda request: MapResponse(node=self_node(request))
        self.registers: list[RegisterRequest] = []
        self.reports: list[MapRequest] = []
        self.polls: list[MapRequest] = []
        self.heads: list[str] = []
        self.dials: list[tuple[str, int]] = []
        self.streams: list[Http2Request] = []
        self.connections: list[MemoryStream] = []
        self.changed = anyio.Event()

    def noted(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until something came in that makes *condition* true."""
        with anyio.fail_after(1000):
            while not condition():
                await self.changed.wait()

    async def connect(self, host: str, port: int) -> ByteStream:
        """Stands in for TCP: ``ControlConfig.connect``."""
        self.dials.append((host, port))
        await anyio.lowlevel.checkpoint()
        if self.down or port in self.refused_ports:
            raise ConnectionRefusedError(111, "refused")
        near, far = stream_pair()
        self.connections.append(far)
        self._group.start_soon(self._serve, far, self.tls_ports.get(port))
        return near

    async def cut(self) -> None:
        """End all connections, as a server does that stops."""
        connections, self.connections = self.connections, []
        self.streams.clear()
        for stream in connections:
            await stream.aclose()

    async def say(self, message: MapResponse) -> None:
        """Send *message* on the newest map stream."""
        await self.streams[-1].send(MapFrameWriter(compressed=True).frame(encode(message)))

    async def _serve(self, stream: ByteStream, tls: ssl.SSLContext | None) -> None:
        try:
            if tls is not None:
                stream = await TLSStream.wrap(stream, server_side=True, ssl_context=tls, standard_compatible=False)
            line, headers, rest = await read_head(stream)
            method, target, _ = line.split(" ")
            if target.startswith("/key"):
                body = encode(ServerKeys(public_key=MachinePublic(dh.public_key(self.private))))
                await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            elif target == "/ts2021":
                await stream.send(
                    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tailscale-control-protocol\r\n"
                    b"Connection: upgrade\r\n\r\n"
                )
                initiation = base64.b64decode(headers["x-tailscale-handshake"])
                engine = ServerEngine(self.private, initiation, dh.generate(SystemEntropy()))
                noise = await NoiseStream.accept(stream, engine, challenge=CHALLENGE, leftover=rest)
                await serve_http2(noise, self._handle)
            else:
                self.heads.append(f"{method} {target} {headers['host']}")
                self.noted()
                await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, RemoteProtocolError, OSError):
            # Headscale, too, just closes after its 101 if the handshake fails.
            return
        finally:
            await stream.aclose()

    async def _handle(self, request: Http2Request) -> None:
        body = await request.read()
        if request.path == "/machine/register":
            asked = decode(body, RegisterRequest)
            self.registers.append(asked)
            self.noted()
            if self.register_status != 200:
                await request.respond(self.register_status, b"no", self.register_headers)
                return
            await request.respond(200, encode(self.register(asked)))
        elif request.path == "/machine/map":
            await self._map(request, decode(body, MapRequest))
        else:
            self.heads.append(f"{request.method} {request.path} noise {body.decode('latin-1')}")
            self.noted()
            await request.respond(200, b"" if request.method == "HEAD" else b"answer")

    async def _map(self, request: Http2Request, asked: MapRequest) -> None:
        (self.polls if asked.stream else self.reports).append(asked)
        self.noted()
        if self.status_of_map != 200:
            await request.respond(self.status_of_map, b"node not found")
            return
        if not asked.stream:
            await request.respond(200)
            return
        await request.start(200)
        self.streams.append(request)
        await self.say(self.first_map(asked))
        await anyio.sleep_forever()


def self_node(request: MapRequest, **changes: Any) -> Node:
    """The asking node, as the server shows it to itself."""
    return Node(
        **{
            "id": 1,
            "name": "n.lab.test.",
            "key": request.node_key,
            "disco_key": request.disco_key,
            "addresses": ("100.64.0.1/32",),
            "machine_authorized": True,
            **changes,
        }
    )


class Keys(list[tuple[NodePrivate, Any]]):
    """Records what ``save_keys`` is given."""

    def save(self, key: NodePrivate, old: Any) -> None:
        self.append((key, old))


def make_client(server: Server, *, url: str = "http://127.0.0.1:8080", **more: Any) -> ControlClient:
    """A control client of *server*."""
    entropy = SystemEntropy()
    values: dict[str, Any] = {
        "server_url": url,
        "machine_key": MachinePrivate(dh.generate(entropy)),
        "hostinfo": Hostinfo(hostname="n"),
        "disco_key": DiscoPublic(bytes([7]) * 32),
        "auth_key": "tskey-secret",
        "connect": server.connect,
        **more,
    }
    return ControlClient(ControlConfig(**values), entropy=entropy)
