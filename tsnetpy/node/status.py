"""What a node says about itself: plain data for programs, logs and the command line."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module

from tsnetpy import accel
from tsnetpy.base.addr import format_ip
from tsnetpy.base.instant import SECOND
from tsnetpy.control import ControlState, ControlStatus
from tsnetpy.runtime.clock import wall_ns
from tsnetpy.runtime.underlay import PathStatus, UnderlayState
from tsnetpy.tailcfg import NetMap, Node

from .wiring import Wiring

_BACKEND_STATES = {
    ControlState.CONNECTING: "Starting",
    ControlState.NEEDS_LOGIN: "NeedsLogin",
    ControlState.NEEDS_MACHINE_AUTH: "NeedsMachineAuth",
    ControlState.RUNNING: "Running",
    ControlState.EXPIRED: "NeedsLogin",
    ControlState.REFUSED: "NeedsLogin",
    ControlState.LOGGED_OUT: "Stopped",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStatus:
    """One peer, and how we reach it."""

    node: Node
    """The peer as the network map has it."""
    name: str
    """Full name without the final dot."""
    addresses: tuple[str, ...]
    login_name: str
    online: bool | None
    """What the server says; ``None``: it does not say."""
    expired: bool
    path: PathStatus | None
    """Direct address or relay, traffic counters; ``None`` if the underlay does not know the peer."""
    handshake_age_s: float | None
    """Seconds since the last WireGuard handshake, ``None`` before the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """A node at one moment."""

    backend_state: str
    """In Tailscale's words: NoState, Starting, NeedsLogin, NeedsMachineAuth, Running or Stopped."""
    control: ControlStatus
    """Where the control client stands: login URL, last trouble, hint."""
    control_url: str
    name: str
    """Full name in the tailnet (as assigned, not as asked for), without the final dot."""
    addresses: tuple[str, ...]
    tailnet: str
    magic_dns_suffix: str
    underlay: UnderlayState
    """Our own endpoints, home DERP region and network report."""
    peers: tuple[PeerStatus, ...] = ()
    health: tuple[str, ...] = ()
    """What the server (or we ourselves) find wrong, in words."""
    counters: Mapping[str, int] = field(default_factory=dict)
    """Packets and bytes through the data plane; turns of the pump, and wake-ups of its timer."""
    drops: Mapping[str, int] = field(default_factory=dict)
    """Dropped packets by reason; nothing is dropped without a count."""
    accel: str = ""
    """Which per-byte code runs: ``pure`` or ``native``."""
    compiled: bool = False
    """Whether the packet engines run compiled."""
    python: str = ""


def is_compiled() -> bool:
    """Tell whether the sans-IO core runs compiled (its modules then come from shared objects)."""
    file = import_module("tsnetpy.tcp.connection").__file__ or ""
    return file.endswith((".so", ".pyd"))


def node_status(parts: Wiring | None, control_url: str) -> NodeStatus:
    """Put the status of a node together from its parts (``None``: it was never started)."""
    if parts is None:
        return NodeStatus(
            backend_state="NoState",
            control=ControlStatus(),
            control_url=control_url,
            name="",
            addresses=(),
            tailnet="",
            magic_dns_suffix="",
            underlay=UnderlayState(),
            accel=accel.ops.name,
            compiled=is_compiled(),
            python=sys.version.split()[0],
        )
    netmap = parts.netmap.value
    stats = parts.dataplane.stats()
    control = parts.control.status.value
    health = netmap.health if netmap is not None else ()
    if control.message:
        health = (*health, control.message)
    return NodeStatus(
        backend_state=_BACKEND_STATES[control.state],
        control=control,
        control_url=control_url,
        name=netmap.self_node.fqdn if netmap is not None else "",
        addresses=tuple(format_ip(ip) for ip in netmap.addresses) if netmap is not None else (),
        tailnet=netmap.domain if netmap is not None else "",
        magic_dns_suffix=netmap.magic_dns_suffix if netmap is not None else "",
        underlay=parts.underlay.state.value,
        peers=tuple(_peer_status(parts, netmap, node) for node in netmap.peers.values()) if netmap is not None else (),
        health=health,
        counters={
            **{name: n for name, n in asdict(stats).items() if isinstance(n, int)},
            "pump_turns": parts.pump.turns,
            "pump_wakeups": parts.pump.wakeups,
        },
        drops={**stats.drops, **{f"underlay.{name}": n for name, n in parts.underlay.drop_counts().items()}},
        accel=accel.ops.name,
        compiled=is_compiled(),
        python=sys.version.split()[0],
    )


def _peer_status(parts: Wiring, netmap: NetMap, node: Node) -> PeerStatus:
    now = parts.pump.now()
    tunnel = parts.dataplane.peer_info(node.key.raw, now)
    handshake = tunnel.last_handshake if tunnel is not None else None
    user = netmap.user_of(node)
    return PeerStatus(
        node=node,
        name=node.fqdn,
        addresses=tuple(format_ip(ip) for ip in node.address_bytes),
        login_name=user.login_name if user is not None and not node.is_tagged else "",
        online=node.online,
        expired=node.is_expired(wall_ns()),
        path=parts.underlay.peer_status(node.key.raw),
        handshake_age_s=(now - handshake) / SECOND if handshake is not None else None,
    )
