"""Nodes of a tailnet, their owners, and patches to them."""

from datetime import datetime
from functools import lru_cache

import msgspec

from tsnetpy.base.addr import Endpoint, IpBytes, IpPrefix, parse_endpoint, parse_prefix
from tsnetpy.base.keys import DiscoPublic, MachinePublic, NodePublic

from ._struct import Message
from .dns import Resolver
from .hostinfo import Hostinfo
from .times import is_past

CapMap = dict[str, list[object] | None]
"""Capability to its values. ``None`` and ``[]`` both mean "present, without values"."""


@lru_cache(maxsize=65536)
def cached_prefix(text: str) -> IpPrefix | None:
    """Return the prefix *text* names or ``None``. The same few prefixes come back with every network map."""
    try:
        return parse_prefix(text)
    except ValueError:
        return None


class UserProfile(Message, frozen=True, kw_only=True):
    """Who owns a node, for display and policy."""

    id: int = 0
    login_name: str = ""
    display_name: str = ""
    profile_pic_url: str = ""
    groups: tuple[str, ...] = ()


class Node(Message, frozen=True, kw_only=True):
    """A node as the coordination server describes it to another node (or to itself)."""

    id: int = msgspec.field(default_factory=int)
    stable_id: str = ""
    name: str = ""
    """Fully qualified, with the trailing dot."""
    user: int = 0
    sharer: int = 0
    key: NodePublic = msgspec.field(default_factory=NodePublic.zero)
    key_expiry: datetime | None = None
    """Absent or the zero time: never."""
    key_signature: bytes = b""
    machine: MachinePublic = msgspec.field(default_factory=MachinePublic.zero)
    disco_key: DiscoPublic | None = None
    """``None`` until the node has polled once."""
    addresses: tuple[str, ...] = ()
    """Its own addresses as /32 and /128 prefixes."""
    allowed_ips: tuple[str, ...] | None = None
    """What routes to this peer; ``None`` stands for *addresses*, empty for nothing."""
    endpoints: tuple[str, ...] = ()
    derp: str = ""
    """Legacy form of *home_derp*: ``127.3.3.40:<region>``."""
    home_derp: int = 0
    hostinfo: Hostinfo = Hostinfo()
    created: datetime | None = None
    cap: int = 0
    """Its capability version; Headscale puts the viewer's own here, so nothing may depend on it."""
    tags: tuple[str, ...] = ()
    primary_routes: tuple[str, ...] = ()
    last_seen: datetime | None = None
    online: bool | None = None
    machine_authorized: bool = False
    capabilities: tuple[str, ...] = ()
    """The list that preceded *cap_map*."""
    cap_map: CapMap = msgspec.field(default_factory=dict)
    unsigned_peer_api_only: bool = msgspec.field(default=False, name="UnsignedPeerAPIOnly")
    computed_name: str = ""
    expired: bool = False
    self_node_v4_masq_addr_for_this_peer: str | None = None
    self_node_v6_masq_addr_for_this_peer: str | None = None
    is_wireguard_only: bool = msgspec.field(default=False, name="IsWireGuardOnly")
    is_jailed: bool = False
    exit_node_dns_resolvers: tuple[Resolver, ...] = ()
    data_plane_audit_log_id: str = ""

    @property
    def address_bytes(self) -> tuple[IpBytes, ...]:
        """Its own addresses, raw; entries that do not parse are left out."""
        return tuple(p.ip for p in map(cached_prefix, self.addresses) if p is not None)

    @property
    def allowed_prefixes(self) -> tuple[IpPrefix, ...]:
        """What routes to it, parsed; entries that do not parse (host bits set) are left out."""
        texts = self.addresses if self.allowed_ips is None else self.allowed_ips
        return tuple(p for p in map(cached_prefix, texts) if p is not None)

    @property
    def endpoint_addresses(self) -> tuple[Endpoint, ...]:
        """Candidate UDP endpoints, parsed; entries that do not parse are left out."""
        out: list[Endpoint] = []
        for text in self.endpoints:
            try:
                out.append(parse_endpoint(text))
            except ValueError:
                continue
        return tuple(out)

    @property
    def is_tagged(self) -> bool:
        """Tags are the identity of this node, instead of its user."""
        return bool(self.tags)

    @property
    def fqdn(self) -> str:
        """Its name without the trailing dot."""
        return self.name.rstrip(".")

    @property
    def short_name(self) -> str:
        """The first label of its name."""
        return self.name.partition(".")[0]

    def is_expired(self, wall_ns: int) -> bool:
        """Tell whether its key has expired, by the server's word or by the clock."""
        return self.expired or is_past(self.key_expiry, wall_ns)

    def has_cap(self, capability: str) -> bool:
        """Tell whether the node holds *capability*."""
        return capability in self.cap_map or capability in self.capabilities


class PeerChange(Message, frozen=True, kw_only=True):
    """A patch to one peer: only fields that are present apply (``None`` = absent)."""

    node_id: int = msgspec.field(default_factory=int)
    derp_region: int = 0
    cap: int = 0
    cap_map: CapMap | None = None
    endpoints: tuple[str, ...] | None = None
    key: NodePublic | None = None
    key_signature: bytes | None = None
    disco_key: DiscoPublic | None = None
    online: bool | None = None
    last_seen: datetime | None = None
    key_expiry: datetime | None = None
    """Present and the zero time: the key no longer expires."""
