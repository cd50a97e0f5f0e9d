"""The node as applications hold it."""

import errno
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final, Literal, Self, Unpack, final

import anyio
import msgspec
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskStatus

from tsnetpy.base.addr import Endpoint, IpBytes, format_ip
from tsnetpy.base.entropy import Entropy
from tsnetpy.base.errors import AuthError, ConfigError, ControlError, DialError, TsnetError
from tsnetpy.base.instant import Duration
from tsnetpy.control import ControlState
from tsnetpy.control.dial import Connect, connect_tcp
from tsnetpy.netstack import icmp, tcp, udp
from tsnetpy.netstack.attributes import WhoIs
from tsnetpy.netstack.errors import bind_address
from tsnetpy.netstack.tcp import TcpListener, TcpStream
from tsnetpy.netstack.udp import ConnectedUdpSocket, UdpSocket
from tsnetpy.runtime.supervise import single_failure
from tsnetpy.runtime.tls import Verify
from tsnetpy.runtime.underlay import PathUnderlay
from tsnetpy.runtime.watch import Watch
from tsnetpy.tailcfg import NetMap, Service

from .config import NodeConfig, NodeOptions
from .state import StateStore, open_store
from .status import NodeStatus, node_status
from .whois import whois_address
from .wiring import Wiring

_SHUTDOWN_SECONDS: Final = 1.7
"""A program that is told to stop promises to be gone within 2 s."""
PingKind = Literal["icmp", "disco"]


@dataclass(frozen=True, slots=True)
class PingReply:
    """The answer to one ping."""

    latency_ns: Duration
    address: str
    """The tailnet address that was pinged."""
    name: str
    """The peer's full name, or ``""``."""
    via: Literal["direct", "derp", "tunnel"]
    """How a disco ping came back; an ICMP ping went through the tunnel by whatever path."""
    endpoint: Endpoint | None = None
    """The peer's UDP address, if ``via`` is ``"direct"``."""
    region: int = 0
    """The DERP region, if ``via`` is ``"derp"``."""


