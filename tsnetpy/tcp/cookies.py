"""SYN cookies (RFC 4987 §3.6): handshakes beyond the cap of half-open ones, remembered by the peer instead of by us.

What a half-open connection would hold is in the SYN-ACK: the peer's segment size and a keyed hash of everything else in
the sequence number, window scale and SACK in the low bits of the timestamp, if the peer sends timestamps. The ACK that
ends the handshake brings both back. Without timestamps such a connection has neither window scale nor SACK.
"""

from typing import Final, final

from tsnetpy.base.entropy import Entropy
from tsnetpy.base.instant import MILLISECOND, SECOND, Duration, Instant
from tsnetpy.base.packet import Buffer
from tsnetpy.crypto.hash import blake2s_mac

from .config import TcpConfig
from .flags import ACK, SYN
from .options import SynOptions, encode_syn, parse_segment, parse_syn
from .segment import Segment
from .seqnum import MASK32
from .tcb import MIN_MSS, window_shift

MSS_TABLE: Final = (MIN_MSS, 536, 1024, 1220, 1240, 1380, 1440, 1460)
"""Three bits' worth: what peers behind tunnels and on plain Ethernet announce."""
SLOT: Final[Duration] = 64 * SECOND
LIFETIME: Final[Duration] = 2 * SLOT
"""A cookie is good until the end of the slot after its own."""

_SLOT_BITS: Final = 5
_SLOT_MASK: Final = (1 << _SLOT_BITS) - 1
_HASH_BYTES: Final = 3
_HASH_MASK: Final = 0xFFFFFF
_OPTION_MASK: Final = 0x1F
"""Low bits of the timestamp: window scale in four (15 for none), SACK-permitted in one."""
_NO_WSCALE: Final = 15
_SACK_BIT: Final = 16


@final
class SynCookies:
    """Makes cookies and knows its own; it keeps nothing per handshake.

    Attributes:
        sent, accepted, refused: cookies given out, returned in time, and ACKs that carried none of ours.
    """

    __slots__ = ("_last", "_secret", "accepted", "refused", "sent")

    def __init__(self, entropy: Entropy) -> None:
        self._secret = entropy.bytes(32)
        self._last: Instant = -LIFETIME - 1
        self.sent = 0
        self.accepted = 0
        self.refused = 0

    def awaited(self, now: Instant) -> bool:
        """Tell whether a cookie is out that could still come back; else no ACK is worth a hash."""
        return now - self._last < LIFETIME

    def answer(
        self, name: bytes, config: TcpConfig, seq: int, options: Buffer, now: Instant, ts_offset: int
    ) -> Segment | None:
        """Return the SYN-ACK for a SYN, or ``None`` if its options are malformed.

        Args:
            name: both addresses and ports, in a form of fixed length per family.
            config: what the connection will be made with.
            seq, options: from the SYN.
            now: the current instant.
            ts_offset: as for ``Connection.connect``; it must be the same again when the ACK comes.
        """
        offer = parse_syn(options)
        if offer is None:
            return None
        peer_mss = max(offer.mss, MIN_MSS) if offer.mss else 536
        index = max(at for at, size in enumerate(MSS_TABLE) if size <= peer_mss)
        slot = now // SLOT
        iss = (slot & _SLOT_MASK) << 27 | index << 24 | self._hash(name, seq, index, slot)
        ts_on = config.timestamps and offer.has_ts
        wscale = window_shift(config.rcv_buf_max) if ts_on and config.window_scaling and offer.wscale >= 0 else -1
        sack = ts_on and config.sack and offer.sack_permitted
        ts_val = 0
        if ts_on:
            bits = (offer.wscale if wscale >= 0 else _NO_WSCALE) | (_SACK_BIT if sack else 0)
            clock = now // MILLISECOND + ts_offset
            ts_val = clock & ~_OPTION_MASK | bits
            if ts_val > clock:
                ts_val -= _OPTION_MASK + 1  # no later segment may carry an older timestamp
        self.sent += 1
        self._last = now
        offered = encode_syn(config.mss, wscale, sack, ts_on, ts_val & MASK32, offer.ts_val)
        return Segment(iss, (seq + 1) & MASK32, SYN | ACK, min(config.rcv_buf, 0xFFFF), offered, [], 0, 0)

    def check(self, name: bytes, seq: int, ack: int, options: Buffer, now: Instant) -> SynOptions | None:
        """Return what the SYN had offered if the segment with *seq*, *ack* and *options* brings back our cookie."""
        iss = (ack - 1) & MASK32
        index = iss >> 24 & 7
        age = _age(iss, now)
        slot = now // SLOT - age
        if age > 1 or slot < 0 or iss & _HASH_MASK != self._hash(name, (seq - 1) & MASK32, index, slot):
            self.refused += 1
            return None
        self.accepted += 1
        offer = SynOptions()
        offer.mss = MSS_TABLE[index]
        extra = parse_segment(options)
        if extra.has_ts:
            offer.has_ts = True
            offer.ts_val = extra.ts_val
            if extra.ts_ecr & _NO_WSCALE != _NO_WSCALE:
                offer.wscale = extra.ts_ecr & _NO_WSCALE
            offer.sack_permitted = bool(extra.ts_ecr & _SACK_BIT)
        return offer

    def may_follow(self, ack: int, now: Instant) -> bool:
        """Tell whether *ack*, refused by :meth:`check`, may be of a later segment of a handshake that is good.

        The number that *ack* has to fit is in the first segment only, and that may have been lost. So the answer is a
        guess, right for all such segments, and wrong for one in sixteen others.
        """
        return _age((ack - 1) & MASK32, now) <= 1

    def _hash(self, name: bytes, seq: int, index: int, slot: int) -> int:
        text = b"%b%b%b%b" % (seq.to_bytes(4, "big"), index.to_bytes(1, "big"), slot.to_bytes(8, "big"), name)
        return int.from_bytes(blake2s_mac(self._secret, text, _HASH_BYTES), "big")


def _age(iss: int, now: Instant) -> int:
    """Return how many slots ago the cookie *iss* was made, modulo 32."""
    return (now // SLOT - (iss >> 27)) & _SLOT_MASK
