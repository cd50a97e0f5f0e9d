"""A passive opener: half-open connections ("embryos") and the queue of finished ones, both bounded (RFC 4987).

Where there is no room for another embryo its owner may answer with a cookie (:mod:`.cookies`) instead.
"""

from collections import deque
from collections.abc import Hashable
from typing import final

from tsnetpy.base.instant import Instant
from tsnetpy.base.packet import Buffer
from tsnetpy.base.stats import Drops

from .config import TcpConfig
from .connection import Connection
from .options import SynOptions
from .states import State


@final
class Listener:
    """LISTEN for one port.

    Attributes:
        config: given to every connection.
        backlog: finished connections that may wait for :meth:`accept`.
        max_embryos: handshakes under way at one time.
        drops: refused SYNs by reason ("backlog", "embryos", "malformed").
    """

    __slots__ = ("_embryos", "_keys", "_queue", "backlog", "config", "drops", "max_embryos")

    def __init__(self, config: TcpConfig, backlog: int = 128, max_embryos: int = 128) -> None:
        self.config = config
        self.backlog = max(1, backlog)
        self.max_embryos = max_embryos
        self.drops = Drops()
        self._embryos: dict[Hashable, Connection] = {}
        self._keys: dict[Connection, Hashable] = {}
        self._queue: deque[Connection] = deque()

    def __len__(self) -> int:
        """Return how many connections wait for :meth:`accept`."""
        return len(self._queue)

    @property
    def embryos(self) -> int:
        """Handshakes under way."""
        return len(self._embryos)

    @property
    def has_room(self) -> bool:
        """Whether the queue would take a finished connection."""
        return len(self._queue) < self.backlog

    def receive_syn(
        self, key: Hashable, seq: int, wnd: int, options: Buffer, now: Instant, iss: int, ts_offset: int = 0
    ) -> Connection | None:
        """Take a SYN (without ACK, RST or FIN) and return the new connection in SYN-RECEIVED.

        Any data on the SYN is left for the peer to retransmit. ``None`` means dropped and counted: a full queue is
        answered with silence, so that the peer tries again.

        Args:
            key: identifies the pair of endpoints; a second SYN for it belongs to the connection already made.
            seq, wnd, options: from the SYN.
            now: when it arrived.
            iss: our initial sequence number.
            ts_offset: as for ``Connection.connect``.
        """
        known = self._embryos.get(key)
        if known is not None:
            return known
        if len(self._queue) >= self.backlog:
            self.drops.add("backlog")
            return None
        if len(self._embryos) >= self.max_embryos:
            self.drops.add("embryos")
            return None
        conn = Connection.accept(self.config, iss, seq, wnd, options, now, ts_offset)
        if conn is None:
            self.drops.add("malformed")
            return None
        self._embryos[key] = conn
        self._keys[conn] = key
        return conn

    def receive_cookie(
        self, key: Hashable, iss: int, irs: int, offer: SynOptions, now: Instant, ts_offset: int = 0
    ) -> Connection | None:
        """Make the connection whose handshake was a cookie; the caller hands it the ACK that brought the cookie back.

        ``None`` means that the queue is full: dropped and counted, and the peer's next segment may find room.

        Args:
            key: as for :meth:`receive_syn`; an embryo of that key gives way.
            iss, irs: initial sequence numbers, ours and the peer's.
            offer: what the SYN had offered.
            now: when the ACK arrived.
            ts_offset: as for ``Connection.connect``.
        """
        if not self.has_room:
            self.drops.add("backlog")
            return None
        known = self._embryos.get(key)
        if known is not None:
            self._forget_embryo(known)
        conn = Connection.from_cookie(self.config, iss, irs, offer, now, ts_offset)
        self._embryos[key] = conn
        self._keys[conn] = key
        return conn

    def on_established(self, conn: Connection) -> None:
        """Move *conn* from the embryos to the accept queue (bounded: backlog plus the embryos let in before)."""
        if self._forget_embryo(conn):
            self._queue.append(conn)

    def forget(self, conn: Connection) -> None:
        """*conn* reached CLOSED: an embryo is dropped; in the queue it stays, so that accept() may report it."""
        self._forget_embryo(conn)

    def _forget_embryo(self, conn: Connection) -> bool:
        key = self._keys.pop(conn, None)
        if key is None:
            return False
        del self._embryos[key]
        return True

    def accept(self) -> Connection | None:
        """Return the oldest finished connection, or ``None``; those that were reset meanwhile are skipped."""
        while self._queue:
            conn = self._queue.popleft()
            if conn.state is not State.CLOSED or conn.readable_bytes:
                return conn
        return None

    def close(self, now: Instant) -> list[Connection]:
        """Reset embryos and connections nobody accepted; return them, for their resets are still to be sent."""
        orphans = [*self._embryos.values(), *self._queue]
        for conn in orphans:
            conn.abort(now)
        self._embryos.clear()
        self._keys.clear()
        self._queue.clear()
        return orphans