@final
class Node(AsyncContextManagerMixin):
    """One unprivileged node of a tailnet, inside this process.

    ::

        async with Node(hostname="echo", auth_key="tskey-…") as node:      # waits until it runs
            stream = await node.connect_tcp("server", 80)

    Nothing leaves through the host's network, nothing listens on the host, and nothing touches the disk unless
    *state_dir* says so. Leaving the block closes every socket, delivers what was sent (bounded), and takes an ephemeral
    node out of the tailnet.

    Args:
        config: the settings, or just the host name.
        underlay: instead of real sockets (tests).
        entropy: for keys (tests).
        store: where the identity is kept, instead of *state_dir*.
        verify: how the coordination server's TLS certificate is checked.
        connect: how the coordination server is dialled.
        options: single settings; see :class:`NodeConfig`.

    Raises:
        ConfigError: a setting cannot be used.
    """

    def __init__(
        self,
        config: NodeConfig | str | None = None,
        *,
        underlay: PathUnderlay | None = None,
        entropy: Entropy | None = None,
        store: StateStore | None = None,
        verify: Verify = "system",
        connect: Connect = connect_tcp,
        **options: Unpack[NodeOptions],
    ) -> None:
        if isinstance(config, str):
            config = NodeConfig(hostname=config)
        self._config = replace(config if config is not None else NodeConfig(), **options).resolved()
        self._underlay = underlay
        self._entropy = entropy
        self._store = store
        self._verify = verify
        self._connect = connect
        self._parts: Wiring | None = None
        self._netmap: Watch[NetMap | None] = Watch(None)
        self._used = False

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        if self._used:
            raise ConfigError("a node runs once", hint="make a new Node for each run")
        self._used = True
        state_dir = self._config.state_dir
        store = self._store if self._store is not None else open_store(state_dir)  # type: ignore[arg-type]  # resolved() made it a Path
        try:
            parts = Wiring(
                self._config,
                store,
                underlay=self._underlay,
                entropy=self._entropy,
                verify=self._verify,
                connect=self._connect,
            )
            self._parts = parts
            self._netmap = parts.netmap
            failure: Exception | None = None
            try:
                async with anyio.create_task_group() as group:
                    scope = anyio.CancelScope()

                    async def work(*, task_status: TaskStatus[None]) -> None:
                        with scope:
                            await parts.run(task_status=task_status)

                    await group.start(work)
                    # From here on the parts work on when the caller is cancelled: closing still needs them.
                    scope.shield = True
                    try:
                        await self._wait_until_running(parts)
                        yield self
                    except Exception as error:
                        failure = error  # as it is, and not in the task group's wrapping
                    finally:
                        with anyio.move_on_after(_SHUTDOWN_SECONDS, shield=True):
                            await parts.shut_down()
                        scope.cancel()
                        group.cancel_scope.cancel()
            except BaseExceptionGroup as failures:
                raise single_failure(failures) from None
            if failure is not None:
                raise failure
        finally:
            if self._store is None:
                store.close()

    # -- who it is ---------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The node's full name as the server assigned it, without a final dot; ``""`` before the first network map."""
        netmap = self._netmap.value
        return netmap.self_node.fqdn if netmap is not None else ""

    @property
    def addresses(self) -> tuple[IpBytes, ...]:
        """The node's own addresses, raw, IPv4 first."""
        netmap = self._netmap.value
        return tuple(sorted(netmap.addresses, key=len)) if netmap is not None else ()

    @property
    def netmap(self) -> Watch[NetMap | None]:
        """The network map in force, and its changes."""
        return self._netmap

    # -- sockets -----------------------------------------------------------------------------------------------------

    async def connect_tcp(self, host: str, port: int) -> TcpStream:
        """Dial *port* of *host*, a name or an address of the tailnet.

        Raises:
            DialError: ``ECONNREFUSED``, ``ETIMEDOUT`` (after ``dial_timeout``), ``EHOSTUNREACH`` (no such name),
                ``ENETUNREACH`` (the address is not on the tailnet).
        """
        parts = self._running
        remote = Endpoint(parts.dialer.route(host), port)
        with anyio.move_on_after(self._config.dial_timeout):
            return await tcp.connect(parts.pump, remote)
        raise DialError(
            f"{host} port {port}: no answer within {self._config.dial_timeout:g} s",
            errno=errno.ETIMEDOUT,
            hint="the peer may be offline, or the tailnet policy may silently drop this connection",
        )

    async def create_tcp_listener(self, port: int, *, host: str | None = None, backlog: int = 128) -> TcpListener:
        """Listen on *port* (0: any free one) of *host* (default: each of the node's own addresses).

        Raises:
            DialError: the port is taken (``EADDRINUSE``), or the address is not this node's (``EADDRNOTAVAIL``).
        """
        listener = tcp.listen(self._running.pump, port, ip=bind_address(host), backlog=backlog)
        await anyio.lowlevel.checkpoint()
        return listener

    async def create_udp_socket(self, port: int = 0, *, host: str | None = None) -> UdpSocket:
        """Bind a UDP socket; arguments and errors as for :meth:`create_tcp_listener`. It can send to names, too."""
        parts = self._running
        socket = udp.bind(parts.pump, port, ip=bind_address(host), resolve=parts.dialer.route)
        await anyio.lowlevel.checkpoint()
        return socket

    async def create_connected_udp_socket(self, host: str, port: int) -> ConnectedUdpSocket:
        """Return a UDP socket that talks to *port* of *host* only, and hears of it when nobody is there.

        Raises:
            DialError: the name does not resolve, or there is no way to its address.
        """
        parts = self._running
        socket = udp.connect(parts.pump, Endpoint(parts.dialer.route(host), port))
        await anyio.lowlevel.checkpoint()
        return socket

    # -- who is who --------------------------------------------------------------------------------------------------

    def resolve(self, host: str) -> tuple[str, ...]:
        """Return the addresses of a name of the tailnet, IPv4 first.

        Raises:
            DialError: there is no such name.
        """
        return tuple(format_ip(ip) for ip in self._running.dialer.resolve(host))

    def whois(self, address: str) -> WhoIs | None:
        """Return the identity behind ``ip`` or ``ip:port``, or ``None`` if it belongs to nobody."""
        return whois_address(self._netmap.value, address)

    async def ping(self, host: str, *, kind: PingKind = "icmp", timeout_s: float = 5.0) -> PingReply:
        """Ping a peer: its IP stack through the tunnel (``icmp``), or its path below the tunnel (``disco``).

        Raises:
            DialError: no answer in time (``ETIMEDOUT``), no such name, not on the tailnet.
        """
        parts = self._running
        ip = parts.dialer.route(host)
        identity = whois_address(self._netmap.value, format_ip(ip))
        name = identity.node.fqdn if identity is not None else ""
        if kind == "icmp":
            return PingReply(await icmp.ping(parts.pump, ip, timeout_s), format_ip(ip), name, "tunnel")
        found = await parts.underlay.ping(identity.node.key.raw, timeout_s) if identity is not None else None
        if found is None:
            raise DialError(f"{host}: no answer to a disco ping", errno=errno.ETIMEDOUT, hint="the peer may be offline")
        return PingReply(found.latency_ns, format_ip(ip), name, found.via, found.endpoint, found.region)

    # -- control -----------------------------------------------------------------------------------------------------

    def status(self) -> NodeStatus:
        """Return what the node does and how its peers are reached, at this moment."""
        return node_status(self._parts, self._config.control_url)

    def advertise(
        self, *, ssh_host_keys: tuple[str, ...] | None = None, services: tuple[Service, ...] | None = None
    ) -> None:
        """Tell the tailnet about services of this node; what is ``None`` stays as it is.

        Args:
            ssh_host_keys: public keys of an SSH server (``authorized_keys`` lines); none: there is no server.
            services: ports that peers may want to know of.
        """
        control = self._running.control
        hostinfo = control.hostinfo
        if ssh_host_keys is not None:
            hostinfo = msgspec.structs.replace(hostinfo, ssh_host_keys=ssh_host_keys)
        if services is not None:
            hostinfo = msgspec.structs.replace(hostinfo, services=services)
        control.update_hostinfo(hostinfo)

    async def control_request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Send a request to the coordination server over the node's own encrypted connection (SSH check mode).

        Raises:
            ControlError: not connected, or no answer.
        """
        return await self._running.control.request(method, path, body)

    async def logout(self) -> bool:
        """Give the node key back: the tailnet forgets this login. Tell whether the server confirmed."""
        return await self._running.log_out()

    # -- inside ------------------------------------------------------------------------------------------------------

    @property
    def _running(self) -> Wiring:
        if self._parts is None:
            raise ConfigError("the node is not running", hint="use it inside `async with Node(...) as node:`")
        return self._parts

    async def _wait_until_running(self, parts: Wiring) -> None:
        asked = False
        with anyio.move_on_after(self._config.timeout) as patience:
            while True:
                version = parts.progress.version
                if parts.failure is not None:
                    raise parts.failure
                state = parts.control.status.value.state
                if state is ControlState.RUNNING and parts.netmap.value is not None:
                    return
                if self._config.login_timeout is not None and asked is not (state is ControlState.NEEDS_LOGIN):
                    asked = not asked
                    allowed = self._config.login_timeout if asked else self._config.timeout
                    patience.deadline = anyio.current_time() + allowed
                await parts.progress.wait_change(version)
        raise self._not_running(parts)

    def _not_running(self, parts: Wiring) -> TsnetError:
        """Return why the node does not run although the time is up."""
        status = parts.control.status.value
        waited = f"within {self._config.timeout:g} s"
        if status.state is ControlState.NEEDS_LOGIN:
            return AuthError(
                f"nobody logged this node in {waited}", hint=f"visit {status.auth_url}, or use an auth key"
            )
        if status.state is ControlState.NEEDS_MACHINE_AUTH:
            return AuthError(f"this machine was not approved {waited}", hint="an administrator has to approve it")
        if status.state is ControlState.EXPIRED:
            return AuthError("the node key has expired", hint="log in again, or use an auth key")
        detail = f": {status.message}" if status.message else ""
        return ControlError(
            f"{self._config.control_url} did not let this node in {waited}{detail}",
            hint=status.hint or "check the URL of the coordination server and the way to it",
        )
