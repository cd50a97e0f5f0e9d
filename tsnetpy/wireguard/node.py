"""A node of a plain WireGuard network: the same sockets as :class:`tsnetpy.Node`, without a coordination server."""

import errno
import logging
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Self, final

import anyio
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskStatus

from tsnetpy.base.addr import Endpoint, IpBytes, format_ip
from tsnetpy.base.entropy import Entropy, SystemEntropy
from tsnetpy.base.errors import ConfigError, DialError
from tsnetpy.base.instant import Duration
from tsnetpy.base.packet import PeerId
from tsnetpy.dataplane import (
    DataPlane,
    DataPlaneConfig,
    EndpointSeen,
    PeerHandshake,
    PeerSpec,
    UnknownSession,
)
from tsnetpy.ipstack.filter import ANY_IP, DstRange, FilterRule
from tsnetpy.netstack import icmp, tcp, udp
from tsnetpy.netstack.errors import bind_address
from tsnetpy.netstack.pump import Pump
from tsnetpy.netstack.tcp import TcpListener, TcpStream
from tsnetpy.netstack.udp import ConnectedUdpSocket, UdpSocket
from tsnetpy.runtime.supervise import single_failure
from tsnetpy.runtime.underlay import UnderlayConfig, UnderlayPeer

from .config import WireGuardConfig
from .names import TunnelResolver, socket_resolver
from .quick import load_quick
from .underlay import WireGuardUnderlay

DIAL_SECONDS: Final = 30.0
DRAIN_SECONDS: Final = 1.0
SHUTDOWN_SECONDS: Final = 2.0

