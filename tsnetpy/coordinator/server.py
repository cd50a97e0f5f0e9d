"""The control server: ``/key`` and the ts2021 upgrade outside, register and map poll inside the Noise connection.

Each connection is one machine, by the key it proved; each request inside it names a node key, which must belong to that
machine (control protocol reference, sections 2, 3.5 and 5).
"""

import base64
import binascii
import logging
from dataclasses import dataclass
from functools import partial
from typing import Final
from urllib.parse import parse_qs

import anyio
import msgspec
from anyio.abc import ByteStream, SocketStream, TaskGroup, TaskStatus

from tsnetpy.base.errors import ConfigError, DecodeError, RemoteProtocolError
from tsnetpy.base.keys import ChallengePublic, MachinePrivate, MachinePublic
from tsnetpy.crypto import dh
from tsnetpy.runtime import clock
from tsnetpy.runtime.http2 import Http2Request, serve_http2
from tsnetpy.runtime.noise_stream import NoiseStream
from tsnetpy.tailcfg.capver import MIN_SUPPORTED
from tsnetpy.tailcfg.codec import decode
from tsnetpy.tailcfg.mapping import MapRequest
from tsnetpy.tailcfg.register import RegisterRequest
from tsnetpy.ts2021.framing import MapFrameWriter
from tsnetpy.ts2021.server import ServerEngine

from . import netmaps, pages
from .auth import AuthKeyRefused
from .compile import Json
from .register import LOGIN_LIFETIME_NS, LOGIN_PATH, Registrar
from .state import NodeRecord
from .tailnet import Pending, Tailnet
from .web import Switch, WebRequest, WebResponse, guard, serve_web

_log = logging.getLogger(__name__)

UPGRADE: Final = "tailscale-control-protocol"
MAX_CONNECTIONS: Final = 4096
MAX_REQUEST_BYTES: Final = 1024 * 1024
REQUEST_TIMEOUT_S: Final = 30.0
SEND_TIMEOUT_S: Final = 60.0
"""How long a map stream waits for a client that does not read."""

_NOT_SERVED: Final = frozenset(
    (
        "/machine/whoami",
        "/machine/set-dns",
        "/machine/id-token",
        "/machine/feature/query",
        "/machine/audit-log",
        "/machine/set-device-attr",
    )
)
"""Parts of the protocol that this server does not have: 501, so that a client can tell them from a wrong path."""


@dataclass(frozen=True, slots=True)
class ServerTimes:
    """Waits in seconds; tests make them short."""

    coalesce: float = 0.05
    """Least time between two messages of a stream. The first change after a quiet time goes out at once."""
    keep_alive: float = 55.0
    """Clients give a silent stream up after 120 s."""
    offline_after: float = 10.0
    """From the end of a stream to "offline": a reconnecting node does not flap."""
    ephemeral_after: float = 30 * 60.0
    """From "offline" to the deletion of an ephemeral node."""
    housekeeping: float = 30.0


class _Session:
    """One open map stream."""

    __slots__ = ("scope",)

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()


