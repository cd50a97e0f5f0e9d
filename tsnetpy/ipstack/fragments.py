"""Reassembly of IPv4 and IPv6 fragments (RFC 791 §3.2, RFC 815, RFC 8200 §4.5).

Safety comes before delivery: overlapping fragments discard the whole datagram and everything of it that still arrives
(RFC 5722 §3, applied to IPv4 too); only an exact duplicate is ignored. Memory, datagrams and datagrams per peer are
bounded, and at a bound the oldest of the guilty goes, so that nobody can lock others out (CVE-2018-5391).
"""

from bisect import bisect_left
from typing import Final, TypeAlias, final

from tsnetpy.base.instant import SECOND, Instant
from tsnetpy.base.packet import PeerId
from tsnetpy.base.stats import Drops
from tsnetpy.nic.rx import RxPacket
from tsnetpy.wire import ipv6

from .limits import StackLimits

TIMEOUT_V4: Final = 30 * SECOND
TIMEOUT_V6: Final = 60 * SECOND
_OVERHEAD: Final = 128
"""Bytes that one stored fragment is counted for besides its data."""

_Key: TypeAlias = tuple[bytes, int, int]
"""Both addresses, identification, protocol (0 for IPv6, where the identification alone names the datagram)."""


@final
class _Datagram:
    __slots__ = ("dead", "deadline", "first", "held", "peer", "pieces", "starts", "total")

    def __init__(self, peer: PeerId, deadline: Instant) -> None:
        self.peer = peer
        self.deadline = deadline
        self.starts: list[int] = []
        self.pieces: list[bytes] = []
        self.total = -1  # known from the last fragment
        self.first: RxPacket | None = None
        self.held = 0
        self.dead = False


@final
class Reassembler:
    """Collects fragments until datagrams are whole.

    Attributes:
        drops: what was discarded, by reason.
        completed: datagrams put together.
    """

    __slots__ = ("_held", "_limits", "_table", "completed", "drops")

    def __init__(self, limits: StackLimits, drops: Drops) -> None:
        self._table: dict[_Key, _Datagram] = {}
        self._held = 0
        self._limits = limits
        self.drops = drops
        self.completed = 0

    def __len__(self) -> int:
        return len(self._table)

    @property
    def held_bytes(self) -> int:
        """Memory in use, overhead included."""
        return self._held

    def add(self, rx: RxPacket, now: Instant) -> bytes | None:
        """Take one fragment; return the whole IP packet if that completed it."""
        v4 = len(rx.src) == 4
        key = (rx.addrs, rx.frag_id, rx.proto if v4 else 0)
        datagram = self._table.get(key)
        if datagram is None:
            datagram = self._open(key, rx.peer, now + (TIMEOUT_V4 if v4 else TIMEOUT_V6))
        elif datagram.dead:
            self.drops.add("fragment_overlap")
            return None
        data = rx.raw[rx.offset : rx.end]
        start = rx.frag_offset
        end = start + len(data)
        at = bisect_left(datagram.starts, start)
        if at < len(datagram.starts) and datagram.starts[at] == start and datagram.pieces[at] == data:
            if rx.frag_more == (end != datagram.total):
                self.drops.add("fragment_duplicate")
                return None
            self._kill(datagram)
            return None
        last_end = datagram.starts[-1] + len(datagram.pieces[-1]) if datagram.starts else 0
        if (
            (at > 0 and datagram.starts[at - 1] + len(datagram.pieces[at - 1]) > start)
            or (at < len(datagram.starts) and datagram.starts[at] < end)
            or (datagram.total >= 0 and (end > datagram.total or not rx.frag_more))
            or (not rx.frag_more and last_end > end)
        ):
            self._kill(datagram)
            return None
        datagram.starts.insert(at, start)
        datagram.pieces.insert(at, data)
        datagram.held += len(data) + _OVERHEAD
        self._held += len(data) + _OVERHEAD
        if start == 0:
            datagram.first = rx
        if not rx.frag_more:
            datagram.total = end
        first = datagram.first
        if datagram.total >= 0 and first is not None and self._is_whole(datagram):
            self._remove(key, datagram)
            return self._join(first, datagram.pieces, datagram.total)
        if self._held > self._limits.fragment_bytes:
            self._shrink()
        return None

    def next_deadline(self) -> Instant | None:
        """Return when the oldest datagram times out."""
        earliest: Instant | None = None
        for datagram in self._table.values():
            if earliest is None or datagram.deadline < earliest:
                earliest = datagram.deadline
        return earliest

    def expire(self, now: Instant) -> list[RxPacket]:
        """Forget what timed out; return the first fragments among it, which deserve a "time exceeded"."""
        firsts: list[RxPacket] = []
        for key in [key for key, datagram in self._table.items() if datagram.deadline <= now]:
            datagram = self._table[key]
            if not datagram.dead:
                self.drops.add("fragment_timeout")
                if datagram.first is not None:
                    firsts.append(datagram.first)
            self._remove(key, datagram)
        return firsts

    @staticmethod
    def _is_whole(datagram: _Datagram) -> bool:
        # The pieces are disjoint, so they fill [0, total) exactly if their lengths add up.
        return datagram.held - _OVERHEAD * len(datagram.pieces) == datagram.total

    def _join(self, first: RxPacket, pieces: list[bytes], total: int) -> bytes | None:
        body = b"".join(pieces)
        if len(first.src) == 4:
            head = first.raw[: first.offset]
            length = len(head) + total
            if length > 0xFFFF:
                self.drops.add("fragment_length")
                return None
            self.completed += 1
            head = head[:2] + length.to_bytes(2, "big") + head[4:6] + b"\x00\x00" + head[8:10] + b"\x00\x00" + head[12:]
            value = -int.from_bytes(head, "big") % 65535
            return head[:10] + value.to_bytes(2, "big") + head[12:] + body
        head = first.raw[:40]
        self.completed += 1
        # Extension headers before the Fragment header were obeyed when each fragment came; they end here.
        following = first.raw[first.offset - ipv6.FRAGMENT_LEN]
        return head[:4] + total.to_bytes(2, "big") + bytes((following,)) + head[7:] + body

    def _open(self, key: _Key, peer: PeerId, deadline: Instant) -> _Datagram:
        """Make room under the caps and start a datagram."""
        mine = [k for k, d in self._table.items() if d.peer == peer]
        if len(mine) >= self._limits.fragment_datagrams_per_peer:
            self._evict(mine[0])
        elif len(self._table) >= self._limits.fragment_datagrams:
            self._evict(next(iter(self._table)))
        datagram = _Datagram(peer, deadline)
        self._table[key] = datagram
        return datagram

    def _shrink(self) -> None:
        """Evict the oldest datagrams until a quarter of the memory is free."""
        floor = self._limits.fragment_bytes * 3 // 4
        while self._held > floor and self._table:
            self._evict(next(iter(self._table)))

    def _evict(self, key: _Key) -> None:
        self.drops.add("fragment_memory")
        self._remove(key, self._table[key])

    def _kill(self, datagram: _Datagram) -> None:
        """Discard the datagram but remember it until its time is over, so that its rest is discarded as well."""
        self.drops.add("fragment_overlap", 1 + len(datagram.pieces))
        self._held -= datagram.held
        datagram.held = 0
        datagram.starts = []
        datagram.pieces = []
        datagram.first = None
        datagram.dead = True

    def _remove(self, key: _Key, datagram: _Datagram) -> None:
        self._held -= datagram.held
        del self._table[key]
