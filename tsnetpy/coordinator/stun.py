"""The STUN server: tells nodes their own public address. It answers Tailscale's kind of request and nothing else."""

import logging
import socket
from dataclasses import dataclass, field

import anyio
from anyio.abc import SocketAttribute, TaskStatus, UDPSocket

from tsnetpy.base.addr import Endpoint, parse_ip, unmap
from tsnetpy.base.errors import ConfigError, DecodeError
from tsnetpy.base.stats import Drops
from tsnetpy.disco import stun

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class StunServer:
    """Answers Binding requests on one port of one or more local addresses.

    The answer is smaller than the request and goes only to its source, so the server is no use as an amplifier.
    """

    hosts: tuple[str, ...]
    """Local addresses; on a dual-stack list IPv6 may be missing on this host."""
    port: int
    """0 = any; :attr:`port` is the real one once it runs."""
    answered: int = 0
    drops: Drops = field(default_factory=Drops)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; ready when the sockets are bound.

        Raises:
            ConfigError: no address could be bound.
        """
        sockets: list[UDPSocket] = []
        try:
            for host in self.hosts:
                try:
                    bound = await bind_udp(host, self.port)
                except OSError as error:
                    if not sockets and host == self.hosts[-1]:
                        raise ConfigError(f"STUN cannot listen on {host} port {self.port}: {error.strerror}") from error
                    _log.info("STUN does not listen on %s: %s", host, error)
                    continue
                sockets.append(bound)
                self.port = bound.extra(SocketAttribute.local_port)
            async with anyio.create_task_group() as tasks:
                for bound in sockets:
                    tasks.start_soon(self._serve, bound)
                task_status.started()
        finally:
            with anyio.CancelScope(shield=True):
                for bound in sockets:
                    await bound.aclose()

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
