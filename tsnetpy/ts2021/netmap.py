"""Applying map responses, in the order the official client does (reference, section 6)."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final, final

import msgspec

from tsnetpy.base.addr import IpBytes
from tsnetpy.base.errors import RemoteProtocolError
from tsnetpy.tailcfg.derpmap import DERPHomeParams, DERPMap
from tsnetpy.tailcfg.dns import DNSConfig
from tsnetpy.tailcfg.filter import FilterRule, matches_any
from tsnetpy.tailcfg.mapping import ControlDialPlan, DisplayMessage, MapResponse, PingRequest, TKAInfo
from tsnetpy.tailcfg.netmap import NetMap
from tsnetpy.tailcfg.node import CapMap, Node, PeerChange, UserProfile
from tsnetpy.tailcfg.ssh import SSHPolicy
from tsnetpy.tailcfg.times import from_wall_ns, is_zero

_LEGACY_DERP_PREFIX: Final = "127.3.3.40:"
_ALL_CHUNKS: Final = "*"
_BASE_CHUNK: Final = "base"


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What one response did besides changing the map."""

    netmap: NetMap | None
    """The new map, or ``None`` if nothing in it changed (keep-alives, bare ``ControlTime``)."""
    ping: PingRequest | None = None
    """A ping to answer, not seen before."""
    pop_browser_url: str = ""
    """A page to show, not seen before on this stream."""
    dial_plan: ControlDialPlan | None = None
    sleep_seconds: float = 0.0
    """The server asks for a pause before the next message is read."""
    control_time: datetime | None = None


@final
class MapSession:
    """The state of one map stream. A new stream starts a new session, and its first message is complete."""

    __slots__ = (
        "_chunks", "_collect_services", "_derp_map", "_dns", "_domain", "_health", "_last_ping", "_last_pop",
        "_messages", "_peers", "_profiles", "_self", "_ssh", "_tka",
    )  # fmt: skip

    def __init__(self) -> None:
        self._self: Node | None = None
        self._peers: dict[int, Node] = {}
        self._profiles: dict[int, UserProfile] = {}
        self._derp_map: DERPMap | None = None
        self._chunks: dict[str, tuple[FilterRule, ...]] = {}
        self._dns: DNSConfig | None = None
        self._ssh: SSHPolicy | None = None
        self._tka: TKAInfo | None = None
        self._health: tuple[str, ...] = ()
        self._messages: dict[str, DisplayMessage] = {}
        self._collect_services = False
        self._domain = ""
        self._last_ping = ""
        self._last_pop = ""

    def apply(self, response: MapResponse, wall_ns: int) -> Applied:
        """Apply *response* and return what came of it.

        Args:
            response: the next message of the stream.
            wall_ns: nanoseconds since the Unix epoch, for ``PeerSeenChange``.

        Raises:
            RemoteProtocolError: the first message that is no keep-alive has no ``Node``.
        """
        ping = response.ping_request
        if ping is not None and (not ping.url or ping.url == self._last_ping):
            ping = None
        elif ping is not None:
            self._last_ping = ping.url
        pop = response.pop_browser_url if response.pop_browser_url != self._last_pop else ""
        self._last_pop = pop or self._last_pop

        netmap = None
        if not response.keep_alive:
            if self._self is None and response.node is None:
                raise RemoteProtocolError("the first map message has no Node")
            if self._apply_state(response, wall_ns):
                netmap = self._snapshot()
        return Applied(
            netmap=netmap,
            ping=ping,
            pop_browser_url=pop,
            dial_plan=response.control_dial_plan,
            sleep_seconds=response.debug.sleep_seconds if response.debug is not None else 0.0,
            control_time=response.control_time,
        )

    def _apply_state(self, response: MapResponse, wall_ns: int) -> bool:
        changed = self._apply_peers(response, wall_ns)
        if response.node is not None:
            self._self = fold_capabilities(normalise(response.node))
            changed = True
        for profile in response.user_profiles:
            if self._profiles.get(profile.id) != profile:
                self._profiles = {**self._profiles, profile.id: profile}
                changed = True
        if response.derp_map is not None:
            self._derp_map = merge_derp_map(self._derp_map, response.derp_map)
            changed = True
        changed |= self._apply_filter(response)
        if response.dns_config is not None:
            self._dns, changed = response.dns_config, True
        if response.ssh_policy is not None:
            self._ssh, changed = response.ssh_policy, True
        if response.tka_info is not None:
            self._tka, changed = response.tka_info, True
        if response.health is not None:
            self._health, changed = response.health, True
        if response.collect_services is not None:
            self._collect_services, changed = response.collect_services, True
        if response.domain:
            self._domain, changed = response.domain, True
        if response.display_messages:
            self._apply_display_messages(response.display_messages)
            changed = True
        return changed

    def _apply_peers(self, response: MapResponse, wall_ns: int) -> bool:
        if response.peers:
            self._peers = {node.id: normalise(node) for node in response.peers}
            return True
        if not (
            response.peers_removed
            or response.peers_changed
            or response.peer_seen_change
            or response.online_change
            or response.peers_changed_patch
        ):
            return False
        peers = dict(self._peers)  # published maps keep the old one
        for number in response.peers_removed:
            peers.pop(number, None)
        for node in response.peers_changed:
            peers[node.id] = normalise(node)
        for number, seen in response.peer_seen_change.items():
            if number in peers:
                moment = from_wall_ns(wall_ns) if seen else None
                peers[number] = msgspec.structs.replace(peers[number], last_seen=moment)
        for number, online in response.online_change.items():
            if number in peers:
                peers[number] = msgspec.structs.replace(peers[number], online=online)
        for patch in response.peers_changed_patch:
            if patch.node_id in peers:
                peers[patch.node_id] = patch_node(peers[patch.node_id], patch)
        self._peers = peers
        return True

    def _apply_filter(self, response: MapResponse) -> bool:
        if response.packet_filter is None and not response.packet_filters:
            return False
        chunks = dict(self._chunks)
        if response.packet_filter is not None:
            chunks[_BASE_CHUNK] = response.packet_filter
        if _ALL_CHUNKS in response.packet_filters and response.packet_filters[_ALL_CHUNKS] is None:
            chunks.clear()
        for name, rules in response.packet_filters.items():
            if rules is None:
                chunks.pop(name, None)
            else:
                chunks[name] = rules
        self._chunks = chunks
        return True

    def _apply_display_messages(self, patch: dict[str, DisplayMessage | None]) -> None:
        messages = {} if _ALL_CHUNKS in patch and patch[_ALL_CHUNKS] is None else dict(self._messages)
        for name, message in patch.items():
            if message is None:
                messages.pop(name, None)
            else:
                messages[name] = message
        self._messages = messages

    def _snapshot(self) -> NetMap | None:
        if self._self is None:
            return None
        rules = tuple(rule for name in sorted(self._chunks) for rule in self._chunks[name])
        tka = self._tka
        return NetMap(
            self_node=self._self,
            peers=self._peers,
            user_profiles=self._profiles,
            derp_map=self._derp_map,
            dns_config=self._dns,
            packet_filter=rules if filter_is_valid(rules, self._peers) else (),
            ssh_policy=self._ssh,
            domain=self._domain,
            health=self._health,
            display_messages=self._messages,
            collect_services=self._collect_services,
            tailnet_lock_head=tka.head if tka is not None and not tka.disabled else "",
        )


