"""What :meth:`.plane.DataPlane.configure` takes: the whole wanted state, never a change to it."""

from dataclasses import dataclass, field

from tsnetpy.base.addr import IpBytes, IpPrefix
from tsnetpy.base.packet import PeerId
from tsnetpy.ipstack.filter import FilterRule


@dataclass(frozen=True, slots=True)
class PeerSpec:
    """One peer of the tunnel."""

    public_key: PeerId
    """Its node key, 32 raw bytes."""
    allowed_ips: tuple[IpPrefix, ...]
    """Inner addresses that it may use as a source, and that packets to it have as destination."""
    psk: bytes | None = field(default=None, repr=False)
    """Pre-shared key, 32 bytes. Tailscale uses none."""
    persistent_keepalive_s: int = 0
    """Seconds between keepalives, 0 for none. Tailscale uses none: disco keeps NAT mappings open."""


@dataclass(frozen=True, slots=True)
class DataPlaneConfig:
    """The wanted state of a data plane."""

    private_key: bytes = field(repr=False)
    """Our node key, 32 bytes."""
    addresses: tuple[IpBytes, ...] = ()
    """Our own addresses; the first of each family is the source of what we send."""
    peers: tuple[PeerSpec, ...] = ()
    filter_rules: tuple[FilterRule, ...] = ()
    """What may come in; nothing does without a rule."""
    mtu: int = 1280
    """Of the tunnel: bytes of inner IP packet."""
    shields_up: bool = False
    """Let in only answers, whatever the rules say."""
    exempt_tcp_ports: frozenset[int] = frozenset()
    """Local TCP ports that the filter leaves alone (the PeerAPI's, which authorises by request)."""
    verify_peer_checksums: bool = False
    """Check inner checksums of packets from a peer's own addresses as well.

    WireGuard has proved that such a packet is what its maker sealed, so by default this is left out: it costs a third
    of receiving. Packets that a peer forwards for others are always checked.
    """
