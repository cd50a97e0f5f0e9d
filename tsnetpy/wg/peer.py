"""What a device keeps of one peer."""

from collections.abc import Hashable
from typing import Final, final

from tsnetpy.base.instant import Instant
from tsnetpy.base.packet import PeerId
from tsnetpy.base.ring import Ring
from tsnetpy.noise.ikpsk2 import NO_PSK, IkPsk2Initiator

from .constants import MAX_STAGED_PACKETS
from .cookies import CookieGenerator
from .session import Session
from .tai64n import NEVER, Tai64nClock
from .timers import PeerTimers

NO_INDEX: Final = -1


@final
class Peer:
    """State of one peer; the rules that change it are in :mod:`.device`.

    Args:
        stamped_ns: what its first timestamp must be later than.

    Attributes:
        key: static public key.
        psk: pre-shared key, 32 zero bytes for none.
        persistent_keepalive_ns: 0 for off.
        static_shared: cached Diffie-Hellman of both static keys, empty until first needed.
        previous, current, next: the session slots. We send on *current* only, receive on all three.
        handshake, handshake_index: our initiation that waits for its response.
        remote_timestamp: greatest TAI64N accepted, so that an old initiation cannot come back.
        staged: packets that wait for a session.
        path: where the last authentic message came from.
        scheduled: the deadline under which this peer stands in the device's heap.
    """

    __slots__ = (
        "clock",
        "cookies",
        "current",
        "handshake",
        "handshake_index",
        "key",
        "last_handshake",
        "last_initiation_consumed",
        "last_sent_handshake",
        "next",
        "path",
        "persistent_keepalive_ns",
        "previous",
        "psk",
        "remote_timestamp",
        "removed",
        "rx_bytes",
        "scheduled",
        "staged",
        "static_shared",
        "timers",
        "tx_bytes",
    )

    def __init__(self, key: PeerId, psk: bytes | None, persistent_keepalive_ns: int, stamped_ns: int = NEVER) -> None:
        self.key = key
        self.psk = psk or NO_PSK
        self.persistent_keepalive_ns = persistent_keepalive_ns
        self.static_shared = b""
        self.previous: Session | None = None
        self.current: Session | None = None
        self.next: Session | None = None
        self.handshake: IkPsk2Initiator | None = None
        self.handshake_index: int = NO_INDEX
        self.remote_timestamp = b""
        self.last_initiation_consumed: Instant | None = None
        self.last_sent_handshake: Instant | None = None
        self.last_handshake: Instant | None = None
        self.clock = Tai64nClock(stamped_ns)
        self.cookies = CookieGenerator(key)
        self.timers = PeerTimers()
        self.staged: Ring[bytes] = Ring(MAX_STAGED_PACKETS)
        self.path: Hashable = None
        self.scheduled: Instant | None = None
        self.removed = False
        self.rx_bytes = 0
        self.tx_bytes = 0

    def __repr__(self) -> str:
        return f"<Peer {self.key[:4].hex()}…>"
