"""What TCP, UDP and ICMP of one stack share: addresses, path MTUs, readiness, and the queue of outbound packets."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, final

from tsnetpy.base.addr import IpBytes
from tsnetpy.base.entropy import Entropy
from tsnetpy.base.instant import SECOND, Instant
from tsnetpy.base.packet import PROTO_TCP, PeerId, TxPacket
from tsnetpy.base.stats import Drops
from tsnetpy.nic.rx import RxPacket
from tsnetpy.wire import ipv4, ipv6

from .addresses import SERVICES, is_martian
from .errors import AddressNotAvailable, InvalidAddress, NoRoute
from .icmp import IcmpError
from .limits import StackLimits, TokenBucket
from .paths import PathTable
from .ports import PortAllocator
from .sockets import Socket

ANY: Final[IpBytes] = b""
"""The address of a socket that is bound to all of the node's own."""

_PMTU_LIFETIME: Final = 600 * SECOND
_PMTU_ENTRIES: Final = 256


@final
class PathMtus:
    """What routers said about paths narrower than the tunnel: bounded, believed within reason, and forgotten again."""

    __slots__ = ("_table",)

    def __init__(self) -> None:
        self._table: dict[IpBytes, tuple[int, Instant]] = {}  # the oldest word first

    def lookup(self, dst: IpBytes, now: Instant) -> int:
        """Return the path MTU towards *dst* if it is known to be below the tunnel's, else 0."""
        known = self._table.get(dst) if self._table else None
        return 0 if known is None or known[1] <= now else known[0]

    def learn(self, error: IcmpError, tunnel_mtu: int, now: Instant) -> int:
        """Take a "too big"; return the MTU to use from now on, or 0 if the report changes nothing.

        IPv6 paths never go below 1280 (RFC 8201 §4), and for IPv4 nothing below 576 is believed: a forged tiny MTU
        would multiply the packets. Reports never raise the MTU; after ten minutes a larger one is tried again
        (RFC 1191 §6.3, RFC 8201 §5.3).
        """
        mtu = error.mtu
        if len(error.src) == 16:
            if mtu < ipv6.MIN_MTU:
                return 0
        else:
            mtu = max(mtu, ipv4.MIN_MTU)
        if mtu >= (self.lookup(error.dst, now) or tunnel_mtu):
            return 0
        self._table.pop(error.dst, None)
        if len(self._table) >= _PMTU_ENTRIES:
            del self._table[next(iter(self._table))]
        self._table[error.dst] = (mtu, now + _PMTU_LIFETIME)
        return mtu

    def next_deadline(self) -> Instant | None:
        """Return when the oldest word is forgotten."""
        for _, until in self._table.values():
            return until
        return None

    def expire(self, now: Instant) -> list[IpBytes]:
        """Forget what is too old; return where to."""
        over: list[IpBytes] = []
        for dst, (_, until) in self._table.items():
            if until > now:
                break
            over.append(dst)
        for dst in over:
            del self._table[dst]
        return over


def _least(one: int, other: int) -> int:
    """Return the smaller MTU, where 0 means that there is none."""
    return min(one, other) if one and other else one or other


