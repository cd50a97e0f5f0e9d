"""The composition root: makes the parts of a node, connects them, and starts and stops them in order.

What flows where::

    control --netmap--> derive --> data plane, underlay, names     (on each new network map)
    underlay --endpoints, home region--> control                   (on each change)
    underlay --datagrams--> pump --> data plane --> sockets        (synchronously, per batch)
"""

import logging
from typing import Final, final

import anyio
import msgspec
from anyio.abc import TaskStatus

from tsnetpy.base.addr import Endpoint, IpBytes
from tsnetpy.base.entropy import Entropy, SystemEntropy
from tsnetpy.base.errors import AuthError, ConfigError
from tsnetpy.base.instant import SECOND
from tsnetpy.base.keys import DiscoPublic, NodePrivate, NodePublic
from tsnetpy.base.packet import PeerId
from tsnetpy.base.version import VERSION
from tsnetpy.control import ControlClient, ControlConfig, ControlState, default_hostinfo
from tsnetpy.control.dial import Connect, connect_tcp
from tsnetpy.crypto import dh
from tsnetpy.dataplane import DataPlane, UnknownSession
from tsnetpy.magicsock import MagicSock
from tsnetpy.netstack.attributes import WhoIs
from tsnetpy.netstack.pump import Pump
from tsnetpy.runtime.clock import wall_ns
from tsnetpy.runtime.tls import Verify
from tsnetpy.runtime.underlay import PathUnderlay, UnderlayConfig, UnderlayState
from tsnetpy.runtime.watch import Watch
from tsnetpy.tailcfg import EndpointType, NetInfo, NetMap

from . import derive
from .config import NodeConfig
from .dialer import Dialer
from .magicdns import serve_magic_dns
from .state import StateStore, forget_login, load_identity, save_login
from .whois import whois_ip

_log = logging.getLogger(__name__)

DRAIN_SECONDS: Final = 1.0
"""How long closing waits for peers to take what was sent to them."""
LOGOUT_AFTER_SECONDS: Final = 0.4
"""When closing logs out although peers have not taken everything yet. They drop a node once the server forgets it."""
LOGOUT_SECONDS: Final = 1.2
"""How long closing waits for the server to forget an ephemeral node."""
_MAX_TROUBLES: Final = 8


