"""The STUN server: tells nodes their own public address. It answers Tailscale's kind of request and nothing else."""

import logging
import socket
from typing import Self

import anyio
from anyio.abc import SocketAttribute, TaskStatus, UDPSocket

from tsnetpy.base.addr import Endpoint, parse_ip, unmap
from tsnetpy.base.errors import ConfigError, DecodeError
from tsnetpy.base.stats import Drops
from tsnetpy.disco import stun

_log = logging.getLogger(__name__)


class StunServer:
    """Answers Binding requests on one port of one or more local addresses; entering it binds them.

    The answer is smaller than the request and goes only to its source, so the server is no use as an amplifier.

    Args:
        hosts: literal local addresses; those that are not available are left out (a host without IPv6).
        port: 0 = any.

    Raises:
        ConfigError: on entering: no address could be bound.
    """

    def __init__(self, hosts: tuple[str, ...], port: int) -> None:
        self.port = port
        """The real one, once entered."""
        self.answered = 0
        self.drops = Drops()
        self._hosts = hosts
        self._sockets: list[UDPSocket] = []

    async def __aenter__(self) -> Self:
        problem: OSError | None = None
        for host in self._hosts:
            try:
                bound = await bind_udp(host, self.port)
            except OSError as error:
                _log.info("STUN does not listen on %s: %s", host, error)
                problem = error
                continue
            self._sockets.append(bound)
            self.port = bound.extra(SocketAttribute.local_port)
        if not self._sockets and problem is not None:
            raise ConfigError(f"STUN cannot listen on port {self.port}: {problem.strerror}") from problem
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            for bound in self._sockets:
                await bound.aclose()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        async with anyio.create_task_group() as tasks:
            for bound in self._sockets:
                tasks.start_soon(self._serve, bound)
            task_status.started()

    async def _serve(self, bound: UDPSocket) -> None:
        async for data, (host, port) in bound:
            try:
                txid = stun.decode_request(data)
                source = Endpoint(unmap(parse_ip(host.partition("%")[0])), port)
            except (DecodeError, ValueError):
                self.drops.add("not_stun")
                continue
            try:
                await bound.sendto(stun.encode_response(txid, source), host, port)
            except OSError:
                self.drops.add("send")
                continue
            self.answered += 1


async def bind_udp(host: str, port: int) -> UDPSocket:
    """Return a UDP socket bound to a literal address; an IPv6 one takes no IPv4 traffic.

    Raises:
        OSError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    raw = socket.socket(family, socket.SOCK_DGRAM)
    try:
        raw.setblocking(False)
        if family == socket.AF_INET6:
            raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        raw.bind((host, port))
    except BaseException:
        raw.close()
        raise
    return await UDPSocket.from_socket(raw)
