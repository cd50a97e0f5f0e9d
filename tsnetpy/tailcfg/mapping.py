"""The long poll: what a node reports, and what it learns (reference, sections 5 and 6)."""

from datetime import datetime
from enum import IntEnum

import msgspec

from tsnetpy.base.keys import DiscoPublic, NodePublic

from ._struct import Message
from .derpmap import DERPMap
from .dns import DNSConfig
from .filter import FilterRule
from .hostinfo import Hostinfo
from .node import Node, PeerChange, UserProfile
from .ssh import SSHPolicy


class EndpointType(IntEnum):
    """How a node found one of its endpoints."""

    UNKNOWN = 0
    LOCAL = 1
    STUN = 2
    PORTMAPPED = 3
    STUN4_LOCAL_PORT = 4
    EXPLICIT = 5


class MapRequest(Message, frozen=True, kw_only=True):
    """``POST /machine/map``: with *stream* the long poll, without it a report ("lite update")."""

    version: int = 0
    compress: str = ""
    """``zstd`` or nothing."""
    keep_alive: bool = False
    node_key: NodePublic = msgspec.field(default_factory=NodePublic.zero)
    disco_key: DiscoPublic = msgspec.field(default_factory=DiscoPublic.zero)
    stream: bool = False
    hostinfo: Hostinfo | None = None
    map_session_handle: str = ""
    map_session_seq: int = 0
    endpoints: tuple[str, ...] = ()
    endpoint_types: tuple[int, ...] = ()
    """Parallel to *endpoints*; see :class:`EndpointType`."""
    tka_head: str = ""
    read_only: bool = False
    omit_peers: bool = False
    debug_flags: tuple[str, ...] = ()


class PingRequest(Message, frozen=True, kw_only=True):
    """The server wants proof of life: an empty *types* asks for ``HEAD`` on *url*."""

    url: str = ""
    url_is_noise: bool = msgspec.field(default=False, name="URLIsNoise")
    log: bool = False
    types: str = ""
    ip: str = ""
    payload: bytes = b""


class PingResponse(Message, frozen=True, kw_only=True):
    """What is posted back for each ping type that was asked for."""

    type: str = ""
    ip: str = ""
    node_ip: str = ""
    node_name: str = ""
    err: str = ""
    latency_seconds: float = 0.0
    endpoint: str = ""
    peer_relay: str = ""
    derp_region_id: int = 0
    derp_region_code: str = ""
    peer_api_port: int = msgspec.field(default=0, name="PeerAPIPort")
    is_local_ip: bool = False


class ClientVersion(Message, frozen=True, kw_only=True):
    """Whether the client is up to date."""

    running_latest: bool = False
    latest_version: str = ""
    urgent_security_update: bool = False
    notify: bool = False
    notify_url: str = ""
    notify_text: str = ""


class ControlIPCandidate(Message, frozen=True, kw_only=True):
    """One address to reach the server at."""

    ip: str = ""
    ace_host: str = msgspec.field(default="", name="ACEHost")
    dial_start_delay_sec: float = 0.0
    dial_timeout_sec: float = 0.0
    priority: int = 0


class ControlDialPlan(Message, frozen=True, kw_only=True):
    """Addresses to try instead of DNS; it outlives the stream."""

    candidates: tuple[ControlIPCandidate, ...] = ()


class Debug(Message, frozen=True, kw_only=True):
    """Instructions for development."""

    exit: int | None = None
    disable_log_tail: bool = False
    sleep_seconds: float = 0.0


class TKAInfo(Message, frozen=True, kw_only=True):
    """State of tailnet lock."""

    head: str = ""
    disabled: bool = False


class DisplayMessageAction(Message, frozen=True, kw_only=True):
    """A button."""

    url: str = ""
    label: str = ""


class DisplayMessage(Message, frozen=True, kw_only=True):
    """Something to show the user."""

    title: str = ""
    text: str = ""
    severity: str = ""
    impacts_connectivity: bool = False
    primary_action: DisplayMessageAction | None = None


class MapResponse(Message, frozen=True, kw_only=True):
    """One message of the long poll. ``None`` means "unchanged" and is not the same as empty."""

    map_session_handle: str = ""
    seq: int = 0
    keep_alive: bool = False
    ping_request: PingRequest | None = None
    pop_browser_url: str = ""
    node: Node | None = None
    derp_map: DERPMap | None = None
    peers: tuple[Node, ...] | None = None
    """Non-empty: all peers. Empty is ignored; only *peers_removed* takes the last one away."""
    peers_changed: tuple[Node, ...] = ()
    peers_removed: tuple[int, ...] = ()
    peers_changed_patch: tuple[PeerChange, ...] = ()
    peer_seen_change: dict[int, bool] = msgspec.field(default_factory=dict)
    online_change: dict[int, bool] = msgspec.field(default_factory=dict)
    dns_config: DNSConfig | None = None
    domain: str = ""
    collect_services: bool | None = None
    packet_filter: tuple[FilterRule, ...] | None = None
    """Older form of *packet_filters*: sets the chunk ``base``. Empty blocks all."""
    packet_filters: dict[str, tuple[FilterRule, ...] | None] = msgspec.field(default_factory=dict)
    user_profiles: tuple[UserProfile, ...] = ()
    health: tuple[str, ...] | None = None
    display_messages: dict[str, DisplayMessage | None] = msgspec.field(default_factory=dict)
    ssh_policy: SSHPolicy | None = None
    control_time: datetime | None = None
    tka_info: TKAInfo | None = None
    domain_data_plane_audit_log_id: str = ""
    debug: Debug | None = None
    control_dial_plan: ControlDialPlan | None = None
    client_version: ClientVersion | None = None
