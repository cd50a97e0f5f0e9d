"""The sending half: what the ACKs settle, and which super-segments go out next.

Read RFC 9293 §3.8.6.2.1 (silly window syndrome), RFC 6298 (timeout) and :mod:`tsnetpy.tcp.recovery` first.
"""

from typing import Final, final

from tsnetpy.base.instant import MILLISECOND, Instant

from .buffers import SendBuffer
from .config import TcpConfig
from .congestion.base import CongestionControl
from .congestion.registry import create
from .emit import Emitter
from .flags import ACK, FIN, PSH, WRITABLE
from .pacing import LEAST_RTT, QUANTUM_PACKETS, Pacer
from .recovery import LOSS, OPEN, RECOVERY, Recovery
from .rtt import RttEstimator
from .segment import Segment
from .seqnum import MASK32
from .tcb import Tcb
from .timers import CORK, NEVER, PACING, PERSIST, REORDER, RETRANSMIT, USER_TIMEOUT
from .undo import F_RTO_NEW_DATA, F_RTO_OFF

_NOT_TIMED: Final = -1
_CORK_TIME: Final = 200 * MILLISECOND
_LEAST_PROBE_TIMEOUT: Final = 5 * MILLISECOND
"""Below this a late event loop would look like a lost tail."""
_LEAST_RENEGED_TIMEOUT: Final = 10 * MILLISECOND
_STALL_INTERVAL: Final = 500 * MILLISECOND
"""How often it is looked whether data may go at last that a blocked way out has kept here."""


