"""Ports of this host joined with ports of the tunnel, both ways, for TCP and UDP.

*Forward* means: something on this host connects to a port here and comes out of the tunnel at a peer. *Reverse* means:
a peer connects to a port of the node and comes out at an address of this host's network.
"""

import logging
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, Protocol, final

import anyio
from anyio.abc import ByteStream, TaskStatus

from tsnetpy.base.errors import ConfigError
from tsnetpy.netstack.udp import UdpSocket
from tsnetpy.runtime.accepted import hold_reading
from tsnetpy.runtime.splice import splice

from .config import HostPort
from .node import WireGuardNode
from .quick import parse_host_port

CONNECT_SECONDS: Final = 10.0
MAX_CONNECTIONS: Final = 1024
"""Per forwarded port; more wait to be accepted."""
BACKLOG: Final = 1024
"""Connections that wait to be accepted; a browser, or a crowd, opens many at once."""
MAX_FLOWS: Final = 1024
"""UDP: remote ends of one forwarded port; the one that was silent for longest makes room."""
FLOW_IDLE_SECONDS: Final = 60.0

_log = logging.getLogger(__name__)


class Forward(NamedTuple):
    """Where to listen and where that leads."""

    listen: HostPort
    """An empty host is the loopback address (forward), or each address of the node (reverse)."""
    target: HostPort


def parse_forward(text: str) -> Forward:
    """Return what ``8080:10.0.0.2:80``, ``127.0.0.1:8080:host:80`` or ``[::1]:8080:[fd00::2]:80`` means.

    Raises:
        ConfigError: not of that form.
    """
    hint = "the form is [address:]port:host:port, with IPv6 addresses in brackets"
    fields = _split(text)
    if len(fields) == 3:
        fields.insert(0, "")
    if len(fields) != 4:
        raise ConfigError(f"{text!r} is no forward", hint=hint)
    address, port, *target = fields
    try:
        listen = parse_host_port(f"{address or 'any'}:{port}")
        return Forward(HostPort("" if not address else listen.host, listen.port), parse_host_port(":".join(target)))
    except ValueError as error:
        raise ConfigError(f"{text!r} is no forward: {error}", hint=hint) from None


def _split(text: str) -> list[str]:
    """Split at colons outside brackets."""
    fields = [""]
    inside = False
    for character in text:
        inside = (inside or character == "[") and character != "]"
        if character == ":" and not inside:
            fields.append("")
        else:
            fields[-1] += character
    return fields


# -- TCP ---------------------------------------------------------------------------------------------------------------


