"""Loss recovery: when to send what again, and what the window does meanwhile.

With SACK, :mod:`~tsnetpy.tcp.rack` finds the losses, :mod:`~tsnetpy.tcp.flight` keeps the scoreboard (RFC 6675), and
:mod:`~tsnetpy.tcp.prr` moves the window. Without, this is NewReno (RFC 6582). :mod:`~tsnetpy.tcp.undo` takes it all
back if it was needless.
"""

from typing import Final, final

from tsnetpy.base.instant import MILLISECOND, Instant

from .congestion.base import INFINITE_SSTHRESH, CongestionControl
from .congestion.tolerance import LossTolerance
from .flight import Flight
from .prr import RateReduction
from .rack import DUP_THRESH, Rack
from .rtt import RttEstimator
from .seqnum import HALF32, MASK32, from_wire
from .tcb import Tcb
from .timers import NEVER, REORDER
from .undo import F_RTO_FIRST, F_RTO_NEW_DATA, F_RTO_OFF, Undo

OPEN: Final = 0
RECOVERY: Final = 1
"""Fast recovery: a loss was inferred from duplicate ACKs or SACK."""
LOSS: Final = 2
"""After a retransmission timeout: everything outstanding counts as lost."""

_NAMES: Final = ("open", "recovery", "loss")


