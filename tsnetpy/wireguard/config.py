"""What a plain WireGuard node is made of. The names are those of wg(8) and wg-quick(8)."""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tsnetpy.base.addr import IpBytes, IpPrefix, parse_ip
from tsnetpy.base.errors import ConfigError
from tsnetpy.base.packet import PeerId
from tsnetpy.crypto import dh

DEFAULT_MTU: Final = 1420
"""1500 less the most that WireGuard adds: IPv6 40, UDP 8, its own header and tag 32."""
MIN_MTU: Final = 1280
MAX_MTU: Final = 9000


class HostPort(NamedTuple):
    """Where something can be reached: an address or a name, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def ip(self) -> IpBytes | None:
        """The raw address if *host* is one, ``None`` if it is a name."""
        try:
            return parse_ip(self.host)
        except ValueError:
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class WireGuardPeer:
    """One ``[Peer]``."""

    public_key: PeerId
    """32 raw bytes."""
    allowed_ips: tuple[IpPrefix, ...] = ()
    """What may come from the peer, and what is sent to it."""
    endpoint: HostPort | None = None
    """Where to reach it first; ``None``: it has to call us."""
    preshared_key: bytes | None = field(default=None, repr=False)
    """32 raw bytes."""
    persistent_keepalive_s: int = 0
    """Seconds between keepalives, 0 for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WireGuardConfig:
    """A whole configuration.

    Raises:
        ConfigError: a value is out of range; the message never holds a key.
    """

    private_key: bytes = field(repr=False)
    """32 raw bytes."""
    addresses: tuple[IpBytes, ...] = ()
    """Our own addresses inside the tunnel; the first of each family is the source of what we send."""
    listen_port: int = 0
    """UDP port of the host, 0 for any."""
    mtu: int = DEFAULT_MTU
    dns_servers: tuple[IpBytes, ...] = ()
    """Asked through the tunnel about names that are dialled."""
    search_domains: tuple[str, ...] = ()
    """Appended to names without a dot."""
    peers: tuple[WireGuardPeer, ...] = ()
    ignored: tuple[str, ...] = ()
    """Settings of the file that mean nothing to a node without an interface, as ``line 3: PostUp``."""

    def __post_init__(self) -> None:
        if len(self.private_key) != 32 or not any(self.private_key):
            raise ConfigError("the private key has to be 32 bytes, and not all zero")
        if not MIN_MTU <= self.mtu <= MAX_MTU:
            raise ConfigError(f"MTU {self.mtu} is outside {MIN_MTU}-{MAX_MTU}")
        if not 0 <= self.listen_port <= 65535:
            raise ConfigError(f"port {self.listen_port} is outside 0-65535")
        seen: set[bytes] = {self.public_key}
        for number, peer in enumerate(self.peers, start=1):
            if len(peer.public_key) != 32 or (peer.preshared_key is not None and len(peer.preshared_key) != 32):
                raise ConfigError(f"peer {number}: keys have 32 bytes")
            if peer.public_key in seen:
                raise ConfigError(f"peer {number}: its public key is our own, or an earlier peer's")
            seen.add(peer.public_key)
            if not 0 <= peer.persistent_keepalive_s <= 65535:
                raise ConfigError(f"peer {number}: persistent keepalive is outside 0-65535")

    @property
    def public_key(self) -> PeerId:
        """Our own public key, 32 raw bytes."""
        return dh.public_key(self.private_key)
