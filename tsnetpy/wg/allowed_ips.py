"""Cryptokey routing: which peer may use which inner addresses, and who gets packets for them (whitepaper section 2)."""

from collections.abc import Iterable
from typing import final

from tsnetpy.base.addr import IpBytes, IpPrefix
from tsnetpy.base.lpm import PrefixTable
from tsnetpy.base.packet import PeerId


@final
class AllowedIps:
    """A prefix belongs to one peer at a time; the last one that claims it has it."""

    __slots__ = ("_by_peer", "_table")

    def __init__(self) -> None:
        self._table: PrefixTable[PeerId] = PrefixTable()
        self._by_peer: dict[PeerId, set[IpPrefix]] = {}

    def set(self, peer: PeerId, prefixes: Iterable[IpPrefix]) -> None:
        """Give *peer* exactly *prefixes*, taking them from other peers where necessary."""
        wanted = set(prefixes)
        mine = self._by_peer.setdefault(peer, set())
        for prefix in mine - wanted:
            self._table.remove(prefix)
        for prefix in wanted - mine:
            before = self._table.insert(prefix, peer)
            if before is not None:
                self._by_peer[before].discard(prefix)
        self._by_peer[peer] = wanted

    def remove_peer(self, peer: PeerId) -> None:
        """Forget everything of *peer*."""
        for prefix in self._by_peer.pop(peer, set()):
            self._table.remove(prefix)

    def prefixes(self, peer: PeerId) -> frozenset[IpPrefix]:
        """Return what *peer* has now."""
        return frozenset(self._by_peer.get(peer, ()))

    def lookup(self, ip: IpBytes) -> PeerId | None:
        """Return the peer of the longest prefix that contains *ip*."""
        return self._table.lookup(ip)