@final
class Host:
    """One node's shared state, below :class:`~tsnetpy.ipstack.stack.Stack`.

    Attributes:
        addresses: the node's own addresses; ``local`` adds Tailscale's service addresses.
        mtu: of the tunnel.
        now: the instant of the call in progress.
        paths: what the owner of the tunnel says about the ways to peers.
        path_mtus: what routers said about segments that are proved to be ours; TCP and datagrams go by it.
        datagram_mtus: what they said about datagrams, for which there is less proof; only datagrams go by it.
        ready: readiness bits that nobody took yet.
        out: packets that wait for the next egress.
    """

    __slots__ = (
        "_error_bucket",
        "_ident",
        "_large",
        "_source4",
        "_source6",
        "addresses",
        "datagram_mtus",
        "drops",
        "entropy",
        "limits",
        "local",
        "mtu",
        "now",
        "out",
        "path_mtus",
        "paths",
        "ports",
        "ready",
    )

    def __init__(self, entropy: Entropy, limits: StackLimits, mtu: int) -> None:
        self.entropy = entropy
        self.limits = limits
        self.mtu = mtu
        self.drops = Drops()
        self.addresses: frozenset[IpBytes] = frozenset()
        self.local: frozenset[IpBytes] = SERVICES
        self._source4: IpBytes | None = None
        self._source6: IpBytes | None = None
        self.now: Instant = 0
        self.ready: dict[Socket, int] = {}
        self.out: deque[TxPacket] = deque()
        self.paths = PathTable()
        self.path_mtus = PathMtus()
        self.datagram_mtus = PathMtus()
        self._large: dict[IpBytes, int] = {}  # where large datagrams went of late, and the largest packet they made
        self.ports = PortAllocator(entropy, limits.ephemeral_first, limits.ephemeral_last)
        self._ident = entropy.u32()
        self._error_bucket = TokenBucket(limits.icmp_errors_per_second, limits.icmp_error_burst)

    def set_addresses(self, addresses: Sequence[IpBytes]) -> frozenset[IpBytes]:
        """Replace the own addresses; return those that went away."""
        kept = frozenset(addresses)
        gone = self.addresses - kept
        self.addresses = kept
        self.local = kept | SERVICES
        self._source4 = next((ip for ip in addresses if len(ip) == 4), None)
        self._source6 = next((ip for ip in addresses if len(ip) == 16), None)
        return gone

    def mark_ready(self, socket: Socket, bits: int) -> None:
        """Note that *bits* became true of *socket*."""
        self.ready[socket] = self.ready.get(socket, 0) | bits

    def pick_source(self, remote: IpBytes, wanted: IpBytes) -> IpBytes:
        """Return our address for talking to *remote* (RFC 6724 comes down to: same family, and ours)."""
        if len(remote) not in (4, 16) or is_martian(remote):
            raise InvalidAddress("the remote address is no unicast address")
        if wanted:
            if len(wanted) != len(remote):
                raise InvalidAddress("local and remote address are of different families")
            if wanted not in self.local:
                raise AddressNotAvailable("the local address is not ours")
            return wanted
        if remote in self.addresses:
            return remote
        source = self._source4 if len(remote) == 4 else self._source6
        if source is None and remote in SERVICES:
            return remote
        if source is None:
            family = "IPv4" if len(remote) == 4 else "IPv6"
            raise NoRoute(f"this node has no {family} address", hint="wait until the node is connected")
        return source

    def bind_address(self, ip: IpBytes | None) -> IpBytes:
        """Return the table key for a socket bound to *ip*."""
        if ip is None or not ip:
            return ANY
        if ip not in self.local:
            raise AddressNotAvailable("the address is not this node's")
        return ip

    def enqueue(self, tx: TxPacket) -> None:
        """Queue a packet for the next egress, or count it as dropped."""
        if len(self.out) >= self.limits.queue:
            self.drops.add("tx_queue")
            return
        if tx.proto != PROTO_TCP:
            dst = tx.dst
            tx.mtu = _least(self.path_mtu(dst), self.datagram_mtus.lookup(dst, self.now))
            v4 = len(dst) == 4
            size = (tx.gso_size or tx.payload_len) + len(tx.header) + (20 if v4 else 40)
            if size > (ipv4.MIN_MTU if v4 else ipv6.MIN_MTU):
                self._note_large(dst, min(size, tx.mtu or self.mtu))
        self.out.append(tx)

    def path_mtu(self, dst: IpBytes) -> int:
        """Return the MTU of the way to *dst* if it is known to be below the tunnel's, else 0."""
        learned = self.path_mtus.lookup(dst, self.now)
        return _least(learned, self.paths.mtu(dst)) if self.paths.used else learned

    def _note_large(self, dst: IpBytes, size: int) -> None:
        """Remember that packets which a narrow path could refuse went to *dst*: only then is such a word plausible."""
        if dst not in self._large and len(self._large) >= _PMTU_ENTRIES:
            del self._large[next(iter(self._large))]
        self._large[dst] = max(size, self._large.pop(dst, 0))

    def datagram_too_big(self, error: IcmpError, now: Instant) -> None:
        """Take a "too big" about a datagram, for what it is worth: it must be about a packet that we can have sent."""
        if max(error.mtu, ipv4.MIN_MTU) >= self._large.get(error.dst, 0) or not self.datagram_mtus.learn(
            error, self.mtu, now
        ):
            self.drops.add("icmp_ignored")

    def heard_from_its_way(self, error: IcmpError, peer: PeerId) -> bool:
        """Tell whether an ICMP error came through the peer that the flow goes by; no other can know of it."""
        owner = self.paths.route(error.dst)
        return owner is None or owner == peer

    def send_error(self, build: Callable[[RxPacket, int], TxPacket | None], rx: RxPacket, now: Instant) -> None:
        """Queue the ICMP error that *build* makes for *rx*, unless the rate is used up."""
        if rx.dst in SERVICES:
            return  # Tailscale's service addresses stay silent (data path reference, section 9)
        if not self._error_bucket.allow(now):
            self.drops.add("icmp_limit")
            return
        tx = build(rx, self.next_ident())
        if tx is not None:
            self.enqueue(tx)

    def next_ident(self, count: int = 1) -> int:
        """Return a new IP identification, the first of *count* in a row."""
        first = (self._ident + 1) & 0xFFFFFFFF
        self._ident = (self._ident + count) & 0xFFFFFFFF
        return first