def normalise(node: Node) -> Node:
    """Return *node* with legacy forms replaced: ``DERP``, absent ``AllowedIPs``, unsigned peers' extra routes."""
    home_derp = node.home_derp
    if not home_derp and node.derp.startswith(_LEGACY_DERP_PREFIX):
        region = node.derp[len(_LEGACY_DERP_PREFIX) :]
        home_derp = int(region) if region.isascii() and region.isdigit() else 0
    allowed = node.allowed_ips
    if allowed is None or node.unsigned_peer_api_only:
        allowed = node.addresses
    if home_derp == node.home_derp and allowed is node.allowed_ips:
        return node
    return msgspec.structs.replace(node, home_derp=home_derp, allowed_ips=allowed)


def fold_capabilities(node: Node) -> Node:
    """Return *node* with its old capability list merged into the capability map."""
    missing = [name for name in node.capabilities if name not in node.cap_map]
    if not missing:
        return node
    folded: CapMap = dict(node.cap_map)
    for name in missing:
        folded[name] = None
    return msgspec.structs.replace(node, cap_map=folded)


def patch_node(node: Node, patch: PeerChange) -> Node:
    """Return *node* with the present fields of *patch* applied."""
    if (
        patch.disco_key is not None
        and patch.online is False
        and patch.last_seen is not None
        and node.last_seen is not None
        and patch.last_seen <= node.last_seen
    ):
        return node  # an old announcement that overtook a newer one
    changes: dict[str, object] = {}
    if patch.derp_region:
        changes["home_derp"] = patch.derp_region
    if patch.cap:
        changes["cap"] = patch.cap
    if patch.cap_map is not None:
        changes["cap_map"] = patch.cap_map
    if patch.endpoints is not None:
        changes["endpoints"] = patch.endpoints
    if patch.key is not None:
        changes["key"] = patch.key
    if patch.key_signature is not None:
        changes["key_signature"] = patch.key_signature
    if patch.disco_key is not None:
        changes["disco_key"] = patch.disco_key
    if patch.online is not None:
        changes["online"] = patch.online
    if patch.last_seen is not None:
        changes["last_seen"] = patch.last_seen
    if patch.key_expiry is not None:
        changes["key_expiry"] = None if is_zero(patch.key_expiry) else patch.key_expiry
    return msgspec.structs.replace(node, **changes) if changes else node


def merge_derp_map(known: DERPMap | None, update: DERPMap) -> DERPMap:
    """Return *known* with *update*: absent parts keep, present ones replace, null regions are dropped."""
    if known is None:
        known = DERPMap()
    if update.regions is None:
        regions, omit_default = known.regions, known.omit_default_regions
    else:
        regions = {number: region for number, region in update.regions.items() if region is not None}
        omit_default = update.omit_default_regions
    home: DERPHomeParams | None = known.home_params
    if update.home_params is not None and update.home_params.region_score is not None:
        home = update.home_params
    return DERPMap(home_params=home, regions=regions, omit_default_regions=omit_default)


def filter_is_valid(rules: tuple[FilterRule, ...], peers: dict[int, Node]) -> bool:
    """Tell whether a filter may be used at all; one that may not blocks everything.

    Obsolete prefix-length fields spoil it, and so does a rule that would let in a peer whose key tailnet lock has not
    signed.
    """
    if any(rule.is_obsolete_form for rule in rules):
        return False
    unsigned: list[IpBytes] = [
        ip for node in peers.values() if node.unsigned_peer_api_only for ip in node.address_bytes
    ]
    return not any(rule.dst_ports and matches_any(rule.src_ips, ip) for ip in unsigned for rule in rules)
