"""The tailnet as the server sees it: all changes go through here, and each makes a new version.

No sockets and no clock: requests come in decoded, wall time as an argument. Streams wait on :attr:`Tailnet.changed` and
ask :meth:`Tailnet.snapshot` for what is true now.
"""

import re
from collections.abc import Iterable
from typing import Final

import anyio

from tsnetpy.base.addr import format_ip, parse_endpoint
from tsnetpy.base.entropy import Entropy
from tsnetpy.base.errors import ConfigError
from tsnetpy.base.keys import MachinePublic, NodePublic
from tsnetpy.runtime.watch import Watch
from tsnetpy.tailcfg.hostinfo import Hostinfo
from tsnetpy.tailcfg.mapping import MapRequest

from . import auth
from .compile import Json
from .ipam import V4_RANGE, V6_RANGE, AddressPool
from .netmaps import Snapshot
from .policy import ALLOW_ALL, Policy
from .state import TAGGED_LOGIN, Document, NodeRecord, Store, UserRecord

MAX_PENDING: Final = 256
"""Logins that may wait for approval at the same time: anybody who reaches the server can start one."""
MAX_ENDPOINTS: Final = 64
MAX_TAGS: Final = 32
_NOT_LABEL: Final = re.compile(r"[^a-z0-9]+")


class Pending:
    """A login that waits for somebody to approve it."""

    __slots__ = (
        "created_ns",
        "decided",
        "ephemeral",
        "hostinfo",
        "hostname",
        "id",
        "machine",
        "node_key",
        "tags",
        "version",
    )

    def __init__(
        self, login_id: str, machine: MachinePublic, node_key: NodePublic, version: int, created_ns: int, hostname: str
    ) -> None:
        self.id = login_id
        self.machine = machine
        self.node_key = node_key
        self.version = version
        self.created_ns = created_ns
        self.hostname = hostname
        self.hostinfo: Json = {}
        self.tags: tuple[str, ...] = ()
        self.ephemeral = False
        """The node asks to be forgotten once it is gone."""
        self.decided = anyio.Event()
        """Set once it is approved, rejected or forgotten."""