class ControlServer:
    """Serves a tailnet to its nodes.

    Args:
        tailnet: what is served.
        registrar: decides who gets in.
        times: waits.
    """

    def __init__(self, tailnet: Tailnet, registrar: Registrar, times: ServerTimes | None = None) -> None:
        self._tailnet = tailnet
        self._registrar = registrar
        self._times = times or ServerTimes()
        self._private = MachinePrivate.parse(tailnet.document.noise_private).raw
        self.public_key = MachinePublic(dh.public_key(self._private))
        self._sessions: dict[int, _Session] = {}
        self._connections = 0
        self._tasks: TaskGroup | None = None

    async def run(
        self, listener: anyio.abc.Listener[SocketStream], *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve connections of *listener* until cancelled."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(self._housekeep)
            for node in self._tailnet.nodes.values():
                if node.ephemeral:
                    tasks.start_soon(self._delete_unless_back, node.id)
            task_status.started()
            try:
                await listener.serve(self._accept)
            finally:
                self._tasks = None

    # -- outside Noise -------------------------------------------------------------------------------------------

    async def _accept(self, stream: SocketStream) -> None:
        if self._connections >= MAX_CONNECTIONS:
            _log.warning("control: too many connections, one refused")
            await stream.aclose()
            return
        self._connections += 1
        try:
            await guard(stream, partial(serve_web, handler=self._handle_web), "control")
        finally:
            self._connections -= 1

    async def _handle_web(self, request: WebRequest) -> WebResponse | Switch:
        if request.path == "/ts2021":
            return self._switch(request)
        if request.path.startswith(LOGIN_PATH):
            return self._login(request)
        if request.method not in ("GET", "HEAD"):
            return WebResponse(405)
        if request.path == "/key":
            return self._key(request)
        if request.path == "/generate_204":
            return WebResponse(204)
        if request.path == "/":
            return WebResponse(200, b"A tsnetpy coordination server. Join with --login-server=<this URL>.\n")
        return WebResponse(404, b"404 page not found\n")

    def _key(self, request: WebRequest) -> WebResponse:
        version = parse_qs(request.query).get("v", [""])[0]
        if not (version.isascii() and version.isdigit()):
            return WebResponse(400, b"capability version must be set\n")
        keys = {"legacyPublicKey": MachinePublic.zero().text(), "publicKey": self.public_key.text()}
        return WebResponse(200, msgspec.json.encode(keys), "application/json")

    def _switch(self, request: WebRequest) -> WebResponse | Switch:
        if request.header("upgrade").lower() != UPGRADE:
            return WebResponse(400, f"Upgrade: {UPGRADE} expected\n".encode())
        try:
            initiation = base64.b64decode(request.header("x-tailscale-handshake"), validate=True)
            # Before the 101: a client that dialled the wrong server learns so, instead of seeing the line go dead.
            engine = ServerEngine(self._private, initiation, dh.generate(self._tailnet.entropy))
        except (binascii.Error, ValueError):
            return WebResponse(400, b"X-Tailscale-Handshake is missing or not base64\n")
        except RemoteProtocolError as error:
            return WebResponse(400, f"{error}\n".encode())
        if engine.version < MIN_SUPPORTED:
            return WebResponse(400, f"unsupported client version: ({engine.version})\n".encode())
        headers = (("Upgrade", UPGRADE), ("Connection", "upgrade"))
        return Switch(headers, partial(self._serve_noise, engine))

    def _login(self, request: WebRequest) -> WebResponse:
        if request.method not in ("GET", "HEAD", "POST"):
            return WebResponse(405)
        pending = self._tailnet.pending.get(request.path[len(LOGIN_PATH) :])
        if pending is None:
            return pages.unknown_page()
        if request.method != "POST":
            return pages.login_page(pending)
        try:
            node = self._registrar.approve_with_key(pending, request.form().get("key", ""), clock.wall_ns())
        except AuthKeyRefused as reason:
            return pages.login_page(pending, str(reason))
        except ConfigError as reason:
            return pages.login_page(pending, str(reason))
        return pages.approved_page(node.name)

    # -- inside Noise --------------------------------------------------------------------------------------------

    async def _serve_noise(self, engine: ServerEngine, stream: ByteStream, leftover: bytes) -> None:
        # Clients parse the challenge and use it for nothing; a fresh public key each time commits to nothing.
        challenge = ChallengePublic(dh.public_key(dh.generate(self._tailnet.entropy))).text()
        noise = await NoiseStream.accept(stream, engine, challenge=challenge, leftover=leftover)
        machine = MachinePublic(engine.machine_key)
        await serve_http2(noise, partial(self._handle, machine))

    async def _handle(self, machine: MachinePublic, request: Http2Request) -> None:
        path = request.path.partition("?")[0]
        if path in ("/machine/register", "/machine/map"):
            if request.method != "POST":
                await request.respond(405)
                return
            with anyio.fail_after(REQUEST_TIMEOUT_S):
                body = await request.read(MAX_REQUEST_BYTES)
            try:
                if path == "/machine/register":
                    await self._register(machine, request, body)
                else:
                    await self._map(machine, request, body)
            except DecodeError as error:
                _log.info("refused a request from %s: %s", machine, error)
                await request.respond(400, f"{error}\n".encode())
        elif path == "/machine/update-health":
            await request.respond(204)
        else:
            await request.respond(501 if path in _NOT_SERVED else 404)

    async def _register(self, machine: MachinePublic, request: Http2Request, body: bytes) -> None:
        wanted = decode(body, RegisterRequest)
        if wanted.version < MIN_SUPPORTED:
            await request.respond(400, f"unsupported client version: ({wanted.version})\n".encode())
            return
        hostinfo = _raw_hostinfo(body) or {}
        answer = self._registrar.register(machine, wanted, hostinfo, clock.wall_ns())
        while isinstance(answer, Pending):
            pending = answer
            with anyio.move_on_after(LOGIN_LIFETIME_NS / 1e9):
                await pending.decided.wait()
            answer = self._registrar.register(machine, wanted, hostinfo, clock.wall_ns())
            if answer is pending:
                self._tailnet.reject(pending)  # its time is over: a new URL
        await request.respond(200, msgspec.json.encode(answer), [("content-type", "application/json")])

    async def _map(self, machine: MachinePublic, request: Http2Request, body: bytes) -> None:
        wanted = decode(body, MapRequest)
        node = self._tailnet.node_by_key(wanted.node_key)
        if node is None:
            await request.respond(404, b"node not found\n")
            return
        if node.machine_key != machine.text():
            await request.respond(404, b"node key in request does not match the one associated with this machine key\n")
            return
        self._tailnet.update_node(node, wanted, _raw_hostinfo(body), clock.wall_ns())
        writer = MapFrameWriter(wanted.compress == "zstd")
        if wanted.stream:
            await self._stream(node, request, writer)
        elif wanted.omit_peers:
            await request.respond(200)
        else:
            now = clock.wall_ns()
            message = netmaps.full(self._tailnet.snapshot(now).view(node.id), now)
            await request.respond(200, writer.frame(msgspec.json.encode(message)))

    async def _stream(self, node: NodeRecord, request: Http2Request, writer: MapFrameWriter) -> None:
        session = _Session()
        previous = self._sessions.get(node.id)
        self._sessions[node.id] = session
        if previous is not None:
            previous.scope.cancel()  # a node has one stream; the newest is the one it reads
        self._tailnet.set_online(node.id, True, clock.wall_ns())
        try:
            await request.start(200, [("content-type", "application/octet-stream")])
            with session.scope:
                await self._send_maps(node, request, writer)
            await request.send(b"", end=True)
        finally:
            if self._sessions.get(node.id) is session:
                del self._sessions[node.id]
                if self._tasks is not None:
                    self._tasks.start_soon(self._offline_unless_back, node.id)

    async def _send_maps(self, node: NodeRecord, request: Http2Request, writer: MapFrameWriter) -> None:
        """Send the full map, then changes, until the node is deleted or has another key."""
        cell = self._tailnet.changed
        node_key = node.node_key

        async def send(message: Json) -> float:
            with anyio.fail_after(SEND_TIMEOUT_S):
                await request.send(writer.frame(msgspec.json.encode(message)))
            return anyio.current_time()

        version = cell.version
        view = self._tailnet.snapshot(clock.wall_ns()).view(node.id)
        last_sent = await send(netmaps.full(view, clock.wall_ns()))
        while True:
            with anyio.move_on_at(last_sent + self._times.keep_alive) as quiet:
                await cell.wait_change(version)
                await anyio.sleep_until(last_sent + self._times.coalesce)
            if quiet.cancelled_caught:
                last_sent = await send({"KeepAlive": True})
                continue
            version = cell.version
            if self._tailnet.nodes.get(node.id) is not node or node.node_key != node_key:
                return
            now = clock.wall_ns()
            old, view = view, self._tailnet.snapshot(now).view(node.id)
            message = netmaps.delta(old, view, now)
            if message is not None:
                last_sent = await send(message)

    # -- who is there --------------------------------------------------------------------------------------------

    async def _offline_unless_back(self, node_id: int) -> None:
        await anyio.sleep(self._times.offline_after)
        if node_id in self._sessions:
            return
        self._tailnet.set_online(node_id, False, clock.wall_ns())
        node = self._tailnet.nodes.get(node_id)
        if node is not None and node.ephemeral:
            await self._delete_unless_back(node_id)

    async def _delete_unless_back(self, node_id: int) -> None:
        node = self._tailnet.nodes[node_id]
        last_seen_ns = node.last_seen_ns
        await anyio.sleep(self._times.ephemeral_after)
        if self._tailnet.nodes.get(node_id) is node and node.last_seen_ns == last_seen_ns:
            _log.info("deleting ephemeral node %s, which is gone", node.name)
            self._tailnet.delete_node(node)

    async def _housekeep(self) -> None:
        """Notice what the passing of time changes, and write down what was reported since."""
        seen = clock.wall_ns()
        saved = self._tailnet.changed.version
        while True:
            await anyio.sleep(self._times.housekeeping)
            now = clock.wall_ns()
            self._registrar.forget_old_logins(now)
            if any(seen < node.expiry_ns <= now for node in self._tailnet.nodes.values()):
                self._tailnet.touch()
            seen = now
            if saved != self._tailnet.changed.version:
                saved = self._tailnet.changed.version
                self._tailnet.save()


def _raw_hostinfo(body: bytes) -> Json | None:
    """Return the ``Hostinfo`` member of a request as it is, to be passed on to peers with all that is in it."""
    value = msgspec.json.decode(body)
    if isinstance(value, dict):
        for name, member in value.items():
            if name.lower() == "hostinfo" and isinstance(member, dict):
                return member
    return None