ALLOW_ALL: Final = (FilterRule(ANY_IP, tuple(DstRange(ips, 0, 65535) for ips in ANY_IP)),)
"""WireGuard's own rule, AllowedIPs, says who may come in; a port is open only where something listens."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WireGuardPeerStatus:
    """What ``wg show`` tells about a peer."""

    public_key: PeerId
    endpoint: Endpoint | None
    """Where data for it goes: where it was last heard, or its configured endpoint."""
    handshake_age_ns: Duration | None
    """Time since the last handshake, ``None`` before the first."""
    rx_bytes: int
    tx_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WireGuardStatus:
    """What ``wg show`` tells."""

    public_key: PeerId
    listen_port: int
    addresses: tuple[str, ...]
    peers: tuple[WireGuardPeerStatus, ...]
    drops: Mapping[str, int]
    """Everything dropped, by engine and reason."""


@final
class WireGuardNode(AsyncContextManagerMixin):
    """One unprivileged end of WireGuard tunnels, inside this process.

    ::

        async with WireGuardNode.from_file("wg0.conf") as node:
            stream = await node.connect_tcp("10.0.0.2", 80)

    Inside the block the UDP port is open; handshakes begin with the first packet to a peer. Nothing leaves through the
    host's network but the tunnel, and nothing of the host's interfaces, routes or resolver changes.

    Args:
        config: see :func:`.quick.parse_quick`.
        underlay: instead of a UDP port made from *config*.
        entropy: for keys and ports (tests).
        dial_timeout: seconds that :meth:`connect_tcp` waits for each call.

    Raises:
        ConfigError: a setting cannot be used.
    """

    def __init__(
        self,
        config: WireGuardConfig,
        *,
        underlay: WireGuardUnderlay | None = None,
        entropy: Entropy | None = None,
        dial_timeout: float = DIAL_SECONDS,
    ) -> None:
        self._config = config
        self._dial_timeout = dial_timeout
        entropy = entropy if entropy is not None else SystemEntropy()
        self._underlay = (
            underlay
            if underlay is not None
            else WireGuardUnderlay(
                port=config.listen_port,
                endpoints={peer.public_key: peer.endpoint for peer in config.peers if peer.endpoint is not None},
            )
        )
        self._dataplane = DataPlane(entropy)
        self._pump = Pump(self._dataplane, self._underlay, sink=self._on_event)
        self._underlay.on_blocked = self._pump.set_blocked
        self._resolver = TunnelResolver(
            self._pump, config.dns_servers, config.search_domains, config.addresses, entropy
        )
        self._used = False
        self._running = False

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], *, dial_timeout: float = DIAL_SECONDS) -> Self:
        """Return the node that a ``wg-quick`` file describes.

        Raises:
            ConfigError: the file cannot be read, or is wrong (``path:line: what``).
        """
        return cls(load_quick(path), dial_timeout=dial_timeout)

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        if self._used:
            raise ConfigError("a node runs once", hint="make a new WireGuardNode for each run")
        self._used = True
        config = self._config
        self._underlay.configure(
            UnderlayConfig(config.private_key, tuple(UnderlayPeer(peer.public_key, None) for peer in config.peers))
        )
        failure: Exception | None = None
        try:
            async with anyio.create_task_group() as group:
                await group.start(self._run_underlay)
                self._pump.configure(self._dataplane_config())
                await group.start(self._pump.run)
                self._running = True
                try:
                    yield self
                except Exception as error:
                    failure = error  # as it is, and not in the task group's wrapping
                finally:
                    with anyio.move_on_after(SHUTDOWN_SECONDS, shield=True):
                        await self._pump.close(DRAIN_SECONDS)
                    self._running = False
                    group.cancel_scope.cancel()
        except BaseExceptionGroup as failures:
            raise single_failure(failures) from None
        finally:
            self._pump.stop()
        if failure is not None:
            raise failure

    # -- who it is ---------------------------------------------------------------------------------------------------

    @property
    def addresses(self) -> tuple[IpBytes, ...]:
        """The node's own addresses, raw, as configured."""
        return self._config.addresses

    @property
    def public_key(self) -> PeerId:
        """The node's public key, 32 raw bytes."""
        return self._config.public_key

    # -- sockets -----------------------------------------------------------------------------------------------------

    async def connect_tcp(self, host: str, port: int) -> TcpStream:
        """Dial *port* of *host*, an address inside the tunnel or a name that the ``DNS`` servers know.

        The addresses of a name are tried in order, IPv4 first.

        Raises:
            DialError: ``ECONNREFUSED``, ``ETIMEDOUT`` (after ``dial_timeout``), ``EHOSTUNREACH`` (no such name),
                ``ENETUNREACH`` (the address is in nobody's AllowedIPs).
        """
        pump = self._running_pump
        with anyio.move_on_after(self._dial_timeout):
            remotes = await self._routes(host)
            for remote in remotes[:-1]:
                try:
                    return await tcp.connect(pump, Endpoint(remote, port))
                except DialError as error:
                    _log.info("%s, trying the next address of %s", error, host)
            return await tcp.connect(pump, Endpoint(remotes[-1], port))
        raise DialError(
            f"{host} port {port}: no answer within {self._dial_timeout:g} s",
            errno=errno.ETIMEDOUT,
            hint="is the peer's Endpoint right, and does it know our public key?",
        )

    async def create_tcp_listener(self, port: int, *, host: str | None = None, backlog: int = 128) -> TcpListener:
        """Listen on *port* (0: any free one) of *host* (default: each of the node's own addresses).

        Raises:
            DialError: the port is taken (``EADDRINUSE``), or the address is not this node's (``EADDRNOTAVAIL``).
        """
        listener = tcp.listen(self._running_pump, port, ip=bind_address(host), backlog=backlog)
        await anyio.lowlevel.checkpoint()
        return listener

    async def create_udp_socket(self, port: int = 0, *, host: str | None = None) -> UdpSocket:
        """Bind a UDP socket; arguments and errors as for :meth:`create_tcp_listener`.

        It sends to addresses, and to names that :meth:`resolve` has found lately.
        """
        socket = udp.bind(self._running_pump, port, ip=bind_address(host), resolve=socket_resolver(self._resolver))
        await anyio.lowlevel.checkpoint()
        return socket

    async def create_connected_udp_socket(self, host: str, port: int) -> ConnectedUdpSocket:
        """Return a UDP socket that talks to *port* of *host* only, and hears of it when nobody is there.

        Raises:
            DialError: the name does not resolve, or there is no way to its address.
        """
        pump = self._running_pump
        socket = udp.connect(pump, Endpoint((await self._routes(host))[0], port))
        await anyio.lowlevel.checkpoint()
        return socket

    async def resolve(self, host: str) -> tuple[str, ...]:
        """Return the addresses of a name, IPv4 first, asking the ``DNS`` servers through the tunnel.

        Raises:
            DialError: no such name, or nobody answers (``EHOSTUNREACH``).
        """
        _ = self._running_pump
        return tuple(format_ip(ip) for ip in await self._resolver.resolve(host))

    async def ping(self, host: str, *, timeout_s: float = 5.0) -> Duration:
        """Send an ICMP echo request through the tunnel and return the round trip in nanoseconds.

        Raises:
            DialError: no answer in time (``ETIMEDOUT``), no such name, in nobody's AllowedIPs.
        """
        pump = self._running_pump
        return await icmp.ping(pump, (await self._routes(host))[0], timeout_s)

    # -- the tunnel --------------------------------------------------------------------------------------------------

    def status(self) -> WireGuardStatus:
        """Return what the node does and where its peers are, at this moment."""
        now = self._pump.now()
        peers = []
        for peer in self._config.peers:
            info = self._dataplane.peer_info(peer.public_key, now)
            last = None if info is None else info.last_handshake
            peers.append(
                WireGuardPeerStatus(
                    public_key=peer.public_key,
                    endpoint=self._underlay.endpoint_of(peer.public_key),
                    handshake_age_ns=None if last is None else now - last,
                    rx_bytes=0 if info is None else info.rx_bytes,
                    tx_bytes=0 if info is None else info.tx_bytes,
                )
            )
        below = {f"underlay.{reason}": n for reason, n in self._underlay.counters().items()}
        return WireGuardStatus(
            public_key=self.public_key,
            listen_port=self._underlay.local_port,
            addresses=tuple(format_ip(ip) for ip in self._config.addresses),
            peers=tuple(peers),
            drops=self._dataplane.stats().drops | below,
        )

    def rebind(self) -> None:
        """Move to a new UDP port of the host, as after a change of its network; connections go on.

        Raises:
            OSError: the host has no port left.
        """
        self._underlay.rebind()
        for peer in self._config.peers:
            info = self._dataplane.peer_info(peer.public_key, self._pump.now())
            if info is not None and info.established:
                # A word from the new port makes the peer send there.
                self._dataplane.initiate(peer.public_key, self._pump.now())
        self._pump.kick()

    # -- inside ------------------------------------------------------------------------------------------------------

    @property
    def _running_pump(self) -> Pump:
        if not self._running:
            raise ConfigError("the node is not running", hint="use it inside `async with WireGuardNode(...) as node:`")
        return self._pump

    def _dataplane_config(self) -> DataPlaneConfig:
        config = self._config
        return DataPlaneConfig(
            private_key=config.private_key,
            addresses=config.addresses,
            peers=tuple(
                PeerSpec(peer.public_key, peer.allowed_ips, peer.preshared_key, peer.persistent_keepalive_s)
                for peer in config.peers
            ),
            filter_rules=ALLOW_ALL,
            mtu=config.mtu,
        )

    async def _run_underlay(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        try:
            await self._underlay.run(self._pump.deliver, task_status=task_status)
        except OSError as error:
            raise ConfigError(
                f"UDP port {self._config.listen_port} cannot be opened: {error.strerror}",
                hint="another program may use it; without ListenPort any free one is taken",
            ) from error

    def _on_event(self, event: object) -> None:
        if isinstance(event, EndpointSeen):
            self._underlay.note_endpoint(event.peer, event.path)
        elif isinstance(event, PeerHandshake):
            self._underlay.note_handshake(event.peer)
        elif isinstance(event, UnknownSession):
            # The sender still uses keys of before our restart; a handshake from our side ends its wait.
            peer = self._underlay.peer_at(event.path)
            if peer is not None:
                self._dataplane.initiate(peer, self._pump.now())

    async def _routes(self, host: str) -> list[IpBytes]:
        """Return the addresses of *host* that some peer has, or that are our own."""
        found = await self._resolver.resolve(host)
        own = self._config.addresses
        families = {len(ip) for ip in own}
        ways = [
            ip for ip in found if ip in own or (len(ip) in families and self._dataplane.peer_for_ip(ip) is not None)
        ]
        if ways:
            return ways
        shown = format_ip(found[0])
        raise DialError(
            f"{host if shown == host else f'{host} ({shown})'}: not in the tunnel",
            errno=errno.ENETUNREACH,
            hint="no peer has that address in its AllowedIPs"
            if len(found[0]) in families
            else "[Interface] has no Address of that family",
        )
