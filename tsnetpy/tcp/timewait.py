"""What stays of a connection in TIME-WAIT: the few numbers it takes to answer old segments and to let a new SYN in.

A whole connection is some forty objects. A busy client has thousands in TIME-WAIT at any time, and with them each full
garbage collection would stop the program for tenths of a second.
"""

from typing import Final, final

from tsnetpy.base.instant import MILLISECOND, Duration, Instant
from tsnetpy.base.packet import Buffer

from .flags import ACK, FIN, RST, SYN
from .options import encode_timestamps, parse_syn
from .segment import Segment
from .seqnum import MASK32, from_wire, not_older

_CHALLENGE_INTERVAL: Final = 500 * MILLISECOND


@final
class TimeWait:
    """A connection whose both FINs are acknowledged (RFC 9293 §3.10.7.4).

    Attributes:
        until: when it may be forgotten.
        owner: a slot for the layer above.
    """

    __slots__ = (
        "_challenge_at",
        "_duration",
        "_rcv_nxt",
        "_snd_nxt",
        "_ts_offset",
        "_ts_on",
        "_ts_recent",
        "_window",
        "owner",
        "until",
    )

    def __init__(
        self,
        snd_nxt: int,
        rcv_nxt: int,
        window: int,
        ts_on: bool,
        ts_recent: int,
        ts_offset: int,
        until: Instant,
        duration: Duration,
    ) -> None:
        self._snd_nxt = snd_nxt
        self._rcv_nxt = rcv_nxt
        self._window = window
        self._ts_on = ts_on
        self._ts_recent = ts_recent
        self._ts_offset = ts_offset
        self._duration = duration
        self._challenge_at: Instant = until - duration - _CHALLENGE_INTERVAL
        self.until = until
        self.owner = b""

    def accepts_new_syn(self, wire_seq: int, options: Buffer) -> bool:
        """Tell whether a SYN for the same pair may start a new connection (RFC 9293 §3.6.1, RFC 6191)."""
        offer = parse_syn(options)
        if offer is None:
            return False
        if self._ts_on and offer.has_ts and offer.ts_val != self._ts_recent:
            return not_older(offer.ts_val, self._ts_recent)
        return from_wire(wire_seq, self._rcv_nxt) > self._rcv_nxt

    def receive_segment(self, wire_seq: int, flags: int, size: int, now: Instant) -> Segment | None:
        """Return the ACK that a segment of the old connection calls for.

        A repeated FIN starts the wait over; resets are ignored (RFC 1337). A proper pure ACK gets no answer: two ends
        in TIME-WAIT would keep each other busy for ever.
        """
        if flags & RST:
            return None
        if flags & FIN:
            self.until = now + self._duration
        if not (size or flags & FIN):
            if not flags & SYN and wire_seq == self._rcv_nxt & MASK32:
                return None
            if now - self._challenge_at < _CHALLENGE_INTERVAL:
                return None
            self._challenge_at = now
        options = b""
        if self._ts_on:
            options = encode_timestamps((now // MILLISECOND + self._ts_offset) & MASK32, self._ts_recent)
        return Segment(self._snd_nxt & MASK32, self._rcv_nxt & MASK32, ACK, self._window, options, [], 0, 0)