@final
class Recovery:
    """Where the sender stands with regard to loss.

    Attributes:
        state: OPEN, RECOVERY or LOSS.
        point: SND.NXT when trouble began (RecoveryPoint); an ACK at or above it ends the trouble.
        dup_acks: duplicate ACKs in a row.
        first_due: the first hole is to be sent regardless of cwnd.
        flight, rack, undo: their states.
        dsack: the segment being processed reported a duplicate (RFC 2883).
        reneged: the peer dropped what it had reported (RFC 2018 §8).
    """

    __slots__ = (
        "_cc",
        "_highest",
        "_known",
        "_prr",
        "_reno_sacked",
        "_rescued",
        "_round_end",
        "_rtt",
        "_tcb",
        "_tolerance",
        "_tolerated",
        "dsack",
        "dup_acks",
        "first_due",
        "flight",
        "point",
        "rack",
        "reneged",
        "state",
        "undo",
    )

    def __init__(self, tcb: Tcb, cc: CongestionControl, rtt: RttEstimator) -> None:
        self._tcb = tcb
        self._cc = cc
        self._rtt = rtt
        self.state: int = OPEN
        self.point = tcb.iss
        self.dup_acks = 0
        self.first_due = False
        self.flight = Flight(tcb.iss + 1)
        self.rack = Rack(tcb.iss)
        self.undo = Undo()
        self.dsack = False
        self.reneged = False
        self._prr = RateReduction()
        self._rescued = False
        self._reno_sacked = 0
        self._known = -1  # SND.UNA plus reported bytes before the SACK blocks of the ACK under way
        self._highest = tcb.iss  # end of the highest packet that the SACK blocks of the latest ACK reported
        self._round_end = tcb.iss
        self._tolerance: LossTolerance | None = None
        self._tolerated = 0  # the window to return to after a recovery that is taken for no congestion, else 0

    def pipe(self) -> int:
        """Return the estimate of bytes in the network."""
        tcb = self._tcb
        flight = self.flight
        if tcb.sack_on:
            # Bytes the peer reported are out of the network: this gives limited transmit (RFC 3042) for free.
            return tcb.snd_nxt - tcb.snd_una - flight.sacked.total - flight.lost.total
        out = tcb.snd_nxt - tcb.snd_una - flight.lost.total
        if self.state == OPEN:
            return out - min(self.dup_acks, 2) * tcb.mss
        return out - self._reno_sacked

    @property
    def name(self) -> str:
        """The state in words; "disorder" is OPEN with duplicate ACKs or reports that have not been judged yet."""
        if self.state == OPEN and (self.dup_acks or self.flight.sacked.total):
            return "disorder"
        return _NAMES[self.state]

    @property
    def reported_bytes(self) -> int:
        """Bytes above SND.UNA that the peer holds; without SACK, one packet for each duplicate ACK."""
        if self._tcb.sack_on:
            return self.flight.sacked.total
        return self.dup_acks * self._tcb.mss if self.state == OPEN else self._reno_sacked

    # -- acknowledgments -----------------------------------------------------------------------------------------------

    def echo_time(self, ts_ecr: int, now: Instant) -> Instant:
        """Return the latest instant at which the segment that *ts_ecr* stems from can have been sent, or -1."""
        if ts_ecr < 0:
            return -1
        age = (self._tcb.clock(now) - ts_ecr) & MASK32
        if age >= HALF32:
            return -1
        return (now // MILLISECOND - age + 1) * MILLISECOND - 1

    def on_sack(self, blocks: list[tuple[int, int]], ack: int, now: Instant) -> int:
        """Put wire *blocks* on the scoreboard; return how many bytes were news. Nonsense is skipped.

        It comes before the ACK number *ack* of the same segment is processed. A block below it, or inside the block
        that follows, reports a duplicate (RFC 2883 §4).
        """
        tcb = self._tcb
        una = tcb.snd_una
        flight = self.flight
        sacked = flight.sacked
        news = 0
        fresh_old = False
        self._known = una + sacked.total
        highest = una
        previous = (0, 0)
        first = True
        for wire_left, wire_right in blocks:
            right = from_wire(wire_right, una)
            left = from_wire(wire_left, una)
            if left >= right or right > tcb.snd_nxt:
                continue
            if right <= ack:
                if first and left >= una - tcb.max_snd_wnd:
                    self._on_dsack(left, right)
                first = False
                continue
            if left < una:
                continue
            if previous[1] and left <= previous[0] and previous[1] <= right and not self.dsack:
                self._on_dsack(previous[0], previous[1])
            if first:
                previous = (left, right)
            else:
                previous = (0, 0)
            first = False
            start = left
            while start < right:
                begin, stop = sacked.gap(start, right)
                if begin >= stop:
                    break
                start = stop
                begin, stop = flight.whole(begin, stop)
                added = sacked.add(begin, stop) if begin < stop else 0
                if added == 0:
                    continue
                news += added
                # The echo is of no use here: above a gap it stands still (RFC 7323 §4.3), and a retransmission that
                # was lost again would never be told from one that is on its way.
                fresh = self.rack.delivered(flight, begin, stop, -1, self._rtt.min_rtt, now)
                if fresh and begin < self.point:
                    fresh_old = True
                flight.lost.remove(begin, stop)
                highest = max(highest, stop)
        self._highest = highest
        if news == 0:
            self._known = -1
        if news and self.state == LOSS and self.undo.f_rto != F_RTO_OFF:
            if fresh_old and self.undo.f_rto == F_RTO_NEW_DATA:
                self._take_back()  # what was sent before the timeout, and only then, still arrives (RFC 5682 §3.1)
            else:
                self.undo.f_rto = F_RTO_OFF
        return news

    def _on_dsack(self, start: int, end: int) -> None:
        tcb = self._tcb
        self.dsack = True
        tcb.stats.dsacks_in += 1
        self.rack.on_dsack(tcb.snd_una, tcb.snd_nxt)
        if self.undo.on_dsack(start, end):
            self._take_back()

    def on_advance(self, acked: int, in_use: bool, ts_ecr: int, now: Instant) -> None:
        """SND.UNA moved up by *acked* bytes; *in_use* tells whether cwnd was what limited the sender."""
        tcb = self._tcb
        una = tcb.snd_una
        flight = self.flight
        rack = self.rack
        new_round = una >= self._round_end
        if new_round:
            self._round_end = tcb.snd_nxt
        if self.state == OPEN and not flight.sacked.total and not flight.resent_pieces:
            # Nothing was lost or reordered, so the last byte was the last one sent.
            if self.dup_acks:
                # What duplicate ACKs spoke of has left the network before and is not news (no SACK here).
                acked = max(acked - self.dup_acks * tcb.mss, tcb.mss)
                self.dup_acks = 0
            sent_at = flight.advance(una)
            rtt = 0
            if sent_at:
                rtt = now - sent_at
                rack.sent_at = sent_at
                rack.end_seq = una
                rack.rtt = rtt
                self._rtt.note_least(rtt, now)
            rack.fack = una
            self._cc.on_ack(acked if in_use else 0, now, self._rtt.srtt, rtt, new_round)
            return
        self._on_advance(acked, in_use, ts_ecr, new_round, now)

    def _on_advance(self, acked: int, in_use: bool, ts_ecr: int, new_round: bool, now: Instant) -> None:
        tcb = self._tcb
        una = tcb.snd_una
        flight = self.flight
        sacked = flight.sacked
        rack = self.rack
        before = flight.una
        echo = self.echo_time(ts_ecr, now)
        last_sent = rack.sent_at
        start = before
        while start < una:
            begin, stop = sacked.gap(start, una)
            if begin >= stop:
                break
            rack.delivered(flight, begin, stop, echo, self._rtt.min_rtt, now)
            start = stop
        rack.settle(max(una, self._highest), tcb.mss)
        rtt = 0
        if rack.sent_at > last_sent:
            rtt = now - rack.sent_at
            self._rtt.note_least(rtt, now)
        known = before + sacked.total if self._known < 0 else self._known
        self._known = -1
        flight.advance(una)
        self.reneged = sacked.first()[0] == una and sacked.total > 0
        delivered = una + sacked.total - known
        self.dup_acks = 0
        state = self.state
        cc = self._cc
        if state == OPEN:
            # In disorder the window grows by what is news: the rest was reported, and made room, before (RFC 3042).
            cc.on_ack(max(delivered, 0) if in_use else 0, now, self._rtt.srtt, rtt, new_round)
            self._judge(delivered, True, now)
            return
        undo = self.undo
        if undo.original_arrived(echo) and not self.dsack:
            self._take_back()
            self._judge(delivered, True, now)
            return
        if una >= self.point:
            self._end(acked, new_round, now)
        elif state == LOSS:
            self._reno_sacked = max(0, self._reno_sacked - acked)
            self._f_rto(acked, new_round, now)
        elif not tcb.sack_on:
            # Partial ACK: the next hole starts right here (RFC 6582 §3.2 step 3, "partial acknowledgment").
            self._reno_sacked = max(0, self._reno_sacked - acked + tcb.mss)
            self.lose_first()
        self._judge(delivered, True, now)

    def _f_rto(self, acked: int, new_round: bool, now: Instant) -> None:
        """A partial ACK after a timeout: perhaps nothing was lost (RFC 5682 §2.1)."""
        tcb = self._tcb
        undo = self.undo
        if undo.f_rto == F_RTO_NEW_DATA:
            self._take_back()  # it goes beyond the one packet that was sent again
            return
        if undo.f_rto == F_RTO_FIRST:
            undo.f_rto = F_RTO_OFF
            if tcb.snd_una + tcb.snd_wnd > tcb.snd_nxt:
                undo.f_rto = F_RTO_NEW_DATA
                undo.f_rto_room = 2 * tcb.mss
        self._cc.on_ack(acked, now, self._rtt.srtt, 0, new_round)

    def _end(self, acked: int, new_round: bool, now: Instant) -> None:
        """Everything that was outstanding when the trouble began is acknowledged."""
        tcb = self._tcb
        cc = self._cc
        if self.state == RECOVERY:
            cc.cwnd = self._tolerated or cc.ssthresh
            self._tolerated = 0
            if not tcb.sack_on:
                # RFC 6582 §3.2 step 3 (1): no burst when little is left in flight.
                cc.cwnd = min(cc.ssthresh, max(tcb.snd_nxt - tcb.snd_una, cc.mss) + cc.mss)
        else:
            cc.on_ack(acked, now, self._rtt.srtt, 0, new_round)
        self.state = OPEN
        self.first_due = False
        self.undo.f_rto = F_RTO_OFF
        self.flight.lost.clear()
        self._reno_sacked = 0
        self.rack.on_recovered()

    def _take_back(self) -> None:
        """The retransmission was needless: nothing is lost, and the window is what it was (RFC 4015 §3)."""
        cc = self._cc
        undo = self.undo
        self._tcb.stats.undos += 1
        if self._tolerated:
            cc.cwnd = max(cc.cwnd, self._tolerated)  # no more than that was taken
            self._tolerated = 0
        else:
            cc.undo(undo.cwnd, undo.ssthresh)
        undo.forget()
        if self.state != OPEN:
            if self.state == LOSS:
                self.flight.reorder_by_time()
            self.state = OPEN
            self.first_due = False
            self.flight.lost.clear()
            self._reno_sacked = 0

    # -- detection -----------------------------------------------------------------------------------------------------

    def on_sack_only(self, in_use: bool, now: Instant) -> bool:
        """News on the scoreboard without progress of SND.UNA; return True when recovery begins.

        *in_use* tells whether cwnd was what limited the sender.
        """
        self.dup_acks += 1
        flight = self.flight
        delivered = flight.una + flight.sacked.total - self._known
        self._known = -1
        self.rack.settle(self._highest, self._tcb.mss)
        if in_use and self.state == OPEN and self.rack.reorder_seen:
            # A path that reorders never gets to grow otherwise: the ACK that closes the gap has little news itself.
            self._cc.on_ack(delivered, now, self._rtt.srtt, 0, False)
        return self._judge(delivered, False, now)

    def _judge(self, delivered: int, advanced: bool, now: Instant) -> bool:
        """Look for losses, enter recovery if there are any, and set the window; return True when recovery begins."""
        tcb = self._tcb
        if not tcb.sack_on:
            return False
        flight = self.flight
        before = flight.lost.total
        if flight.sacked.total or self.state != OPEN:
            self.find_losses(now)
        else:
            tcb.timers.at[REORDER] = NEVER
        entered = False
        if self.state == OPEN and flight.lost.total:
            self.enter(delivered, now)
            entered = True
        elif self._tolerated and flight.lost.total > before:
            self._lost_more(flight.lost.total - before, now)
        if self.state == RECOVERY and delivered > 0:
            cc = self._cc
            safe = advanced and not entered and flight.lost.total <= before
            target = self._tolerated or cc.ssthresh
            cc.cwnd = max(self._prr.window(delivered, flight.pipe(), target, cc.mss, safe), cc.mss)
        return entered

    def find_losses(self, now: Instant) -> None:
        """Let RACK mark what is lost at *now*, and set the timer for what may be lost soon."""
        tcb = self._tcb
        rtt = self._rtt
        flight = self.flight
        sacked = flight.sacked.total
        many = sacked > (DUP_THRESH - 1) * tcb.mss or (
            sacked > 0 and (self.dup_acks >= DUP_THRESH or flight.reported(DUP_THRESH) >= DUP_THRESH)
        )
        window = self.rack.window(self.state != OPEN or many, rtt.min_rtt, rtt.srtt)
        wait = self.rack.detect(flight, window, now)
        tcb.timers.at[REORDER] = now + wait if wait else NEVER

    def on_reorder_timer(self, due: Instant) -> bool:
        """The reordering window closed at *due*; return True when recovery begins.

        It is judged at that instant, not at the one when we came round to it (RFC 8985 §6.2 step 5 asks for a timer,
        and a timer that is late must not find more than it was set for).
        """
        self.find_losses(due)
        if self.state == OPEN and self.flight.lost.total:
            self.enter(0, due)
            cc = self._cc
            target = self._tolerated or cc.ssthresh
            cc.cwnd = max(self._prr.window(0, self.flight.pipe(), target, cc.mss, False), cc.mss)
            return True
        return False

    def on_duplicate(self, now: Instant) -> bool:
        """A duplicate ACK from a peer without SACK; return True when recovery begins (RFC 6582 §3.2 step 2)."""
        tcb = self._tcb
        self.dup_acks += 1
        if self.state == RECOVERY:
            self._reno_sacked += tcb.mss
            return False
        if self.state == LOSS:
            self._reno_sacked += tcb.mss
            self.undo.f_rto = F_RTO_OFF
            return False
        if self.dup_acks < DUP_THRESH or tcb.snd_una <= self.point:
            return False  # una <= point: the duplicates stem from our own retransmissions
        self._reno_sacked = self.dup_acks * tcb.mss
        self.enter(0, now)
        self.lose_first()
        return True

    def lose_first(self) -> None:
        """Deem the first packet lost and send it whatever the window says."""
        tcb = self._tcb
        self.flight.mark_range_lost(tcb.snd_una, min(tcb.snd_una + tcb.mss, tcb.snd_nxt))
        self.first_due = True

    def enter(self, delivered: int, now: Instant) -> None:
        """Begin fast recovery; what is lost is marked. *delivered* is what the ACK that told it newly reported."""
        tcb = self._tcb
        cc = self._cc
        una = tcb.snd_una
        self.undo.begin(una, cc.cwnd, cc.ssthresh)
        self.state = RECOVERY
        self.point = tcb.snd_nxt
        self.first_due = True
        self._rescued = False
        self._prr.start(tcb.snd_nxt - una - self.flight.sacked.total + delivered)
        self._tolerated = 0
        keep = 0.0
        if tcb.sack_on and tcb.config.loss_tolerance:
            tolerance = self._tolerance
            if tolerance is None:
                tolerance = self._tolerance = LossTolerance(tcb.iss)
            out = tcb.snd_nxt - una
            keep = tolerance.keeps(una, self.flight.lost.total, out, cc.mss, self.rack.rtt, self._rtt.min_rtt)
            if keep == 1:
                self._tolerated = cc.cwnd
                return
            if cc.ssthresh != INFINITE_SSTHRESH:
                keep = 0.0  # with a queue that is not slow start's own: the neighbours may have made it
        cc.on_congestion(tcb.snd_nxt - una, now, keep)

    def _lost_more(self, lost: int, now: Instant) -> None:
        """*lost* more bytes were found lost in a recovery that was taken for no congestion: perhaps it is one."""
        tcb = self._tcb
        cc = self._cc
        if self._tolerance is None or self._tolerance.goes_on(lost, cc.mss):
            return
        self._tolerated = 0
        cc.on_congestion(tcb.snd_nxt - tcb.snd_una, now)

    def lose_tail(self, start: int, now: Instant) -> None:
        """A tail probe arrived, but what was sent before *start* two round trips ago did not."""
        if self.state != OPEN:
            return
        self.flight.mark_range_lost(self._tcb.snd_una, start)
        if self.flight.lost.total:
            self.enter(0, now)

    # -- timeouts and retransmissions ----------------------------------------------------------------------------------

    def on_timeout(self, now: Instant) -> None:
        """The retransmission timer expired: all outstanding bytes are lost, and the window is one packet."""
        tcb = self._tcb
        cc = self._cc
        una = tcb.snd_una
        self._tolerated = 0
        if self.state == LOSS:
            cc.cwnd = cc.mss  # ssthresh stays: the same segment timed out again (RFC 5681 §3.1)
            self.undo.f_rto = F_RTO_OFF
        else:
            if self.state == OPEN:
                self.undo.begin(una, cc.cwnd, cc.ssthresh)
                # The decision needs an ACK between the first packet and the rest (RFC 5682 §2.1 step 1).
                self.undo.f_rto = F_RTO_FIRST
            else:
                self.undo.forget()
            cc.on_timeout(tcb.snd_nxt - una, now)
        self._resend_all()

    def on_mtu_shrunk(self) -> None:
        """What is outstanding was too big for the path: send it again, without penalty (RFC 8201 §5.4 spirit)."""
        self.undo.forget()
        self._tolerated = 0
        self._resend_all()

    def _resend_all(self) -> None:
        tcb = self._tcb
        self.flight.lose_everything()
        tcb.timers.at[REORDER] = NEVER
        self.state = LOSS
        self.point = tcb.snd_nxt
        self.dup_acks = 0
        self.first_due = True
        self._reno_sacked = 0

    def next_hole(self) -> tuple[int, int]:
        """Return the next range to retransmit (start == end: none)."""
        if self.first_due:
            start, end = self.flight.lost.first()
            return (start, end) if end else self.flight.sacked.gap(self._tcb.snd_una, self._tcb.snd_nxt)
        return self.flight.lost.first()

    def rescue(self) -> int:
        """Return where the last packet to be sent as a rescue begins, -1 for none (RFC 6675 §4 NextSeg rule 4).

        Once per recovery, when there is nothing else to send: a lost tail would have to wait for the timeout.
        """
        tcb = self._tcb
        flight = self.flight
        if self.state != RECOVERY or not tcb.sack_on or self._rescued or flight.lost.total:
            return -1
        start = max(tcb.snd_nxt - tcb.mss, flight.sacked.highest(), tcb.snd_una)
        if start >= tcb.snd_nxt or self.pipe() + tcb.mss > self._cc.cwnd:
            return -1
        self._rescued = True
        return start

    def on_sent(self, start: int, end: int, now: Instant) -> None:
        """New data, or the FIN, went out."""
        self.flight.send(start, end, now)
        if self.state == RECOVERY:
            self._prr.sent += end - start
        elif self.undo.f_rto == F_RTO_NEW_DATA:
            self.undo.f_rto_room -= end - start

    def on_retransmitted(self, start: int, end: int, now: Instant) -> None:
        """start..end was sent again."""
        self.first_due = False
        self.flight.resend(start, end, now)
        self.undo.on_resent(start, end, now)
        if self.state == RECOVERY:
            self._prr.sent += end - start

    def stop(self) -> None:
        """The connection ended."""
        self.flight.clear(self._tcb.snd_nxt)