async def forward_tcp(
    node: WireGuardNode, forward: Forward, *, task_status: TaskStatus[HostPort] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Hand connections to a port of this host on through the tunnel, until cancelled.

    Args:
        node: the node.
        forward: from a port here to an address or name in the tunnel.
        task_status: told the host and port once it listens.

    Raises:
        ConfigError: the port cannot be opened.
    """
    host = forward.listen.host or "127.0.0.1"
    try:
        listener = await anyio.create_tcp_listener(local_host=host, local_port=forward.listen.port)
    except OSError as error:
        raise _not_open("TCP", HostPort(host, forward.listen.port), error) from error
    limiter = anyio.CapacityLimiter(MAX_CONNECTIONS)

    async def handle(client: ByteStream) -> None:
        hold_reading(client)
        await _join(client, lambda: node.connect_tcp(*forward.target), forward.target, limiter)

    async with listener:
        task_status.started(HostPort(host, forward.listen.port))
        await listener.serve(handle)


async def reverse_tcp(
    node: WireGuardNode, forward: Forward, *, task_status: TaskStatus[HostPort] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Hand connections to a port of the node on to an address of this host's network, until cancelled.

    Raises:
        DialError: the port is taken, or the address is not the node's.
    """
    listener = await node.create_tcp_listener(forward.listen.port, host=forward.listen.host or None, backlog=BACKLOG)
    limiter = anyio.CapacityLimiter(MAX_CONNECTIONS)

    async def connect() -> ByteStream:
        with anyio.fail_after(CONNECT_SECONDS):
            return await anyio.connect_tcp(*forward.target)

    async def handle(client: ByteStream) -> None:
        await _join(client, connect, forward.target, limiter)

    async with listener:
        task_status.started(forward.listen)
        await listener.serve(handle)


async def _join(
    client: ByteStream, connect: Callable[[], Awaitable[ByteStream]], target: HostPort, limiter: anyio.CapacityLimiter
) -> None:
    """Connect to the other side and copy until both ends are reached. Never raises: other clients are not to suffer."""
    async with client, limiter:
        try:
            other = await connect()
        except OSError as error:  # a DialError is one, and so is a TimeoutError
            _log.warning("no connection to %s: %s", target, error)
            return
        async with other:
            await splice(client, other)


# -- UDP ---------------------------------------------------------------------------------------------------------------


class _Front(Protocol):
    """The socket that clients send to."""

    async def receive(self) -> tuple[bytes, tuple[str, int]]: ...

    async def sendto(self, data: bytes, host: str, port: int) -> None: ...


class _Back(Protocol):
    """One client's way to the target."""

    async def receive(self) -> bytes: ...

    async def send(self, item: bytes) -> None: ...

    async def aclose(self) -> None: ...


@final
class _TunnelFlow:
    """A UDP socket of the node that talks with one target only."""

    def __init__(self, sock: UdpSocket, target: tuple[str, int]) -> None:
        self._sock = sock
        self._target = target

    async def receive(self) -> bytes:
        while True:
            data, source = await self._sock.receive()
            if source == self._target:
                return data

    async def send(self, item: bytes) -> None:
        await self._sock.sendto(item, *self._target)

    async def aclose(self) -> None:
        await self._sock.aclose()


@final
class _Flow:
    def __init__(self, back: _Back) -> None:
        self.back = back
        self.scope = anyio.CancelScope()
        self.last = anyio.current_time()


async def forward_udp(
    node: WireGuardNode, forward: Forward, *, task_status: TaskStatus[HostPort] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Hand datagrams to a port of this host on through the tunnel, and the answers back, until cancelled.

    Each client gets a port of the node of its own, for as long as there is traffic in a minute.

    Raises:
        ConfigError: the port cannot be opened.
    """
    host = forward.listen.host or "127.0.0.1"
    try:
        front = await _bind_udp(host, forward.listen.port)
    except OSError as error:
        raise _not_open("UDP", HostPort(host, forward.listen.port), error) from error

    async def open_back() -> _Back:
        address = (await node.resolve(forward.target.host))[0]
        return _TunnelFlow(await node.create_udp_socket(), (address, forward.target.port))

    async with front:
        task_status.started(HostPort(host, forward.listen.port))
        await _relay(front, open_back, forward.target)


async def _bind_udp(host: str, port: int) -> anyio.abc.UDPSocket:
    # Not anyio's own call: the resolver, asked as it does, finds no loopback address on a host without a network.
    family, kind, protocol, _, address = (
        await anyio.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE)
    )[0]
    raw = socket.socket(family, kind, protocol)
    try:
        raw.setblocking(False)
        raw.bind(address)
    except BaseException:
        raw.close()
        raise
    return await anyio.abc.UDPSocket.from_socket(raw)


async def reverse_udp(
    node: WireGuardNode, forward: Forward, *, task_status: TaskStatus[HostPort] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Hand datagrams to a port of the node on to an address of this host's network, until cancelled.

    Raises:
        DialError: the port is taken, or the address is not the node's.
    """
    front = await node.create_udp_socket(forward.listen.port, host=forward.listen.host or None)

    async def open_back() -> _Back:
        return await anyio.create_connected_udp_socket(*forward.target)

    async with front:
        task_status.started(forward.listen)
        await _relay(front, open_back, forward.target)


async def _relay(front: _Front, open_back: Callable[[], Awaitable[_Back]], target: HostPort) -> None:
    flows: OrderedDict[tuple[str, int], _Flow] = OrderedDict()
    sending = anyio.Lock()  # answers to several clients leave by one socket

    async def answer(client: tuple[str, int], flow: _Flow) -> None:
        try:
            with flow.scope:
                while (left := flow.last + FLOW_IDLE_SECONDS - anyio.current_time()) > 0:
                    with anyio.move_on_after(left):
                        data = await flow.back.receive()
                        flow.last = anyio.current_time()
                        async with sending:
                            await front.sendto(data, *client)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            pass  # the target refuses; the client's next datagram begins anew
        finally:
            if flows.get(client) is flow:
                del flows[client]
            with anyio.CancelScope(shield=True):
                await flow.back.aclose()

    async with anyio.create_task_group() as group:
        while True:
            try:
                data, (host, port, *_) = await front.receive()
            except anyio.ClosedResourceError:
                break
            except (anyio.BrokenResourceError, OSError):
                continue  # an ICMP error for an answer of ours; the socket is as good as before
            client = (host, port)
            flow = flows.get(client)
            try:
                if flow is None:
                    flow = flows[client] = _Flow(await open_back())
                    if len(flows) > MAX_FLOWS:
                        flows.popitem(last=False)[1].scope.cancel()
                    group.start_soon(answer, client, flow)
                flows.move_to_end(client)
                flow.last = anyio.current_time()
                await flow.back.send(data)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as error:
                _log.warning("a datagram to %s is lost: %s", target, error)
        group.cancel_scope.cancel()


def _not_open(kind: str, where: HostPort, error: OSError) -> ConfigError:
    reason = error.strerror or str(error)
    return ConfigError(f"{kind} port {where} of this host cannot be opened: {reason}")
