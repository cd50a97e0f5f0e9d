"""What the pump expects of the network below the tunnel: sockets in production, memory in tests.

One callback crosses this border, ``deliver``: the reader task hands each batch of WireGuard datagrams up synchronously,
with the path it came by, and no queue in between.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from anyio.abc import TaskStatus

from tsnetpy.base.addr import Endpoint, IpBytes
from tsnetpy.base.instant import Duration, Instant
from tsnetpy.base.packet import Buffer, PeerId, TxBatch
from tsnetpy.derp.regions import DerpMap
from tsnetpy.disco.netcheck import NetInfo

from .watch import Watch

PathId: TypeAlias = tuple[Literal["udp"], IpBytes, int] | tuple[Literal["derp"], int, bytes]
"""Where a datagram came from: ``("udp", ip, port)`` or ``("derp", region, sender's node key)``."""

Deliver: TypeAlias = Callable[[Sequence[Buffer], PathId, Instant], None]
"""Takes a batch of datagrams from one path. The buffers are borrowed until it returns."""


@dataclass(frozen=True, slots=True)
class UnderlayPeer:
    """What the underlay must know of one peer."""

    node_key: PeerId
    disco_key: bytes | None
    """32 raw bytes, or ``None`` for a peer that knows no disco (WireGuard only)."""
    endpoints: tuple[Endpoint, ...] = ()
    """UDP addresses from the netmap, candidates until disco proves one."""
    home_derp: int = 0
    """The DERP region where the peer listens, 0 if unknown."""


@dataclass(frozen=True, slots=True)
class UnderlayConfig:
    """The whole configuration; :meth:`Underlay.configure` diffs it against the previous one."""

    node_private: bytes = field(repr=False)
    """Our node key (32 bytes): the identity on DERP."""
    peers: tuple[UnderlayPeer, ...] = ()
    derp_map: DerpMap = field(default_factory=DerpMap)


EndpointKind: TypeAlias = int
"""As control wants it (reference, section 6): the ``ENDPOINT_*`` numbers of :mod:`tsnetpy.disco.endpoints`."""


@dataclass(frozen=True, slots=True)
class UnderlayEndpoint:
    """One address at which we may be reached."""

    ip: IpBytes
    port: int
    kind: EndpointKind


@dataclass(frozen=True, slots=True)
class UnderlayState:
    """What control is told about us."""

    endpoints: tuple[UnderlayEndpoint, ...] = ()
    home_derp: int = 0
    net_info: NetInfo = field(default_factory=NetInfo)


@dataclass(frozen=True, slots=True)
class PingResult:
    """The answer to one disco ping."""

    latency_ns: Duration
    via: Literal["direct", "derp"]
    endpoint: Endpoint | None
    """The address that answered, if ``via`` is ``"direct"``."""
    region: int
    """The DERP region that carried it, else 0."""


@dataclass(frozen=True, slots=True)
class PathStatus:
    """How we reach one peer at this moment."""

    cur_addr: Endpoint | None
    """The trusted direct address, or ``None`` while packets go by DERP (or nothing was sent yet)."""
    relay: int
    """The peer's DERP region, 0 if unknown."""
    rx_bytes: int
    tx_bytes: int
    last_rx: Instant | None
    """When anything last came from the peer's known paths (monotonic)."""
    latency_ns: Duration | None
    """Round trip of the current direct address."""
    active: bool
    """Whether the session is in use (something was sent in the last 45 s)."""


class Underlay(Protocol):
    """Carries WireGuard datagrams between us and peers that are named by node key."""

    async def run(self, deliver: Deliver, *, task_status: TaskStatus[None]) -> None:
        """Work until cancelled; report readiness through *task_status* once datagrams can flow."""
        ...

    def send(self, peer: PeerId, batch: TxBatch) -> None:
        """Send to *peer* by the best present path. Never blocks, never raises for the network's sake; drops count."""
        ...

    def reply(self, path: PathId, datagram: bytes) -> None:
        """Send one datagram back by the very path that a message came by; rules as for :meth:`send`.

        For WireGuard's cookie replies: they prove to us where an unknown sender is, so no other path would do.
        """
        ...

    def configure(self, config: UnderlayConfig) -> None:
        """Adopt *config*; may be called at any time, also before :meth:`run`."""
        ...


class PathUnderlay(Underlay, Protocol):
    """An underlay that chooses between paths, and can say which and how fast."""

    @property
    def state(self) -> Watch[UnderlayState]:
        """Our endpoints, home region and network report."""
        ...

    @property
    def disco_public(self) -> bytes:
        """Our disco key (32 raw bytes), new in each process."""
        ...

    async def ping(self, peer: PeerId, timeout_s: float) -> PingResult | None:
        """Send a disco ping to *peer*; ``None`` if nothing came back in time."""
        ...

    def peer_status(self, peer: PeerId) -> PathStatus | None:
        """Return how *peer* is reached, or ``None`` for a key that is not configured."""
        ...

    def drop_counts(self) -> dict[str, int]:
        """Return how many datagrams were lost below the tunnel, by reason."""
        ...