class Tailnet:
    """Users, nodes, keys and the policy.

    Args:
        store: where the state is kept.
        entropy: for keys and login ids.
        domain: the MagicDNS suffix, without dots at the ends.
    """

    def __init__(self, store: Store, entropy: Entropy, domain: str) -> None:
        self.store = store
        self.entropy = entropy
        self.domain = domain
        self.document: Document = store.load(entropy)
        self.policy: Policy = ALLOW_ALL
        self.derp_map: Json = {"Regions": {}}
        self.changed: Watch[int] = Watch(0)
        self.pending: dict[str, Pending] = {}
        self.online: set[int] = set()
        self.nodes: dict[int, NodeRecord] = {node.id: node for node in self.document.nodes}
        self.users: dict[int, UserRecord] = {user.id: user for user in self.document.users}
        self.auth_keys: dict[str, auth.AuthKey] = {key.id: key for key in self.document.auth_keys}
        self._by_node_key: dict[str, NodeRecord] = {node.node_key: node for node in self.document.nodes}
        self._v4 = AddressPool(V4_RANGE, self.document.next_v4)
        self._v6 = AddressPool(V6_RANGE, self.document.next_v6)
        self._snapshot: Snapshot | None = None

    # -- looking -------------------------------------------------------------------------------------------------

    def node_by_key(self, node_key: NodePublic) -> NodeRecord | None:
        """Return the node that has this node key now."""
        return self._by_node_key.get(node_key.text())

    def nodes_of_machine(self, machine: MachinePublic) -> list[NodeRecord]:
        """Return the nodes of one installation: one per user that logged in on it."""
        text = machine.text()
        return [node for node in self.nodes.values() if node.machine_key == text]

    def find_node(self, name: str) -> NodeRecord:
        """Return the node with this id, name, full name or address.

        Raises:
            ConfigError: there is none.
        """
        wanted = name.rstrip(".").lower().removesuffix("." + self.domain)
        for node in self.nodes.values():
            if wanted in (str(node.id), node.name, node.ipv4, node.ipv6):
                return node
        raise ConfigError(f"no node {name!r}")

    def login_of(self, node: NodeRecord) -> str:
        """Return the login name that policies know the node's owner by."""
        return TAGGED_LOGIN if node.tags else self.users[node.user_id].login

    def snapshot(self, now_wall_ns: int) -> Snapshot:
        """Return the present state, compiled; made once per version."""
        if self._snapshot is None or self._snapshot.version != self.changed.value:
            self._snapshot = Snapshot(
                version=self.changed.value,
                policy=self.policy,
                nodes=list(self.nodes.values()),
                users=self.users,
                online=frozenset(self.online),
                domain=self.domain,
                derp_map=self.derp_map,
                now_wall_ns=now_wall_ns,
                previous=self._snapshot,
            )
        return self._snapshot

    # -- changing ------------------------------------------------------------------------------------------------

    def touch(self, *, save: bool = False) -> None:
        """Make a new version, and write the state file if *save*."""
        if save:
            self.save()
        self.changed.set(self.changed.value + 1)

    def save(self) -> None:
        """Write the state file."""
        document = self.document
        document.nodes = list(self.nodes.values())
        document.users = list(self.users.values())
        document.auth_keys = list(self.auth_keys.values())
        document.next_v4 = self._v4.next_offset
        document.next_v6 = self._v6.next_offset
        self.store.save(document)

    def set_policy(self, policy: Policy) -> None:
        """Let *policy* hold from now on."""
        self.policy = policy
        self.touch()

    def user(self, login: str, now_wall_ns: int) -> UserRecord:
        """Return the user called *login*, created if new.

        Raises:
            ConfigError: not a name that a user can have.
        """
        if not login or login == TAGGED_LOGIN or len(login) > 254 or any(c.isspace() or c in ":*," for c in login):
            raise ConfigError(f"{login!r} is no user name")
        for user in self.users.values():
            if user.login == login:
                return user
        user = UserRecord(self.document.next_user_id, login, login.partition("@")[0], now_wall_ns)
        self.document.next_user_id += 1
        self.users[user.id] = user
        return user

    def create_auth_key(
        self,
        now_wall_ns: int,
        *,
        login: str,
        lifetime_ns: int = auth.DEFAULT_LIFETIME_NS,
        reusable: bool = False,
        ephemeral: bool = False,
        tags: Iterable[str] = (),
    ) -> str:
        """Return a new auth key in text; it is stored as a hash only.

        Raises:
            ConfigError: a bad user name, tag or lifetime.
        """
        record, text = auth.create(
            self.entropy,
            user_id=self.user(login, now_wall_ns).id,
            now_wall_ns=now_wall_ns,
            lifetime_ns=lifetime_ns,
            reusable=reusable,
            ephemeral=ephemeral,
            tags=tuple(tags),
        )
        self.auth_keys[record.id] = record
        self.save()
        return text

    def revoke_auth_key(self, key_id: str) -> None:
        """Make a key useless; nodes that it registered stay.

        Raises:
            ConfigError: there is no such key.
        """
        if key_id not in self.auth_keys:
            raise ConfigError(f"no auth key {key_id!r}")
        self.auth_keys[key_id].revoked = True
        self.save()

    def add_node(
        self,
        machine: MachinePublic,
        node_key: NodePublic,
        *,
        user_id: int,
        tags: list[str],
        ephemeral: bool,
        hostname: str,
        hostinfo: Json,
        expiry_ns: int,
        cap: int,
        now_wall_ns: int,
        auth_key_id: str = "",
    ) -> NodeRecord:
        """Let a node in, or give one that this machine has already its new key. The caller saves and touches.

        A machine with the same owner is the same node: it keeps id, addresses and name, and its old key is void.

        Raises:
            AddressesExhausted: no address left for a new one.
        """
        node = next(
            (
                known
                for known in self.nodes_of_machine(machine)
                if (known.tags == tags if tags or known.tags else known.user_id == user_id)
            ),
            None,
        )
        if node is None:
            node = NodeRecord(
                id=self.document.next_node_id,
                machine_key=machine.text(),
                node_key="",
                user_id=user_id,
                name="",
                hostname=hostname,
                ipv4=format_ip(self._v4.allocate()),
                ipv6=format_ip(self._v6.allocate()),
                created_ns=now_wall_ns,
            )
            self.document.next_node_id += 1
            node.name = self._free_name(hostname)
            self.nodes[node.id] = node
        else:
            self._by_node_key.pop(node.node_key, None)
            self._rename(node, hostname)
        node.node_key = node_key.text()
        node.tags = tags
        node.ephemeral = ephemeral
        node.hostinfo = hostinfo
        node.expiry_ns = expiry_ns
        node.cap = cap
        node.auth_key_id = auth_key_id
        node.last_seen_ns = now_wall_ns
        self._by_node_key[node.node_key] = node
        return node

    def update_node(self, node: NodeRecord, request: MapRequest, hostinfo: Json | None, now_wall_ns: int) -> None:
        """Take over what a map request says about its sender; a new version only if it changed something."""
        before = (node.disco_key, node.endpoints, node.home_derp, node.hostinfo, node.name, node.cap)
        node.last_seen_ns = now_wall_ns
        node.cap = request.version
        if not request.disco_key.is_zero:
            node.disco_key = request.disco_key.text()
        if request.endpoints or not request.stream:
            # The official client's first stream request comes before it knows its endpoints: absent is not "none".
            node.endpoints = _valid_endpoints(request.endpoints)
        if hostinfo is not None and request.hostinfo is not None:
            self._take_hostinfo(node, request.hostinfo, hostinfo)
        if before != (node.disco_key, node.endpoints, node.home_derp, node.hostinfo, node.name, node.cap):
            self.touch()

    def _take_hostinfo(self, node: NodeRecord, info: Hostinfo, raw: Json) -> None:
        if info.net_info is None:
            # Before its first network check a node has nothing to say; what it said earlier stays.
            previous = next((value for name, value in node.hostinfo.items() if name.lower() == "netinfo"), None)
            if previous is not None:
                raw = {**raw, "NetInfo": previous}
        elif info.net_info.preferred_derp:
            node.home_derp = info.net_info.preferred_derp
        node.hostinfo = raw
        if info.hostname and info.hostname != node.hostname:
            self._rename(node, info.hostname)

    def set_online(self, node_id: int, online: bool, now_wall_ns: int) -> None:
        """Note that a node came or went."""
        node = self.nodes.get(node_id)
        if node is None or (node_id in self.online) is online:
            return
        node.last_seen_ns = now_wall_ns
        if online:
            self.online.add(node_id)
        else:
            self.online.discard(node_id)
        self.touch()

    def expire_node(self, node: NodeRecord, now_wall_ns: int) -> None:
        """Void a node's key as of now; it must log in again."""
        node.expiry_ns = now_wall_ns
        self.touch(save=True)

    def delete_node(self, node: NodeRecord) -> None:
        """Forget a node; its addresses are never used again."""
        self.nodes.pop(node.id, None)
        self.online.discard(node.id)
        self._by_node_key.pop(node.node_key, None)
        self.touch(save=True)

    # -- logins that wait ----------------------------------------------------------------------------------------

    def add_pending(self, pending: Pending) -> None:
        """Keep a login until somebody decides; the oldest one makes room if there are too many."""
        while len(self.pending) >= MAX_PENDING:
            self.reject(next(iter(self.pending.values())))
        self.pending[pending.id] = pending

    def find_pending(self, login: str) -> Pending:
        """Return the pending login with this id or login URL.

        Raises:
            ConfigError: there is none (any more).
        """
        found = self.pending.get(login.rstrip("/").rpartition("/")[2])
        if found is None:
            raise ConfigError("no such login is waiting")
        return found

    def approve(
        self,
        pending: Pending,
        user_id: int,
        now_wall_ns: int,
        *,
        tags: list[str] | None = None,
        ephemeral: bool = False,
    ) -> NodeRecord:
        """Let the node of *pending* in as a device of *user_id*."""
        node = self.add_node(
            pending.machine,
            pending.node_key,
            user_id=user_id,
            tags=tags or [],
            ephemeral=ephemeral,
            hostname=pending.hostname,
            hostinfo=pending.hostinfo,
            expiry_ns=0,
            cap=pending.version,
            now_wall_ns=now_wall_ns,
        )
        self.pending.pop(pending.id, None)
        pending.decided.set()
        self.touch(save=True)
        return node

    def reject(self, pending: Pending) -> None:
        """Forget *pending*; the node that waits for it starts over."""
        self.pending.pop(pending.id, None)
        pending.decided.set()

    # -- names ---------------------------------------------------------------------------------------------------

    def _rename(self, node: NodeRecord, hostname: str) -> None:
        """Follow a new host name, unless the node's name was not made from the old one."""
        if not hostname:
            return
        derived = node.name == label(node.hostname) or node.name.rpartition("-")[0] == label(node.hostname)
        node.hostname = hostname
        if derived and label(hostname) != node.name:
            node.name = self._free_name(hostname, but=node.id)

    def _free_name(self, hostname: str, but: int = 0) -> str:
        base = label(hostname)
        taken = {node.name for node in self.nodes.values() if node.id != but}
        name, number = base, 0
        while name in taken:
            number += 1
            name = f"{base[: 62 - len(str(number))]}-{number}"
        return name


def label(hostname: str) -> str:
    """Return *hostname* as one DNS label: lower case, what is no letter or digit becomes a single dash."""
    return _NOT_LABEL.sub("-", hostname.partition(".")[0].lower()).strip("-")[:63].rstrip("-") or "node"


def _valid_endpoints(texts: Iterable[str]) -> list[str]:
    valid: list[str] = []
    for text in texts:
        try:
            parse_endpoint(text)
        except ValueError:
            continue  # one bad endpoint would make peers reject the whole node
        if text not in valid:
            valid.append(text)
    return valid[:MAX_ENDPOINTS]
