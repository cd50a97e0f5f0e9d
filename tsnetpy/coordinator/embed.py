"""The whole box in one object: control server, DERP relay and STUN server of a tailnet, inside this process.

::

    async with Coordinator() as box:
        key = box.create_auth_key(reusable=True)
        ...  # nodes join box.url with that key
"""

import ipaddress
import logging
import os
from collections.abc import AsyncGenerator, Container, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlsplit

import anyio
from anyio import AsyncContextManagerMixin
from anyio.abc import SocketAttribute, SocketStream

from tsnetpy.base.addr import parse_ip
from tsnetpy.base.entropy import Entropy, SystemEntropy
from tsnetpy.base.errors import ConfigError
from tsnetpy.base.keys import MachinePublic, NodePrivate, NodePublic
from tsnetpy.crypto import x509
from tsnetpy.runtime import clock

from . import auth
from .compile import Json
from .derp import DerpRelay, server_context
from .policy import ALLOW_ALL, parse
from .register import Registrar
from .server import ControlServer, ServerTimes
from .state import NodeRecord, Store, UserRecord
from .stun import StunServer
from .tailnet import Tailnet

_log = logging.getLogger(__name__)

DERP_REGION: Final = 900
"""Custom regions are 900-999."""
DEFAULT_DOMAIN: Final = "tailnet.internal"
DEFAULT_USER: Final = "owner"
_CERT_DAYS: Final = 825
"""Some TLS clients refuse certificates that live longer."""
_CERT_RENEW_NS: Final = 30 * 86_400 * 1_000_000_000


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A node as the administrator sees it."""

    id: int
    name: str
    """First label of its MagicDNS name."""
    fqdn: str
    """Full name, without a trailing dot."""
    hostname: str
    addresses: tuple[str, ...]
    user: str
    """Login name of who registered it."""
    tags: tuple[str, ...]
    online: bool
    ephemeral: bool
    expired: bool
    expires_ns: int
    """Wall clock; 0 = never."""
    last_seen_ns: int
    created_ns: int
    endpoints: tuple[str, ...]
    home_derp: int
    node_key: str
    machine_key: str


@dataclass(frozen=True, slots=True)
class PendingLogin:
    """A node that waits for approval."""

    id: str
    hostname: str
    machine_key: str
    tags: tuple[str, ...]
    created_ns: int


class Coordinator(AsyncContextManagerMixin):
    """A tailnet in a box; entering it starts the servers, leaving it stops them.

    Args:
        host: local address for everything. ``0.0.0.0`` or ``::`` needs *url*.
        port: of the control server; 0 = any.
        url: how nodes reach the control server, if not ``http://host:port`` (for instance behind a TLS proxy). The DERP
            map names the same host.
        domain: MagicDNS suffix.
        state_dir: where the state is kept; ``None`` = memory only.
        policy: HuJSON text or a dict; ``None`` allows everything between nodes (SSH needs a policy).
        user: whose devices auth keys make unless they say otherwise.
        derp_port: of the DERP relay; 0 = any, ``None`` = no relay.
        stun_port: of the STUN server; 0 = any, ``None`` = none.
        times: waits, for tests.
        entropy: for keys; tests only.

    Raises:
        ConfigError: on entering: a bad policy or URL, or an address that cannot be had.
        StateError: on creation: the state directory cannot be used.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        url: str = "",
        domain: str = DEFAULT_DOMAIN,
        state_dir: str | os.PathLike[str] | None = None,
        policy: str | Mapping[str, object] | None = None,
        user: str = DEFAULT_USER,
        derp_port: int | None = 0,
        stun_port: int | None = 0,
        times: ServerTimes | None = None,
        entropy: Entropy | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._url = check_url(url)
        self._user = user
        self._derp_port = derp_port
        self._stun_port = stun_port
        self._times = times
        self._entropy = entropy or SystemEntropy()
        self._is_wildcard = host in ("0.0.0.0", "::", "")  # noqa: S104 - compared, not bound
        if self._is_wildcard and not url:
            raise ConfigError(
                f"listening on {host or 'every address'} needs a URL", hint="say how nodes reach this host"
            )
        self._store = Store(Path(state_dir) if state_dir is not None else None)
        try:
            self._tailnet = Tailnet(self._store, self._entropy, check_domain(domain))
            self.set_policy(policy)
        except BaseException:
            self._store.close()
            raise
        self._registrar: Registrar | None = None
        self._relay: DerpRelay | None = None
        self._stun: StunServer | None = None

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with AsyncExitStack() as stack:
            stack.callback(self._close_store)
            # Everything that can fail for the configuration's sake comes before the task group, which would wrap it.
            control = await stack.enter_async_context(await self._listen("control", self._port))
            if not self._url:
                self._url = f"http://{bracket(self._host)}:{control.extra(SocketAttribute.local_port)}"
            self._registrar = Registrar(self._tailnet, self._url)
            if self._stun_port is not None:
                self._stun = await stack.enter_async_context(StunServer(self._stun_hosts(), self._stun_port))
            derp: anyio.abc.Listener[SocketStream] | None = None
            if self._derp_port is not None:
                derp = await stack.enter_async_context(await self._listen("DERP", self._derp_port))
                self._relay, pin = self._make_relay()
                self._tailnet.derp_map = self._derp_map(derp.extra(SocketAttribute.local_port), pin)
            self._tailnet.save()
            failure: Exception | None = None
            async with anyio.create_task_group() as tasks:
                if self._stun is not None:
                    await tasks.start(self._stun.run)
                if self._relay is not None and derp is not None:
                    await tasks.start(self._relay.run, derp)
                await tasks.start(ControlServer(self._tailnet, self._registrar, self._times).run, control)
                try:
                    yield self
                except Exception as error:
                    failure = error  # the caller's own, to be raised as it is and not in a group
                tasks.cancel_scope.cancel()
            if failure is not None:
                raise failure

    def _close_store(self) -> None:
        try:
            self._tailnet.save()
        finally:
            self._store.close()

    # -- what it is ----------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """What nodes take as login server; known once the coordinator runs."""
        return self._url

    @property
    def domain(self) -> str:
        """The MagicDNS suffix."""
        return self._tailnet.domain

    @property
    def derp_map(self) -> Json:
        """The DERP map that nodes get."""
        return self._tailnet.derp_map

    @property
    def derp_packets(self) -> int:
        """Packets that the relay passed on."""
        return self._relay.engine.packets_routed if self._relay is not None else 0

    @property
    def stun_port(self) -> int:
        """Where the STUN server listens, 0 if there is none."""
        return self._stun.port if self._stun is not None else 0

    @property
    def stun_answers(self) -> int:
        """Requests that the STUN server answered."""
        return self._stun.answered if self._stun is not None else 0

    # -- what can be done with it --------------------------------------------------------------------------------

    def create_auth_key(
        self,
        *,
        reusable: bool = False,
        ephemeral: bool = False,
        tags: Iterable[str] = (),
        expiry: float | None = 24 * 3600.0,
        user: str = "",
    ) -> str:
        """Return a new auth key.

        Args:
            reusable: for any number of nodes, instead of one.
            ephemeral: its nodes are deleted once they have been away for a while.
            tags: what its nodes are tagged with.
            expiry: seconds during which it may be used; ``None`` = for ever.
            user: whose devices it makes; by default the coordinator's *user*.

        Raises:
            ConfigError: a bad tag, name or expiry.
        """
        return self._tailnet.create_auth_key(
            clock.wall_ns(),
            login=user or self._user,
            lifetime_ns=0 if expiry is None else max(1, round(expiry * 1e9)) if expiry > 0 else -1,
            reusable=reusable,
            ephemeral=ephemeral,
            tags=tags,
        )

    def auth_keys(self) -> list[auth.AuthKey]:
        """Return the records of all auth keys; none holds the secret."""
        return list(self._tailnet.auth_keys.values())

    def users(self) -> list[UserRecord]:
        """Return everybody who owns something here."""
        return list(self._tailnet.users.values())

    def revoke_auth_key(self, key_id: str) -> None:
        """Make an auth key useless; its nodes stay.

        Raises:
            ConfigError: there is none with this id.
        """
        self._tailnet.revoke_auth_key(key_id)

    def set_policy(self, policy: str | Mapping[str, object] | None) -> None:
        """Let another policy hold; every node gets its new rules at once. ``None`` allows everything.

        Raises:
            ConfigError: it cannot be used; the old one holds on.
        """
        self._tailnet.set_policy(ALLOW_ALL if policy is None else parse(policy))

    def nodes(self) -> list[NodeInfo]:
        """Return all nodes in order of id."""
        return [self._info(node) for _, node in sorted(self._tailnet.nodes.items())]

    def pending_logins(self) -> list[PendingLogin]:
        """Return the nodes that wait for approval, oldest first."""
        return [
            PendingLogin(login.id, login.hostname, login.machine.text(), login.tags, login.created_ns)
            for login in self._tailnet.pending.values()
        ]

    def approve(self, login: str, *, user: str = "", ephemeral: bool = False) -> NodeInfo:
        """Let a waiting node in.

        Args:
            login: its login URL, or the id in it.
            user: whose device it becomes; by default the coordinator's *user*.
            ephemeral: delete it once it has been away for a while.

        Raises:
            ConfigError: no such login, or it asks for tags that this user may not give.
        """
        if self._registrar is None:
            raise ConfigError("the coordinator is not running")
        pending = self._tailnet.find_pending(login)
        return self._info(self._registrar.approve(pending, user or self._user, clock.wall_ns(), ephemeral=ephemeral))

    def reject(self, login: str) -> None:
        """Turn a waiting node away.

        Raises:
            ConfigError: no such login.
        """
        self._tailnet.reject(self._tailnet.find_pending(login))

    def delete_node(self, name: str) -> None:
        """Forget a node, by id, name or address: its peers lose it at once, and it must join anew.

        Raises:
            ConfigError: no such node.
        """
        self._tailnet.delete_node(self._tailnet.find_node(name))

    def expire_node(self, name: str) -> None:
        """Void a node's key, by id, name or address: it must log in again, and keeps its addresses.

        Raises:
            ConfigError: no such node.
        """
        self._tailnet.expire_node(self._tailnet.find_node(name), clock.wall_ns())

    # -- parts ---------------------------------------------------------------------------------------------------

    def _info(self, node: NodeRecord) -> NodeInfo:
        return NodeInfo(
            id=node.id,
            name=node.name,
            fqdn=f"{node.name}.{self._tailnet.domain}",
            hostname=node.hostname,
            addresses=(node.ipv4, node.ipv6),
            user=self._tailnet.users[node.user_id].login,
            tags=tuple(node.tags),
            online=node.id in self._tailnet.online,
            ephemeral=node.ephemeral,
            expired=node.is_expired(clock.wall_ns()),
            expires_ns=node.expiry_ns,
            last_seen_ns=node.last_seen_ns,
            created_ns=node.created_ns,
            endpoints=tuple(node.endpoints),
            home_derp=node.home_derp,
            node_key=NodePublic.parse(node.node_key).text(),
            machine_key=MachinePublic.parse(node.machine_key).text(),
        )

    async def _listen(self, what: str, port: int) -> anyio.abc.Listener[SocketStream]:
        try:
            return await anyio.create_tcp_listener(
                local_host=None if self._is_wildcard else self._host, local_port=port, reuse_port=False
            )
        except OSError as error:
            raise ConfigError(f"{what} cannot listen on {self._host} port {port}: {error.strerror or error}") from error

    def _stun_hosts(self) -> tuple[str, ...]:
        return ("0.0.0.0", "::") if self._is_wildcard else (self._host,)  # noqa: S104 - as the caller asked

    def _advertised_host(self) -> str:
        return urlsplit(self._url).hostname or self._host

    def _make_relay(self) -> tuple[DerpRelay, str]:
        """Return the relay, with the certificate from the state or a new one, and the certificate's SHA-256."""
        document = self._tailnet.document
        host = self._advertised_host()
        now = clock.wall_ns()
        expired = not document.tls_cert_pem or (
            x509.not_valid_after_ns(document.tls_cert_pem.encode()) < now + _CERT_RENEW_NS
        )
        if expired or document.tls_names != [host]:
            names, ips = ([], [parse_ip(host)]) if is_ip(host) else ([host], [])
            made = x509.make_self_signed(names, ips, _CERT_DAYS, now)
            document.tls_cert_pem, document.tls_key_pem = made.cert_pem.decode(), made.key_pem.decode()
            document.tls_names = [host]
        context = server_context(document.tls_cert_pem, document.tls_key_pem)
        private = NodePrivate.parse(document.derp_private).raw
        admitted = _KnownKeys(self._tailnet)
        relay = DerpRelay(private, self._entropy, context, admitted, self._tailnet.changed)
        return relay, x509.fingerprint(document.tls_cert_pem.encode())

    def _derp_map(self, derp_port: int, pin: str) -> Json:
        host = self._advertised_host()
        node: Json = {
            "Name": f"{DERP_REGION}a",
            "RegionID": DERP_REGION,
            "HostName": host,
            "CertName": f"sha256-raw:{pin}",
            "DERPPort": derp_port,
            "STUNPort": self._stun.port if self._stun is not None else -1,
        }
        if is_ip(host):
            is_v6 = ":" in host
            node["IPv4"], node["IPv6"] = ("none", host) if is_v6 else (host, "none")
        region: Json = {"RegionID": DERP_REGION, "RegionCode": "box", "RegionName": "Box", "Nodes": [node]}
        return {"Regions": {str(DERP_REGION): region}, "omitDefaultRegions": True}


