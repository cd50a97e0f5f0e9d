"""What each node is told: a full map at first, then only what changed.

:class:`Snapshot` is one version of the tailnet, compiled once and asked per node; a :class:`View` is one node's part of
it. A stream keeps the last view that it sent, so a change is the difference of two views, whatever happened in between.
Rules for the messages: control protocol reference, section 6.
"""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tsnetpy.base.addr import parse_ip
from tsnetpy.base.instant import SECOND

from .compile import CompiledPolicy, Json, Subject
from .policy import Policy
from .state import TAGGED_LOGIN, TAGGED_USER_ID, NodeRecord, UserRecord

_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

_PRIVATE_HOSTINFO: Final = frozenset(("netinfo", "backendlogid", "frontendlogid", "requesttags"))
"""Members of Hostinfo that are between a node and its server; peers do not get them."""

_PATCHABLE: Final = ("Online", "LastSeen", "Endpoints", "HomeDERP")
"""Members of a peer that change often and that a patch can carry. A new disco key is sent with the whole node: clients
drop a patch that has one if they think it is old."""

_SELF_IGNORED: Final = ("Endpoints", "HomeDERP", "Hostinfo", "LastSeen", "Online", "Cap")
"""What a node said itself; telling it back is no news."""

SELF_CAPABILITIES: Final = (
    "https://tailscale.com/cap/file-sharing",
    "https://tailscale.com/cap/is-admin",
    "https://tailscale.com/cap/ssh",
)


