"""The table of connections in TIME-WAIT: oldest first, by address pair and by peer."""

from typing import TypeAlias, final

from tsnetpy.base.addr import IpBytes
from tsnetpy.base.instant import SECOND, Instant
from tsnetpy.base.packet import PeerId
from tsnetpy.tcp import TimeWait

Key: TypeAlias = tuple[bytes, int]
"""Remote and local address laid end to end, remote port << 16 | local port: as the bytes of an arriving packet."""


@final
class RestingConnections:
    """All of one stack; each waits equally long, so the order of arrival is that of departure."""

    __slots__ = ("_by_peer", "_table")

    def __init__(self) -> None:
        self._table: dict[Key, TimeWait] = {}
        self._by_peer: dict[PeerId, dict[Key, None]] = {}

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, key: Key) -> bool:
        return key in self._table

    def add(self, key: Key, peer: PeerId, state: TimeWait) -> None:
        """Put a connection of *peer* in."""
        state.owner = peer
        self._table[key] = state
        self._by_peer.setdefault(peer, {})[key] = None

    def get(self, key: Key) -> TimeWait | None:
        """Return the connection of that address pair."""
        return self._table.get(key)

    def restart(self, key: Key) -> None:
        """Move a connection whose wait began anew to the end of the line."""
        state = self._table.pop(key)
        self._table[key] = state
        keys = self._by_peer[state.owner]
        del keys[key]
        keys[key] = None

    def remove(self, key: Key) -> PeerId:
        """Take a connection out; return whose it was."""
        peer = self._table.pop(key).owner
        keys = self._by_peer[peer]
        del keys[key]
        if not keys:
            del self._by_peer[peer]
        return peer

    def oldest(self, peer: PeerId) -> Key | None:
        """Return the connection that rests longest: of *peer* if it has any, else of all."""
        keys = self._by_peer.get(peer)
        return next(iter(keys)) if keys else next(iter(self._table), None)

    def has(self, peer: PeerId) -> bool:
        """Tell whether any connection of *peer* rests."""
        return peer in self._by_peer

    def on_addresses(self, gone: frozenset[IpBytes]) -> list[Key]:
        """Return the connections whose local address is one of *gone*."""
        return [key for key in self._table if key[0][len(key[0]) >> 1 :] in gone]

    def next_deadline(self) -> Instant | None:
        """Return when the first one is over, rounded up to a whole second.

        Nobody minds a wait that is a little longer, and a server that closed a thousand connections in a second then
        wakes up once for them and not a thousand times.
        """
        for state in self._table.values():
            return -(-state.until // SECOND) * SECOND
        return None

    def over(self, now: Instant) -> list[Key]:
        """Return those whose wait is over."""
        keys: list[Key] = []
        for key, state in self._table.items():
            if state.until > now:
                break
            keys.append(key)
        return keys
