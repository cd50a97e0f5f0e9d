"""What a node knows about its tailnet at one moment. Immutable: each map response makes a new one."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tsnetpy.base.addr import IpBytes, unmap

from .derpmap import DERPMap
from .dns import DNSConfig
from .filter import FilterRule, matches_any
from .mapping import DisplayMessage
from .node import Node, UserProfile
from .ssh import SSHPolicy


class _Index:
    """Look-up tables, filled at the first question and shared by all who hold the map."""

    __slots__ = ("by_ip", "by_key", "by_name", "filled")

    def __init__(self) -> None:
        self.filled = False
        self.by_ip: dict[IpBytes, Node] = {}
        self.by_key: dict[bytes, Node] = {}
        self.by_name: dict[str, Node] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class NetMap:
    """The network map."""

    self_node: Node
    """This node."""
    peers: Mapping[int, Node] = field(default_factory=dict)
    """Other nodes by ID; never modified in place."""
    user_profiles: Mapping[int, UserProfile] = field(default_factory=dict)
    derp_map: DERPMap | None = None
    dns_config: DNSConfig | None = None
    packet_filter: tuple[FilterRule, ...] = ()
    """All chunks concatenated. Empty blocks everything inbound."""
    ssh_policy: SSHPolicy | None = None
    domain: str = ""
    """The tailnet's name (with Headscale the host of its URL), not the DNS domain."""
    health: tuple[str, ...] = ()
    display_messages: Mapping[str, DisplayMessage] = field(default_factory=dict)
    collect_services: bool = False
    tailnet_lock_head: str = ""
    """Non-empty while tailnet lock is on."""
    _index: _Index = field(default_factory=_Index, init=False, repr=False, compare=False)

    @property
    def magic_dns_suffix(self) -> str:
        """The tailnet's DNS domain, without dots at either end: the own name after its first label."""
        return self.self_node.name.partition(".")[2].rstrip(".")

    @property
    def addresses(self) -> tuple[IpBytes, ...]:
        """This node's own addresses, raw."""
        return self.self_node.address_bytes

    def peer_by_ip(self, ip: IpBytes) -> Node | None:
        """Return the node (this one included) whose own address *ip* is; subnet routes do not count."""
        return self._filled().by_ip.get(unmap(ip))

    def peer_by_key(self, key: bytes) -> Node | None:
        """Return the node (this one included) with the raw public node key *key*."""
        return self._filled().by_key.get(key)

    def peer_by_name(self, name: str) -> Node | None:
        """Return the node called *name*: fully qualified or a first label, case and trailing dot do not matter."""
        wanted = name.rstrip(".").lower()
        index = self._filled().by_name
        found = index.get(wanted)
        if found is None and "." not in wanted and self.magic_dns_suffix:
            found = index.get(f"{wanted}.{self.magic_dns_suffix.lower()}")
        return found

    def user_of(self, node: Node) -> UserProfile | None:
        """Return the profile of *node*'s owner, or ``None`` if the server sent none."""
        return self.user_profiles.get(node.user)

    def peer_capabilities(self, source: IpBytes) -> dict[str, list[object]]:
        """Return what *source* may do on this node by capability grants (reference, section 7).

        Values of all grants whose sources contain *source*, and whose destinations contain this node's address of the
        same family, are concatenated per capability.
        """
        source = unmap(source)
        own = [ip for ip in self.addresses if len(ip) == len(source)]
        granted: dict[str, list[object]] = {}
        if not own:
            return granted
        for rule in self.packet_filter:
            if not rule.cap_grant or not matches_any(rule.src_ips, source):
                continue
            for grant in rule.cap_grant:
                if not any(matches_any(grant.dsts, ip) for ip in own):
                    continue
                for capability in grant.caps:
                    granted.setdefault(capability, [])
                for capability, values in grant.cap_map.items():
                    granted.setdefault(capability, []).extend(values or ())
        return granted

    def _filled(self) -> _Index:
        index = self._index
        if not index.filled:
            for node in (*self.peers.values(), self.self_node):
                for ip in node.address_bytes:
                    index.by_ip[ip] = node
                index.by_key[node.key.raw] = node
                index.by_name[node.fqdn.lower()] = node
            index.filled = True
        return index