@final
class Sender:
    """Bytes to the peer.

    Attributes:
        buffer: unacknowledged and unsent bytes.
        limit: send buffer size, autotuned.
        rtt, cc, recovery: their states.
        retries: timeouts in a row for the oldest segment.
        probes: zero-window probes in a row; unanswered: those the peer did not react to.
        stalls: how often something waited for a way out that was blocked.
        probe_due: a probe waits to be sent.
        corked: only full packets leave; override: the next one may be less than full, whatever else says no.
    """

    __slots__ = (
        "_emitter",
        "_fin_alone",
        "_last_send",
        "_pacer",
        "_peak",
        "_peak_until",
        "_probe_at",
        "_probe_end",
        "_probe_resent",
        "_probe_start",
        "_rto_at",
        "_shut",
        "_small_end",
        "_tail_armed",
        "_tail_due",
        "_tcb",
        "_timed_at",
        "_timed_end",
        "_used_until",
        "_want_space",
        "buffer",
        "cc",
        "corked",
        "limit",
        "override",
        "probe_due",
        "probes",
        "recovery",
        "retries",
        "rtt",
        "stalls",
        "unanswered",
    )

    def __init__(self, tcb: Tcb, emitter: Emitter, config: TcpConfig) -> None:
        self._tcb = tcb
        self._emitter = emitter
        self.buffer = SendBuffer(tcb.iss + 1)
        self.limit = config.snd_buf
        self.rtt = RttEstimator(config)
        self.cc: CongestionControl = create(config.congestion, tcb.mss, config.initial_window_packets)
        self.recovery = Recovery(tcb, self.cc, self.rtt)
        self.retries = 0
        self.probes = 0
        self.unanswered = 0
        self.stalls = 0
        self.probe_due = False
        self.override = False
        self.corked = False
        self._timed_end = _NOT_TIMED
        self._timed_at: Instant = 0
        self._last_send: Instant = 0
        self._pacer: Pacer | None = None
        self._peak = 0  # most bytes in flight of late that cwnd did not hold back, until that number is acknowledged
        self._peak_until = tcb.iss
        self._small_end = tcb.iss
        self._used_until = tcb.iss
        self._want_space = False
        self._shut = False
        self._fin_alone = False
        # Tail loss probe (RFC 8985 §7): whether the timer stands for one, whether one is to be sent, and the range of
        # the one under way (end 0 for none).
        self._tail_armed = False
        self._tail_due = False
        self._probe_start = 0
        self._probe_end = 0
        self._probe_at: Instant = 0
        self._probe_resent = False
        self._rto_at: Instant = NEVER

    def on_mss(self) -> None:
        """The packet size was settled or changed."""
        self.cc.set_mss(self._tcb.mss, self._tcb.config.initial_window_packets)
        self.recovery.flight.set_unit(self._tcb.mss)

    def start(self, syn_retransmitted: bool, now: Instant) -> None:
        """The handshake is done: set the initial window for the negotiated packet size (RFC 6928 §2)."""
        self.on_mss()
        self.cc.cwnd = self._tcb.mss if syn_retransmitted else self.cc.initial_window
        self.recovery.point = self._tcb.iss
        self._last_send = now
        self._used_until = self._tcb.snd_una

    # -- application -------------------------------------------------------------------------------------------------

    def space(self) -> int:
        """Return how many bytes :meth:`write` would take now."""
        room = self.limit - (self.buffer.end - self.buffer.start)
        return room if room > 0 else 0

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Queue what fits of *data* and return how much that was."""
        size = len(data)
        room = self.limit - (self.buffer.end - self.buffer.start)
        if size > room:
            self._want_space = True
            if room <= 0:
                return 0
            size = room
        if size:
            self.buffer.append(data, size)
        return size

    # -- acknowledgments ---------------------------------------------------------------------------------------------

    def on_advance(self, ack: int, ts_ecr: int, now: Instant) -> None:
        """*ack* (above SND.UNA, at most SND.NXT) acknowledges new bytes. *ts_ecr* is -1 without timestamps."""
        tcb = self._tcb
        una = tcb.snd_una
        rtt = self.rtt
        timers = tcb.timers.at
        tcb.snd_una = ack
        tcb.progress_at = now
        if self._timed_end != _NOT_TIMED:
            if ack >= self._timed_end:
                rtt.sample(now - self._timed_at)
                self._timed_end = _NOT_TIMED
        elif ts_ecr >= 0 and self.recovery.state != OPEN:
            # Karn's algorithm forbids a sample here, but the echo tells which transmission was meant (RFC 7323 §4).
            elapsed = (tcb.clock(now) - ts_ecr) & MASK32
            if elapsed * MILLISECOND <= rtt.max_rto:
                rtt.sample(elapsed * MILLISECOND)
        if self.retries:
            self.retries = 0
            if ts_ecr >= 0:
                rtt.forget_backoff()
        timers[USER_TIMEOUT] = NEVER
        buffer = self.buffer
        buffer.drop_until(ack if ack < buffer.end else buffer.end)
        recovery = self.recovery
        before = recovery.state
        recovery.on_advance(ack - una, self._in_use(una), ts_ecr, now)
        if self._probe_end and ack >= self._probe_end:
            self._judge_probe(ack, ts_ecr, now)
        if recovery.state == RECOVERY and before == OPEN:
            self._on_recovery()
        if ack == tcb.snd_nxt:
            timers[RETRANSMIT] = NEVER
            timers[REORDER] = NEVER
        else:
            self._rto_at = now + rtt.rto
            if recovery.reneged:
                # The peer dropped what it had reported: no use in waiting long (RFC 2018 §8).
                self._rto_at = now + max(rtt.srtt >> 1, _LEAST_RENEGED_TIMEOUT)
            self._arm(now)
        if self._want_space or self.limit < tcb.config.snd_buf_max:
            self._tune_buffer()

    def _in_use(self, una: int) -> bool:
        """Whether the window may grow by what is acknowledged from *una* on: it was full then (RFC 7661 §4.2).

        In slow start, up to twice what was in flight will do, for the window is to double: pacing and short writes
        would hold it down otherwise. Not where the peer's window was the limit.
        """
        if una < self._used_until:
            return True
        cc = self.cc
        return cc.cwnd < cc.ssthresh and una < self._peak_until and cc.cwnd < self._peak << 1

    def _judge_probe(self, ack: int, ts_ecr: int, now: Instant) -> None:
        """The tail probe's range is acknowledged: find out whether the probe repaired a loss (RFC 8985 §7.4.2)."""
        recovery = self.recovery
        if not self._probe_resent or recovery.dsack or recovery.state != OPEN:
            self._probe_end = 0  # new data arrived, or the original had arrived and only its ACK was late
        elif ack > self._probe_end or recovery.echo_time(ts_ecr, now) >= self._probe_at:
            self._probe_end = 0
            self.cc.on_congestion(self._tcb.snd_nxt - self._tcb.snd_una, now)

    def _tune_buffer(self) -> None:
        """Grow the buffer to two congestion windows, and wake a writer once a third of it is free."""
        tcb = self._tcb
        want = self.cc.cwnd << 1
        if want > self.limit and tcb.config.snd_buf_max > self.limit:
            self.limit = min(want, tcb.config.snd_buf_max)
        if self._want_space and 3 * self.space() >= self.limit:
            self._want_space = False
            tcb.ready |= WRITABLE

    def on_repeated_ack(self, now: Instant) -> None:
        """A pure ACK of SND.UNA arrived that tells nothing new: a duplicate, if anything is in flight."""
        tcb = self._tcb
        if tcb.snd_wnd == 0 and self.retries:
            # The peer took its window back: what is sent again is a probe by now, and whoever answers that is alive.
            # RFC 9293 §3.8.6.1: such a connection MUST stay.
            self.retries = 1
            tcb.progress_at = now
            self.arm_user_timeout()
        if tcb.sack_on:
            if self._probe_end == tcb.snd_una and self._probe_resent:
                self._probe_end = 0  # the tail probe was superfluous; not every peer says so by DSACK (RFC 8985 §7.4.2)
        elif tcb.snd_nxt != tcb.snd_una and self.recovery.on_duplicate(now):
            self._on_recovery()

    def on_sack_news(self, advanced: bool, now: Instant) -> None:
        """An ACK put something new on the scoreboard; *advanced* if it also moved SND.UNA."""
        recovery = self.recovery
        if not advanced and recovery.on_sack_only(self._in_use(self._tcb.snd_una), now):
            self._on_recovery()
        elif self._probe_end and recovery.state == OPEN and recovery.flight.sacked.highest() >= self._probe_end:
            recovery.lose_tail(self._probe_start, now)
            if recovery.state == RECOVERY:
                self._on_recovery()

    def on_dsack(self) -> None:
        """A duplicate was reported and nothing else: if it was the tail probe, no harm was done."""
        if self._probe_end and self._probe_resent:
            self._probe_end = 0

    def on_reorder_timer(self, due: Instant) -> None:
        """What was held back as perhaps reordered was not."""
        if self.recovery.on_reorder_timer(due):
            self._on_recovery()

    def _on_recovery(self) -> None:
        """Fast recovery has just begun."""
        self._tcb.stats.fast_retransmits += 1
        self._timed_end = _NOT_TIMED
        self._probe_end = 0
        self._tail_due = False

    def on_window(self, now: Instant) -> None:
        """The peer's window was updated; an open one ends probing."""
        tcb = self._tcb
        if tcb.snd_wnd > tcb.max_snd_wnd:
            tcb.max_snd_wnd = tcb.snd_wnd
        if tcb.snd_wnd == 0:
            self._shut = True
        elif self._shut:
            self._shut = False
            if self.retries:
                self.recovery.lose_first()  # it was refused, and may go now: no use in waiting for the next timeout
        if tcb.snd_wnd and self.probes:
            self.probes = 0
            self.unanswered = 0
            tcb.progress_at = now
            tcb.timers.at[USER_TIMEOUT] = NEVER
            tcb.timers.at[PERSIST] = NEVER

    def on_probe_answered(self, now: Instant) -> None:
        """The window is still shut but the peer is there: probing may go on without end (RFC 9293 §3.8.6.1)."""
        self.unanswered = 0
        self._tcb.progress_at = now
        self.arm_user_timeout()

    # -- timers ------------------------------------------------------------------------------------------------------

    def _arm(self, now: Instant) -> None:
        """Set the retransmission timer, or the tail probe's where that makes sense (RFC 8985 §7.2).

        An ACK that was lost on its way, or a lost tail, is then noticed after two round trips and not after the
        200 ms of a timeout. It matters more here than elsewhere: peers with receive offload send one ACK for a whole
        window. The ACK of a single packet may rightly be delayed, so its probe waits for that, but never longer than
        the timeout would: where something is sent again at that moment, let it be a probe, which costs no window.
        """
        tcb = self._tcb
        rtt = self.rtt
        at = self._rto_at
        self._tail_armed = False
        if (
            tcb.sack_on
            and rtt.srtt
            and self._probe_end == 0
            and self.recovery.state == OPEN
            and self.recovery.flight.sacked.total == 0
        ):
            wait = rtt.srtt << 1
            if tcb.snd_nxt - tcb.snd_una > tcb.mss:
                wait = max(wait, _LEAST_PROBE_TIMEOUT)
            else:
                wait += rtt.min_var  # TLP.max_ack_delay
            self._tail_armed = True
            if now + wait < at:
                at = now + wait
        tcb.timers.at[RETRANSMIT] = at

    def on_retransmit_timer(self, now: Instant) -> bool:
        """The retransmission timer expired; return False when it did so too often."""
        tcb = self._tcb
        tcb.timers.at[RETRANSMIT] = NEVER
        if tcb.snd_una == tcb.snd_nxt:
            return True
        if self._tail_armed:
            self._tail_armed = False
            if self.recovery.state == OPEN and tcb.snd_wnd:
                self._rto_at = now + self.rtt.rto
                tcb.timers.at[RETRANSMIT] = self._rto_at
                self._tail_due = True
                tcb.control_due = True
                return True
            if now < self._rto_at:
                tcb.timers.at[RETRANSMIT] = self._rto_at
                return True
        self._probe_end = 0
        self._tail_due = False
        self.retries += 1
        tcb.stats.rto_fires += 1
        if self.retries > tcb.config.data_retries:
            return False
        if self.retries == 1:
            self.arm_user_timeout()
        self._timed_end = _NOT_TIMED
        self.recovery.on_timeout(now)
        self.rtt.back_off()
        self._rto_at = now + self.rtt.rto
        tcb.timers.at[RETRANSMIT] = self._rto_at
        return True

    def expect_fetch(self, now: Instant) -> None:
        """Data waits and nothing is in flight: look after it, should the way out be blocked and nobody fetch it."""
        at = self._tcb.timers.at
        if at[PERSIST] == NEVER:
            at[PERSIST] = now + self.rtt.rto
            self.stalls = 0
            self._tcb.progress_at = now

    def on_persist_timer(self, now: Instant) -> bool:
        """Time for a window probe, or to send the little that a small window admits.

        Returns:
            False if what waits has waited for longer than the user timeout because nobody fetched it.
        """
        tcb = self._tcb
        tcb.timers.at[PERSIST] = NEVER
        if tcb.snd_una != tcb.snd_nxt:
            return True
        if tcb.snd_wnd > 0:
            self.override = True  # RFC 9293 §3.8.6.2.1 (4): the override timeout
            timeout = tcb.config.user_timeout
            if timeout and self.buffer.end > tcb.snd_nxt:
                if now - tcb.progress_at >= timeout:
                    return False
                self.stalls += 1
                tcb.timers.at[PERSIST] = now + _STALL_INTERVAL
            return True
        if self.probes == 0:
            self.arm_user_timeout()
        self.probes += 1
        self.unanswered += 1
        self.probe_due = True
        tcb.control_due = True
        return True

    def arm_user_timeout(self) -> None:
        """Start the clock that ends a connection whose peer acknowledges nothing any more."""
        tcb = self._tcb
        if tcb.config.user_timeout:
            tcb.timers.at[USER_TIMEOUT] = tcb.progress_at + tcb.config.user_timeout

    # -- output ------------------------------------------------------------------------------------------------------

    @property
    def has_output(self) -> bool:
        """Whether :meth:`transmit` has anything to look at."""
        tcb = self._tcb
        return self.buffer.end > tcb.snd_nxt or self.recovery.state != OPEN or (tcb.fin_queued and not tcb.fin_sent)

    def transmit(self, out: list[Segment], now: Instant) -> None:
        """Append what may be sent now: retransmissions first, then new data, then the FIN."""
        tcb = self._tcb
        recovery = self.recovery
        first = nxt = tcb.snd_nxt
        buffer = self.buffer
        pending = buffer.end - nxt
        testing = False
        if recovery.state != OPEN:
            undo = recovery.undo
            if undo.f_rto == F_RTO_NEW_DATA and pending > 0 and undo.f_rto_room > 0:
                testing = True
            elif undo.f_rto != F_RTO_NEW_DATA or pending <= 0:
                undo.f_rto = F_RTO_OFF if undo.f_rto == F_RTO_NEW_DATA else undo.f_rto
                self._retransmit(out, now)
            else:
                return  # RFC 5682: the next ACK decides
        if pending <= 0:
            if tcb.fin_queued and not tcb.fin_sent:
                self._send_fin(out, now)
            elif recovery.state == RECOVERY:
                start = recovery.rescue()
                if start >= 0:
                    self._resend(out, start, tcb.snd_nxt, now)
            return
        una = tcb.snd_una
        cc = self.cc
        window_room = una + tcb.snd_wnd - nxt
        if nxt == una and window_room > 0 and now - self._last_send > self.rtt.rto:
            cc.on_idle()
            tcb.progress_at = now  # the silence before does not count against the peer
        if window_room <= 0 and nxt != una:
            return
        congestion_room = recovery.undo.f_rto_room if testing else cc.cwnd - recovery.pipe()
        mss = tcb.mss
        config = tcb.config
        most = mss * max(1, min(config.max_gso_packets, config.max_gso_bytes // mss))
        count = config.max_segments_per_call
        sent_before = len(out)
        pacer = None
        if (
            cc.cwnd > QUANTUM_PACKETS * mss
            and config.pacing
            and recovery.state == OPEN
            and self.rtt.min_rtt > LEAST_RTT
            and self.rtt.srtt  # after a SYN sent twice, or a cookie, SACK may tell the least round trip first
        ):
            pacer = self._pacer
            if pacer is None:
                pacer = self._pacer = Pacer()
            step = pacer.step(cc.cwnd, cc.cwnd < cc.ssthresh, self.rtt.srtt, mss, now)
            if step == 0:
                tcb.timers.at[PACING] = pacer.due
                return
            if step < most:
                most = step
        while pending > 0 and len(out) < count:
            room = window_room if window_room < congestion_room else congestion_room
            if pending <= room:
                size = pending
                if size > most:
                    size = most
                elif (
                    size % mss
                    and (self.corked or (not config.nodelay and self._small_end > una))
                    and not (tcb.fin_queued or self.override)
                ):
                    # Nagle, as Minshall refined it: one packet short of full in flight at a time; with a cork, none.
                    size -= size % mss
            else:
                size = most if room > most else room
                size -= size % mss
                if size <= 0 < window_room <= congestion_room and (
                    self.override or window_room >= tcb.max_snd_wnd >> 1
                ):
                    size = window_room  # less than a packet: half the largest window, or the override timeout passed
            if size <= 0:
                break
            self._send_new(out, nxt, size, now)
            nxt += size
            pending -= size
            window_room -= size
            congestion_room -= size
            if pacer is not None:
                pacer.sent(size)
                if pacer.due > now:
                    if pending > 0 and window_room > 0 and congestion_room >= mss:
                        tcb.timers.at[PACING] = pacer.due
                    break
        if congestion_room < mss:
            self._used_until = nxt
        elif window_room < mss:
            self._peak = 0
        elif nxt - una > self._peak or una >= self._peak_until:
            self._peak = nxt - una
            self._peak_until = nxt
        if tcb.snd_nxt != first:
            recovery.on_sent(first, tcb.snd_nxt, now)
        self.override = False
        if pending == 0 and tcb.fin_queued and not tcb.fin_sent:
            self._send_fin(out, now)
        if self.corked and self._held(pending, window_room, now):
            return
        if tcb.snd_nxt == una:
            self._arm_persist(now)
        else:
            tcb.timers.at[PERSIST] = NEVER
            if sent_before != len(out):
                self._arm(now)

    def set_cork(self, on: bool) -> None:
        """Hold what does not fill a packet back, for 200 ms at most, or let it go."""
        self.corked = on
        self._tcb.timers.at[CORK] = NEVER

    def _held(self, pending: int, window_room: int, now: Instant) -> bool:
        """Time what the cork holds back; tell whether it is all that waits, with nothing in flight."""
        tcb = self._tcb
        timers = tcb.timers.at
        if not 0 < pending < tcb.mss or window_room < pending:
            timers[CORK] = NEVER
            return False
        if timers[CORK] == NEVER:
            timers[CORK] = now + _CORK_TIME
        if tcb.snd_nxt != tcb.snd_una:
            return False
        timers[PERSIST] = NEVER
        return True

    def on_cork_timer(self) -> None:
        """The cork has held something long enough."""
        self._tcb.timers.at[CORK] = NEVER
        if self.buffer.end > self._tcb.snd_nxt:
            self.override = True

    def _send_new(self, out: list[Segment], seq: int, size: int, now: Instant) -> None:
        tcb = self._tcb
        buffer = self.buffer
        end = seq + size
        flags = ACK
        if end == buffer.end:
            flags |= PSH
            if tcb.fin_queued:
                flags |= FIN
        mss = tcb.mss
        if size % mss:
            self._small_end = end
        out.append(self._emitter.segment(seq, flags, buffer.slices(seq, size), size, now))
        tcb.stats.bytes_out += size
        if flags & FIN:
            tcb.fin_sent = True
            end += 1
        tcb.snd_nxt = end
        if self._timed_end == _NOT_TIMED:
            # The first packet is timed and not the last: the peer may answer before the whole train has arrived.
            self._timed_end = seq + (size if size < mss else mss)
            self._timed_at = now
        self._last_send = now
        if tcb.timers.at[RETRANSMIT] == NEVER:
            self._rto_at = now + self.rtt.rto
            tcb.timers.at[RETRANSMIT] = self._rto_at

    def _send_fin(self, out: list[Segment], now: Instant) -> None:
        """Send a FIN of its own. It needs no room in either window (as everybody does it): it carries no data."""
        tcb = self._tcb
        out.append(self._emitter.segment(tcb.snd_nxt, FIN | ACK, [], 0, now))
        tcb.fin_sent = True
        self._fin_alone = True
        if tcb.snd_nxt == tcb.snd_una:
            tcb.progress_at = now
        self.recovery.on_sent(tcb.snd_nxt, tcb.snd_nxt + 1, now)
        tcb.snd_nxt += 1
        if tcb.timers.at[RETRANSMIT] == NEVER:
            self._rto_at = now + self.rtt.rto
        self._arm(now)

    def _retransmit(self, out: list[Segment], now: Instant) -> None:
        """Send holes again as far as pipe allows; the first one regardless (RFC 6675 §5 step 4.3)."""
        tcb = self._tcb
        recovery = self.recovery
        config = tcb.config
        mss = tcb.mss
        most = mss * max(1, min(config.max_gso_packets, config.max_gso_bytes // mss))
        edge = max(tcb.snd_una + tcb.snd_wnd, tcb.snd_una + mss)  # a window shrunk to nothing still gets one packet
        while len(out) < config.max_segments_per_call:
            first = recovery.first_due
            if first:
                if tcb.snd_wnd == 0 and recovery.state != LOSS:
                    return  # no fast retransmission into a closed window; the timeout will see to it
                room = mss
            else:
                room = self.cc.cwnd - recovery.pipe()
                room = min(room - room % mss, most)
                if room <= 0:
                    return
            start, end = recovery.next_hole()
            end = min(end, start + room, edge)
            if end <= start:
                recovery.first_due = False
                return
            self._resend(out, start, end, now)
            if first or start == tcb.snd_una:  # the oldest hole has its time from its latest retransmission
                self._tail_armed = False
                self._rto_at = now + self.rtt.rto
                tcb.timers.at[RETRANSMIT] = self._rto_at

    def _resend(self, out: list[Segment], start: int, end: int, now: Instant) -> None:
        """Retransmit start..end, which may include the FIN."""
        tcb = self._tcb
        buffer = self.buffer
        data_end = min(end, buffer.end)
        size = data_end - start
        flags = ACK
        if tcb.fin_sent and data_end == buffer.end:  # it rides along with the last data at no cost
            flags |= FIN
            end = buffer.end + 1
        payload = buffer.slices(start, size) if size > 0 else []
        if size > 0 and data_end == buffer.end:
            flags |= PSH
        out.append(self._emitter.segment(start, flags, payload, max(size, 0), now))
        self.recovery.on_retransmitted(start, end, now)
        tcb.stats.retransmits += 1
        tcb.stats.bytes_retransmitted += max(size, 0)
        self._timed_end = _NOT_TIMED
        self._last_send = now

    def _arm_persist(self, now: Instant) -> None:
        """Nothing is in flight and something waits: without a timer a lost window update would be the end."""
        tcb = self._tcb
        if tcb.timers.at[PERSIST] != NEVER:
            return
        wait = min(self.rtt.rto << min(self.probes, 12), tcb.config.persist_max)
        tcb.timers.at[PERSIST] = now + wait

    @property
    def tail_due(self) -> bool:
        """Whether a tail loss probe waits to be sent."""
        return self._tail_due

    def probe_tail(self, out: list[Segment], now: Instant) -> None:
        """Send a tail loss probe: a packet of new data if there is any and the peer has room, else the last one again.

        cwnd is not asked (RFC 8985 §7.3): it is one packet per stalled window.
        """
        tcb = self._tcb
        self._tail_due = False
        una = tcb.snd_una
        nxt = tcb.snd_nxt
        if nxt == una or self.recovery.state != OPEN:
            return
        tcb.stats.tail_probes += 1
        size = min(self.buffer.end - nxt, tcb.mss)
        self._probe_resent = not 0 < size <= una + tcb.snd_wnd - nxt
        if self._probe_resent:
            sent_end = min(nxt, self.buffer.end)
            # What was sent last, be it a FIN alone.
            self._probe_start = max(una, nxt - 1 if self._fin_alone else sent_end - tcb.mss)
            self._resend(out, self._probe_start, nxt, now)
            self._probe_at = now
        else:
            self._probe_start = nxt
            self._send_new(out, nxt, size, now)
            self.recovery.on_sent(nxt, tcb.snd_nxt, now)
        self._probe_end = tcb.snd_nxt

    def probe(self, out: list[Segment], now: Instant) -> None:
        """Send the byte before SND.UNA's number, empty: old news to the peer, which must answer with its window."""
        tcb = self._tcb
        self.probe_due = False
        tcb.stats.zero_window_probes += 1
        out.append(self._emitter.segment(tcb.snd_una - 1, ACK, [], 0, now))
        self._arm_persist(now)

    def stop(self) -> None:
        """The connection ended, and with it all timers: nothing is sent any more."""
        self.buffer.clear()
        self.recovery.stop()
        self.probe_due = False
        self._tail_due = False
