"""Loss detection and recovery: SACK-based (RFC 6675) when negotiated, NewReno (RFC 6582) otherwise.

What is lost is described by two edges instead of marks on packets: every byte below ``lost_edge`` that the peer does
not hold is lost, and every such byte below ``high_rxt`` has been sent again. So "pipe" is arithmetic over the
scoreboard's few ranges, never a walk over the window.
"""

from typing import Final, final

from tsnetpy.base.instant import Duration, Instant

from .buffers import Scoreboard
from .congestion.base import CongestionControl
from .seqnum import from_wire
from .tcb import Tcb

OPEN: Final = 0
RECOVERY: Final = 1
"""Fast recovery: a loss was inferred from duplicate ACKs or SACK."""
LOSS: Final = 2
"""After a retransmission timeout: everything outstanding counts as lost."""

NAMES: Final = ("open", "recovery", "loss")

DUP_THRESH: Final = 3
_MAX_SACK_RANGES: Final = 128


@final
class Recovery:
    """Where the sender stands with regard to loss.

    Attributes:
        state: OPEN, RECOVERY or LOSS.
        point: SND.NXT when trouble began (RecoveryPoint); an ACK at or above it ends the trouble.
        high_rxt: end of what was retransmitted (HighRxt).
        lost_edge: holes below this are lost.
        dup_acks: duplicate ACKs in a row.
        first_due: the first hole is to be sent regardless of cwnd.
        board: SACK scoreboard; empty when SACK is off.
        dsack: the last SACK option reported a duplicate (RFC 2883).
    """

    __slots__ = (
        "_cc",
        "_reno_sacked",
        "_rxt_mark",
        "_tcb",
        "board",
        "dsack",
        "dup_acks",
        "first_due",
        "high_rxt",
        "lost_edge",
        "point",
        "state",
    )

    def __init__(self, tcb: Tcb, cc: CongestionControl) -> None:
        self._tcb = tcb
        self._cc = cc
        self.state: int = OPEN
        self.point = tcb.iss
        self.high_rxt = 0
        self.lost_edge = 0
        self.dup_acks = 0
        self.first_due = False
        self.board = Scoreboard(_MAX_SACK_RANGES)
        self.dsack = False
        self._reno_sacked = 0
        self._rxt_mark = tcb.iss

    def pipe(self) -> int:
        """Return the estimate of bytes in the network (RFC 6675 §4 SetPipe)."""
        tcb = self._tcb
        una = tcb.snd_una
        nxt = tcb.snd_nxt
        if self.state == OPEN:
            if tcb.sack_on:
                # Bytes the peer reported are out of the network: this gives limited transmit (RFC 3042) for free.
                return nxt - una - self.board.sacked
            return nxt - una - min(self.dup_acks, 2) * tcb.mss
        if self.state == RECOVERY and not tcb.sack_on:
            return nxt - una - self._reno_sacked
        board = self.board
        edge = min(max(self.lost_edge, una), nxt)
        return board.unsacked(una, min(self.high_rxt, edge)) + board.unsacked(edge, nxt)

    def on_sack(self, blocks: list[tuple[int, int]], ack: int) -> int:
        """Put wire *blocks* on the scoreboard; return how many bytes were news. Nonsense is skipped.

        A block at or below *ack*, the number in the same segment, reports a duplicate and is only noted.
        """
        tcb = self._tcb
        una = tcb.snd_una
        news = 0
        self.dsack = False
        for wire_left, wire_right in blocks:
            right = from_wire(wire_right, una)
            left = from_wire(wire_left, una)
            if right <= ack:
                self.dsack = left < right
            elif una <= left < right <= tcb.snd_nxt:
                news += self.board.add(left, right)
        return news

    def on_advance(self, acked: int, in_use: bool, now: Instant, srtt: Duration) -> None:
        """SND.UNA moved up by *acked* bytes; *in_use* tells whether cwnd was what limited the sender."""
        tcb = self._tcb
        una = tcb.snd_una
        self.dup_acks = 0
        if self.state == OPEN:
            if self.board.sacked:
                self.board.advance(una)
            if in_use:
                self._cc.on_ack(acked, now, srtt)
            return
        self.board.advance(una)
        if una >= self.point:
            if self.state == RECOVERY:
                cc = self._cc
                cc.cwnd = cc.ssthresh
                if not tcb.sack_on:
                    # RFC 6582 §3.2 step 3 (1): no burst when little is left in flight.
                    cc.cwnd = min(cc.ssthresh, max(tcb.snd_nxt - una, cc.mss) + cc.mss)
            else:
                self._cc.on_ack(acked, now, srtt)
            self.state = OPEN
            self.first_due = False
            return
        if self.high_rxt < una:
            self.high_rxt = una
        if self.state == LOSS:
            self._cc.on_ack(acked, now, srtt)
            self._raise_edge()
        elif tcb.sack_on:
            # Partial ACK: a retransmission has arrived, so what was sent before it and is below a SACK should have
            # too. (The inference of RFC 8985; without it a small window has too few SACKs to go on.)
            self.lost_edge = max(self.lost_edge, min(self.point, self.board.highest()), una + 1)
            self._raise_edge()
        else:
            # Partial ACK: the next hole starts right here (RFC 6582 §3.2 step 3, "partial acknowledgment").
            self.high_rxt = una
            self.first_due = True
            self._reno_sacked = max(0, self._reno_sacked - acked + tcb.mss)

    def on_retransmitted(self, end: int) -> None:
        """Everything lost up to *end* has been sent again."""
        self.first_due = False
        if end > self.high_rxt:
            self.high_rxt = end
        self._rxt_mark = self._tcb.snd_nxt

    def _raise_edge(self) -> None:
        """Take in what the scoreboard says now: more holes, or that a retransmission was lost as well."""
        una = self._tcb.snd_una
        if self.high_rxt > una and self.board.highest() > self._rxt_mark + (DUP_THRESH - 1) * self._tcb.mss:
            # Several packets sent after the latest retransmission have arrived, and the first hole is still there:
            # whatever was sent again and is still missing was lost again.
            self.high_rxt = una
            self.first_due = True
            self._rxt_mark = self._tcb.snd_nxt
        edge = self.board.lost_edge((DUP_THRESH - 1) * self._tcb.mss)
        if edge > self.lost_edge:
            self.lost_edge = edge

    def on_duplicate(self, now: Instant) -> bool:
        """Count a duplicate ACK (its SACK blocks are on the board already); return True when recovery begins."""
        tcb = self._tcb
        self.dup_acks += 1
        if self.state == RECOVERY:
            if tcb.sack_on:
                self._raise_edge()
            else:
                self._reno_sacked += tcb.mss
            return False
        if self.state == LOSS:
            self._raise_edge()
            return False
        return self.check(now)

    def check(self, now: Instant) -> bool:
        """Enter recovery if the evidence suffices (RFC 6675 §5 step 1-3); return True if it did."""
        tcb = self._tcb
        una = tcb.snd_una
        edge = 0
        if tcb.sack_on:
            edge = self.board.lost_edge((DUP_THRESH - 1) * tcb.mss)
            if edge <= una and (self.dup_acks < DUP_THRESH or not self.board.sacked):
                return False
        elif self.dup_acks < DUP_THRESH or una <= self.point:
            return False  # una <= point: the duplicates stem from our own retransmissions (RFC 6582 §3.2 step 2)
        self.enter(edge, now)
        return True

    def enter(self, edge: int, now: Instant) -> None:
        """Begin fast recovery with the holes below *edge* (the first packet at least) deemed lost."""
        tcb = self._tcb
        una = tcb.snd_una
        self.state = RECOVERY
        self.point = tcb.snd_nxt
        self.high_rxt = una
        self.lost_edge = max(edge, una + 1)
        self.first_due = True
        self._reno_sacked = self.dup_acks * tcb.mss
        self._cc.on_congestion(tcb.snd_nxt - una, now)

    def on_timeout(self, now: Instant) -> None:
        """The retransmission timer expired: all outstanding bytes are lost, and the window is one packet."""
        tcb = self._tcb
        if self.state == LOSS:
            self._cc.cwnd = self._cc.mss  # ssthresh stays: the same segment timed out again (RFC 5681 §3.1)
        else:
            self._cc.on_timeout(tcb.snd_nxt - tcb.snd_una, now)
        self._resend_all()

    def on_mtu_shrunk(self) -> None:
        """What is outstanding was too big for the path: send it again, without penalty (RFC 8201 §5.4 spirit)."""
        self._resend_all()

    def _resend_all(self) -> None:
        tcb = self._tcb
        self.board.clear()
        self.state = LOSS
        self.point = tcb.snd_nxt
        self.high_rxt = tcb.snd_una
        self.lost_edge = tcb.snd_nxt
        self.dup_acks = 0
        self.first_due = True
        self._reno_sacked = 0

    def next_hole(self, beyond_lost: bool) -> tuple[int, int]:
        """Return the next range to retransmit (start == end: none).

        Args:
            beyond_lost: also offer holes that are below a SACK but not yet deemed lost (RFC 6675 NextSeg rule 3).
        """
        tcb = self._tcb
        board = self.board
        if self.first_due:
            return board.gap(tcb.snd_una, tcb.snd_nxt)
        limit = self.lost_edge
        if beyond_lost:
            limit = max(limit, board.highest())
        return board.gap(max(self.high_rxt, tcb.snd_una), min(limit, tcb.snd_nxt))