def rfc3339(wall_ns: int) -> str:
    """Return a wall clock time as JSON carries it."""
    moment = _EPOCH + datetime.timedelta(seconds=wall_ns // SECOND, microseconds=wall_ns % SECOND // 1000)
    return moment.isoformat().replace("+00:00", "Z")


def dns_config(domain: str) -> Json:
    """Return MagicDNS for *domain*: names and reverse names of the tailnet are answered by the node itself."""
    routes: dict[str, list[Json]] = {f"{second}.100.in-addr.arpa": [] for second in range(64, 128)}
    routes["0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa"] = []
    return {"Routes": routes, "Domains": [domain], "Proxied": True}


@dataclass(frozen=True, slots=True)
class View:
    """Everything that one node may know, as JSON objects. Equal parts may be the same objects: never change them."""

    node: Json
    peers: Mapping[int, Json]
    profiles: Mapping[int, Json]
    packet_filter: Sequence[Json]
    ssh_rules: Sequence[Json]
    derp_map: Json
    dns: Json
    domain: str


class Snapshot:
    """One version of the tailnet.

    Args:
        version: which.
        policy: what holds.
        nodes, users: everybody.
        online: ids of the nodes that are connected.
        domain: the MagicDNS suffix.
        derp_map: as it goes out.
        now_wall_ns: decides which keys have expired.
        previous: an earlier snapshot. What did not change since is the same object here, so that comparing the views of
            many nodes with many peers each costs next to nothing.
    """

    def __init__(
        self,
        *,
        version: int,
        policy: Policy,
        nodes: Sequence[NodeRecord],
        users: Mapping[int, UserRecord],
        online: frozenset[int],
        domain: str,
        derp_map: Json,
        now_wall_ns: int,
        previous: "Snapshot | None" = None,
    ) -> None:
        self.version = version
        self._domain = domain
        self._derp_map = derp_map
        self._dns: Json = dns_config(domain) if previous is None or previous._domain != domain else previous._dns
        self._records = {node.id: node for node in nodes}
        self._compiled = CompiledPolicy(policy, [_subject(node, users) for node in nodes])
        # A node that never polled has no disco key: no peer could reach it, and clients skip it anyway.
        self._peers: dict[int, Json] = {
            node.id: self._render(node, node.id in online, now_wall_ns) for node in nodes if node.disco_key
        }
        if previous is not None:
            for node_id, rendered in self._peers.items():
                before = previous._peers.get(node_id)
                if before == rendered:
                    self._peers[node_id] = before
        self._own = {node.id: self._render_own(node, node.id in online, now_wall_ns) for node in nodes}
        self._profiles: dict[int, Json] = {
            user.id: {"ID": user.id, "LoginName": user.login, "DisplayName": user.display_name}
            for user in users.values()
        }
        self._profiles[TAGGED_USER_ID] = {
            "ID": TAGGED_USER_ID,
            "LoginName": TAGGED_LOGIN,
            "DisplayName": "Tagged Devices",
        }

    def view(self, node_id: int) -> View:
        """Return the part for one node.

        Raises:
            KeyError: no such node.
        """
        own = self._own[node_id]
        visible = sorted(self._compiled.visible_peers(node_id) & self._peers.keys())
        peers = {peer: self._peers[peer] for peer in visible}
        owners = sorted({self._records[peer].owner_id for peer in (node_id, *visible)})
        return View(
            node=own,
            peers=peers,
            profiles={owner: self._profiles[owner] for owner in owners},
            packet_filter=self._compiled.filter_rules(node_id),
            ssh_rules=self._compiled.ssh_rules(node_id),
            derp_map=self._derp_map,
            dns=self._dns,
            domain=self._domain,
        )

    def _render(self, node: NodeRecord, online: bool, now_wall_ns: int) -> Json:
        addresses = [f"{node.ipv4}/32", f"{node.ipv6}/128"]
        out: Json = {
            "ID": node.id,
            "StableID": f"n{node.id}",
            "Name": f"{node.name}.{self._domain}.",
            "User": node.owner_id,
            "Key": node.node_key,
            "Machine": node.machine_key,
            "Addresses": addresses,
            "AllowedIPs": addresses,
            "Hostinfo": {k: v for k, v in node.hostinfo.items() if k.lower() not in _PRIVATE_HOSTINFO},
            "Created": rfc3339(node.created_ns),
            "Cap": node.cap,
            "Online": online,
            "MachineAuthorized": True,
        }
        if node.disco_key:
            out["DiscoKey"] = node.disco_key
        if node.endpoints:
            out["Endpoints"] = node.endpoints
        if node.home_derp:
            out["HomeDERP"] = node.home_derp
        if node.tags:
            out["Tags"] = node.tags
        if node.expiry_ns:
            out["KeyExpiry"] = rfc3339(node.expiry_ns)
        if node.is_expired(now_wall_ns):
            out["Expired"] = True
        if not online and node.last_seen_ns:
            out["LastSeen"] = rfc3339(node.last_seen_ns)
        return out

    def _render_own(self, node: NodeRecord, online: bool, now_wall_ns: int) -> Json:
        out = self._render(node, online, now_wall_ns)
        capabilities: dict[str, list[object]] = {name: [] for name in SELF_CAPABILITIES}
        capabilities.update((name, []) for name in self._compiled.attributes(node.id))
        out["CapMap"] = capabilities
        out["Hostinfo"] = node.hostinfo
        return out


def _subject(node: NodeRecord, users: Mapping[int, UserRecord]) -> Subject:
    login = users[node.user_id].login
    return Subject(node.id, login, frozenset(node.tags), (parse_ip(node.ipv4), parse_ip(node.ipv6)))


def full(view: View, now_wall_ns: int) -> Json:
    """Return the first message of a stream."""
    message: Json = {
        "Node": view.node,
        "DERPMap": view.derp_map,
        "DNSConfig": view.dns,
        "Domain": view.domain,
        "PacketFilters": {"base": view.packet_filter},
        "UserProfiles": list(view.profiles.values()),
        # Always there, even empty: absent would mean "keep", and let rules of an earlier stream live on.
        "SSHPolicy": {"rules": view.ssh_rules},
        "CollectServices": False,
        "Debug": {"DisableLogTail": True},
        "ControlTime": rfc3339(now_wall_ns),
    }
    if view.peers:
        message["Peers"] = list(view.peers.values())  # in order of id
    return message


def delta(old: View, new: View, now_wall_ns: int) -> Json | None:
    """Return the message that turns *old* into *new*, or ``None`` if nothing changed that a client must know."""
    message: Json = {}
    if _news(old.node) != _news(new.node):
        message["Node"] = new.node
    removed = [peer for peer in old.peers if peer not in new.peers]
    whole: list[Json] = []
    patches: list[Json] = []
    for peer, node in new.peers.items():
        before = old.peers.get(peer)
        if before is node or before == node:
            continue
        patch = _patch(before, node) if before is not None else None
        if patch is None:
            whole.append(node)
        else:
            patches.append(patch)
    if removed:
        message["PeersRemoved"] = removed
    if whole:
        message["PeersChanged"] = whole
    if patches:
        message["PeersChangedPatch"] = patches
    profiles = [profile for owner, profile in new.profiles.items() if old.profiles.get(owner) != profile]
    if profiles:
        message["UserProfiles"] = profiles
    if old.packet_filter != new.packet_filter:
        message["PacketFilters"] = {"base": new.packet_filter}
    if old.ssh_rules != new.ssh_rules:
        message["SSHPolicy"] = {"rules": new.ssh_rules}
    if old.derp_map != new.derp_map:
        message["DERPMap"] = new.derp_map
    if old.dns != new.dns:
        message["DNSConfig"] = new.dns
    if not message:
        return None
    message["ControlTime"] = rfc3339(now_wall_ns)
    return message


def _news(node: Json) -> Json:
    return {name: value for name, value in node.items() if name not in _SELF_IGNORED}


def _patch(old: Json, new: Json) -> Json | None:
    """Return the ``PeerChange`` from *old* to *new*, or ``None`` if it takes the whole node."""
    patch: Json = {"NodeID": new["ID"]}
    for name in old.keys() | new.keys():
        if old.get(name) == new.get(name):
            continue
        if name not in _PATCHABLE:
            return None
        if name == "Endpoints":
            patch["Endpoints"] = new.get("Endpoints", [])
        elif name == "HomeDERP":
            if not new.get("HomeDERP"):
                return None  # in a patch 0 means "unchanged"
            patch["DERPRegion"] = new["HomeDERP"]
        elif name in new:
            patch[name] = new[name]
    return patch