@final
class Wiring:
    """All parts of one node.

    Args:
        config: resolved settings.
        store: where the identity is kept.
        underlay: instead of real sockets.
        entropy: for keys; anything but the default is for tests.
        verify: how the coordination server's certificate is checked.
        connect: how the coordination server is dialled.

    Attributes:
        progress: set whenever the control client's status or the applied network map changed.
        netmap: the network map that the data plane works by.
        failure: why the control client has given up, if it has.
    """

    def __init__(
        self,
        config: NodeConfig,
        store: StateStore,
        *,
        underlay: PathUnderlay | None = None,
        entropy: Entropy | None = None,
        verify: Verify = "system",
        connect: Connect = connect_tcp,
    ) -> None:
        self.config = config
        self.entropy = entropy if entropy is not None else SystemEntropy()
        self.store = store
        self.identity = load_identity(store, self.entropy)
        if self.identity.node is not None and self.identity.control_url not in ("", config.control_url):
            # A node key belongs to the server that accepted it; showing it to another one would link the two.
            _log.info("the stored login belongs to %s; logging in anew", self.identity.control_url)
            self.identity.node = self.identity.old_node = None
            self.identity.profile = ""
            self.identity.forget_document()
        self.underlay: PathUnderlay = (
            underlay if underlay is not None else MagicSock(port=config.port, entropy=self.entropy)
        )
        self.dataplane = DataPlane(self.entropy)
        self.pump = Pump(self.dataplane, self.underlay, sink=self._on_event)
        self.pump.identify = self._identify
        if isinstance(self.underlay, MagicSock):
            self.underlay.on_burst = self.pump.set_burst
            self.underlay.flusher.on_blocked = self.pump.set_blocked
        self.dialer = Dialer(accept_routes=config.accept_routes)
        hostinfo = default_hostinfo(config.hostname, version=VERSION, entropy=self.entropy, tags=config.tags)
        hostinfo = msgspec.structs.replace(hostinfo, ssh_host_keys=config.ssh_host_keys, shields_up=config.shields_up)
        old = self.identity.old_node
        self.control = ControlClient(
            ControlConfig(
                server_url=config.control_url,
                machine_key=self.identity.machine,
                hostinfo=hostinfo,
                node_key=self.identity.node,
                old_node_key=NodePublic(dh.public_key(old.raw)) if old is not None else NodePublic.zero(),
                disco_key=DiscoPublic(self.underlay.disco_public),
                auth_key=config.auth_key,
                ephemeral=bool(config.ephemeral),
                save_keys=self._save_keys,
                verify=verify,
                connect=connect,
            ),
            entropy=self.entropy,
        )
        self.netmap: Watch[NetMap | None] = Watch(None)
        self.progress: Watch[None] = Watch(None)
        self.failure: AuthError | None = None
        self._shown_url = ""

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Run all parts until cancelled; started means that packets can flow and the control client is dialling."""
        if self.identity.node is not None:
            self.underlay.configure(UnderlayConfig(node_private=self.identity.node.raw))
        try:
            async with anyio.create_task_group() as group:
                await group.start(self.pump.run)
                await group.start(self._run_underlay)
                self._tell_control(self.underlay.state.value)
                group.start_soon(self._follow_underlay)
                group.start_soon(self._follow_netmap)
                group.start_soon(self._follow_status)
                if self.config.serve_dns:
                    await group.start(self._run_dns)
                group.start_soon(self._run_control)
                task_status.started()
        finally:
            self.pump.stop()

    async def shut_down(self) -> None:
        """Close all sockets and deliver what was sent, log an ephemeral node out; bounded, and deaf to cancellation."""
        drained = anyio.Event()

        async def drain() -> None:
            await self.pump.close(DRAIN_SECONDS)
            drained.set()

        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as group:
                group.start_soon(drain)
                if self.config.ephemeral:
                    with anyio.move_on_after(LOGOUT_AFTER_SECONDS):
                        await drained.wait()
                    await self.log_out()

    async def log_out(self) -> bool:
        """Make the server forget this login and forget the node key; tell whether the server confirmed."""
        done = await self.control.logout(timeout_s=LOGOUT_SECONDS)
        if done:
            forget_login(self.store, self.identity)
        return done

    # -- tasks -------------------------------------------------------------------------------------------------------

    async def _run_underlay(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        try:
            await self.underlay.run(self.pump.deliver, task_status=task_status)
        except OSError as error:
            what = f"UDP port {self.config.port}" if self.config.port else "a UDP socket"
            raise ConfigError(
                f"cannot use {what}: {error.strerror or error}", hint="another program may have it; 0 is any free port"
            ) from error

    async def _run_dns(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        await serve_magic_dns(self.pump, lambda: self.dialer.table, task_status=task_status)

    async def _run_control(self) -> None:
        try:
            await self.control.run()
        except AuthError as error:
            # A running node keeps its connections: peers drop it when the server tells them to.
            if self.netmap.value is not None:  # else whoever waits for the node is told
                _log.error("%s%s", error, f" ({error.hint})" if error.hint else "")
            self.failure = error
            self.progress.set(None)

    async def _follow_netmap(self) -> None:
        cell = self.control.netmap
        version = 0
        while True:
            pause = self._seconds_to_expiry(cell.value)
            with anyio.move_on_after(pause):
                await cell.wait_change(version)
            version = cell.version
            if cell.value is not None:
                self._apply(cell.value)

    async def _follow_status(self) -> None:
        cell = self.control.status
        told: set[str] = set()
        async for status in cell.changes():
            if status.state is ControlState.RUNNING:
                told.clear()
            trouble = status.message if status.state is ControlState.CONNECTING else ""
            if trouble and trouble not in told and len(told) < _MAX_TROUBLES:
                told.add(trouble)  # once each: attempts go on for as long as the server is away
                _log.warning("%s; trying again", trouble)
            if status.state is ControlState.NEEDS_LOGIN and status.auth_url != self._shown_url:
                self._shown_url = status.auth_url
                if self.config.on_auth_url is not None:
                    self.config.on_auth_url(status.auth_url)
                else:
                    _log.warning("to log this node in, visit: %s", status.auth_url)
            self.progress.set(None)

    async def _follow_underlay(self) -> None:
        async for state in self.underlay.state.changes():
            self._tell_control(state)

    # -- reactions ---------------------------------------------------------------------------------------------------

    def _apply(self, netmap: NetMap) -> None:
        node_key = self.control.node_key
        if node_key is None or self.identity.node is None:
            return  # logged out; the server's last words are about a node that is no more
        now = wall_ns()
        config = self.config
        self.dialer.update(netmap)
        self.underlay.configure(derive.underlay_config(netmap, node_key.raw, now))
        self.pump.configure(
            derive.dataplane_config(
                netmap, node_key.raw, now, accept_routes=config.accept_routes, shields_up=config.shields_up
            )
        )
        if netmap.self_node.stable_id != self.identity.node_id:
            self._save(netmap)
        self.netmap.set(netmap)
        self.progress.set(None)

    def _tell_control(self, state: UnderlayState) -> None:
        self.control.update_endpoints([(Endpoint(e.ip, e.port), EndpointType(e.kind)) for e in state.endpoints])
        info = state.net_info
        self.control.update_netinfo(
            NetInfo(
                mapping_varies_by_dest_ip=info.mapping_varies_by_dest_ip,
                working_ipv6=info.ipv6,
                os_has_ipv6=info.os_has_ipv6,
                working_udp=info.udp,
                preferred_derp=state.home_derp or info.preferred_derp,
                derp_latency=dict(info.derp_latency),
            )
        )

    def _save_keys(self, node_key: NodePrivate, old_public: NodePublic) -> None:
        identity = self.identity
        if identity.node is not None and identity.node != node_key:
            identity.old_node = identity.node
        if identity.node != node_key:
            identity.node = node_key
            self.underlay.configure(UnderlayConfig(node_private=node_key.raw))
        self._save(None)

    def _save(self, netmap: NetMap | None) -> None:
        user = netmap.user_of(netmap.self_node) if netmap is not None else None
        save_login(
            self.store,
            self.identity,
            self.entropy,
            control_url=self.config.control_url,
            hostname=self.config.hostname,
            node_id=netmap.self_node.stable_id if netmap is not None else "",
            user_id=user.id if user is not None else 0,
            login_name=user.login_name if user is not None else self.control.user_login,
            display_name=user.display_name if user is not None else "",
            domain=netmap.domain if netmap is not None else "",
        )

    def _identify(self, ip: IpBytes) -> WhoIs | None:
        return whois_ip(self.netmap.value, ip)

    def _on_event(self, event: object) -> None:
        if isinstance(event, UnknownSession):
            # The sender still uses keys of before our restart; a handshake from our side ends its wait.
            peer = self._peer_on(event.path)
            if peer is not None:
                self.dataplane.initiate(peer, self.pump.now())

    def _peer_on(self, path: object) -> PeerId | None:
        """Return the peer whose datagrams come by *path*, if that can be told."""
        if not isinstance(path, tuple):
            return None
        if path[0] == "derp":
            return path[2] if isinstance(path[2], bytes) else None
        netmap = self.netmap.value
        for node in netmap.peers.values() if netmap is not None else ():
            status = self.underlay.peer_status(node.key.raw)
            if status is not None and status.cur_addr == path[1:]:
                return node.key.raw
        return None

    @staticmethod
    def _seconds_to_expiry(netmap: NetMap | None) -> float:
        now = wall_ns()
        expiry = derive.next_expiry(netmap, now) if netmap is not None else None
        return float("inf") if expiry is None else (expiry - now) / SECOND + 0.001