class _KnownKeys(Container[bytes]):
    """The node keys of a tailnet, as the relay asks for them."""

    def __init__(self, tailnet: Tailnet) -> None:
        self._tailnet = tailnet

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and len(key) == 32 and self._tailnet.node_by_key(NodePublic(key)) is not None


def check_url(url: str) -> str:
    """Return *url* without slashes at its end; an empty one stays empty.

    Raises:
        ConfigError: not an http or https URL of a host, without a path.
    """
    if not url:
        return ""
    parts = urlsplit(url)
    try:
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid or parts.path.strip("/") or parts.query or parts.fragment:
        raise ConfigError(f"{url!r} is no URL for a server", hint="write http://host:port or https://host")
    return url.rstrip("/")


def check_domain(domain: str) -> str:
    """Return *domain* in lower case without dots at its ends.

    Raises:
        ConfigError: not a DNS name.
    """
    name = domain.strip(".").lower()
    labels = name.split(".")
    if len(name) > 180 or not all(
        0 < len(part) <= 63 and part.replace("-", "").isalnum() and part.isascii() for part in labels
    ):
        raise ConfigError(f"{domain!r} is no domain name")
    return name


def is_ip(text: str) -> bool:
    """Tell whether *text* is an IP address."""
    try:
        parse_ip(text)
    except ValueError:
        return False
    return True


def bracket(host: str) -> str:
    """Return *host* as it stands in a URL."""
    return f"[{host}]" if ":" in host else host


def breaks_official_clients(url: str) -> bool:
    """Tell whether official clients lose this server: plain HTTP on an address that is not private.

    After a broken connection they dial only port 443 there, and never get out of that (control protocol reference,
    section 3.1). Host names are looked up nowhere, so a name counts as fine.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or not is_ip(parts.hostname):
        return False
    ip = ipaddress.ip_address(parts.hostname)
    private = [ipaddress.ip_network(net) for net in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")]
    return not (ip.is_loopback or any(ip in net for net in private))
