"""What is special about the ways to peers: narrow ones, ones that drop bursts, and all of them when nothing can leave.

The owner of the tunnel says so (:meth:`PathTable.set`, :attr:`PathTable.blocked`); TCP looks here before it gives out a
super-segment. A relay, for one, queues 32 packets per client and drops from the head: 49 at once are a loss of our own
making, and one that congestion control would only learn of a round trip later.
"""

from collections.abc import Callable
from typing import Final, final

from tsnetpy.base.addr import IpBytes
from tsnetpy.base.instant import MILLISECOND, Duration, Instant
from tsnetpy.base.packet import PeerId

BURST_INTERVAL: Final[Duration] = MILLISECOND
"""The pause after a burst: as short as a timer can be told apart from none."""
_MAX_LIMITED: Final = 65_536


@final
class Path:
    """The way to one peer.

    Attributes:
        mtu: of inner packets, 0 for the tunnel's.
        burst: packets that may leave back to back, 0 for no limit.
    """

    __slots__ = ("_since", "_used", "burst", "mtu")

    def __init__(self, mtu: int, burst: int) -> None:
        self.mtu = mtu
        self.burst = burst
        self._since: Instant = -BURST_INTERVAL
        self._used = 0

    def may_send(self, now: Instant) -> bool:
        """Tell whether another super-segment may leave; it may overdraw the burst, once."""
        if now - self._since >= BURST_INTERVAL:
            self._since = now
            self._used = 0
        return not self.burst or self._used < self.burst

    def sent(self, packets: int) -> None:
        """Note what left."""
        self._used += packets


@final
class PathTable:
    """The ways that are not ordinary, by peer.

    Attributes:
        route: says which peer an address belongs to.
        blocked: nothing can leave at the moment (a full send buffer); what waits should wait where it is.
        used: some path was limited at some time.
    """

    __slots__ = ("_paths", "blocked", "route", "used")

    def __init__(self) -> None:
        self._paths: dict[PeerId, Path] = {}
        self.route: Callable[[IpBytes], PeerId | None] = _unknown
        self.blocked = False
        self.used = False

    def set(self, peer: PeerId, mtu: int, burst: int) -> bool:
        """Note what is special about the way to *peer* (zeros: nothing); tell whether the MTU changed."""
        known = self._paths.get(peer)
        changed = mtu != (known.mtu if known is not None else 0)
        if not mtu and not burst:
            self._paths.pop(peer, None)
        elif known is not None:
            known.mtu = mtu
            known.burst = burst
        elif len(self._paths) < _MAX_LIMITED:
            self._paths[peer] = Path(mtu, burst)
            self.used = True
        return changed

    def forget(self, peer: PeerId) -> None:
        """*peer* is gone."""
        self._paths.pop(peer, None)

    def lookup(self, dst: IpBytes) -> Path | None:
        """Return the way to *dst* if there is anything special about it."""
        if not self._paths:
            return None
        peer = self.route(dst)
        return None if peer is None else self._paths.get(peer)

    def mtu(self, dst: IpBytes) -> int:
        """Return the MTU of the way to *dst* if it is narrower than the tunnel's, else 0."""
        path = self.lookup(dst)
        return 0 if path is None else path.mtu


def _unknown(ip: IpBytes) -> PeerId | None:
    return None
