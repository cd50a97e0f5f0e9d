"""What an arriving segment does: RFC 9293 §3.10.7 with the defences of RFC 5961 and the PAWS check of RFC 7323."""

from typing import Final, final

from tsnetpy.base.instant import MILLISECOND, SECOND, Instant
from tsnetpy.base.packet import Buffer

from .flags import ACK, FIN, RST, SYN, URG
from .lifecycle import Lifecycle
from .options import TS_HEAD, TS_LAYOUT, TS_LENGTH, SegmentOptions, parse_segment, parse_syn
from .seqnum import HALF32, MASK32, from_wire, not_older
from .states import CAN_RECEIVE, State
from .timers import DELAYED_ACK, TIME_WAIT

_ONLY_ACK: Final = FIN | SYN | RST | ACK | URG
_CHALLENGE_INTERVAL: Final = 500 * MILLISECOND
"""RFC 5961 §7 wants challenge ACKs limited; per connection, so that the limit is no side channel (CVE-2016-5696)."""
_CHALLENGE_DELAY: Final = 10 * MILLISECOND
_PROBE_ANSWER_INTERVAL: Final = 100 * MILLISECOND
_PAWS_IDLE: Final = 24 * 24 * 3600 * SECOND
"""RFC 7323 §5.5: after that much silence the timestamp clock may have gone half round."""


@final
class Arrival:
    """Takes segments in, for one connection."""

    __slots__ = ("_challenge_at", "_life", "_receiver", "_sender", "_tcb")

    def __init__(self, life: Lifecycle, now: Instant) -> None:
        self._life = life
        self._tcb = life.tcb
        self._receiver = life.receiver
        self._sender = life.sender
        self._challenge_at: Instant = now - SECOND

    def receive_segment(
        self,
        seq: int,
        ack: int,
        flags: int,
        wnd: int,
        options: Buffer,
        payload: Buffer,
        now: Instant,
        packets: int = 1,
    ) -> None:
        """Take in one segment of this connection, possibly merged from several packets.

        Args:
            seq, ack: 32-bit wire numbers.
            flags: control bits.
            wnd: the 16-bit window field.
            options: option bytes of the (last) packet, borrowed.
            payload: data, borrowed unless it is ``bytes``.
            now: when it arrived.
            packets: how many packets were merged.
        """
        tcb = self._tcb
        tcb.stats.packets_in += packets
        receiver = self._receiver
        size = len(payload)
        if tcb.state is State.ESTABLISHED and flags & _ONLY_ACK == ACK and (seq - tcb.rcv_nxt) & MASK32 == 0:
            # Header prediction (RFC 7323 appendix, and everybody): in order, nothing unusual in the header.
            una = tcb.snd_una
            delta = (ack - una) & MASK32
            ts_ecr = -1
            if tcb.ts_on:
                if len(options) == TS_LENGTH:
                    head, ts_val, ts_ecr = TS_LAYOUT.unpack_from(options)
                    plain = head == TS_HEAD and (ts_val - tcb.ts_recent) & MASK32 < HALF32
                else:
                    plain = False
            else:
                plain = len(options) == 0
            if (
                plain
                and delta <= tcb.snd_nxt - una
                and size <= tcb.rcv_adv - tcb.rcv_nxt
                and not receiver.reassembly.starts
                and receiver.fin_seq < 0
                and not self._life.read_closed
            ):
                self._life.last_heard = now
                if ts_ecr >= 0:
                    if tcb.rcv_nxt <= tcb.last_ack_sent:
                        tcb.ts_recent = ts_val
                        tcb.ts_recent_at = now
                    if size:
                        receiver.note_echo(ts_ecr, now)
                window = wnd << tcb.snd_wscale
                tcb.snd_wl1 = tcb.rcv_nxt
                sender = self._sender
                if delta:
                    tcb.snd_wl2 = una + delta
                    if window != tcb.snd_wnd:
                        tcb.snd_wnd = window
                        sender.on_window(now)
                    sender.on_advance(una + delta, ts_ecr, now)
                elif window != tcb.snd_wnd:
                    tcb.snd_wl2 = una
                    tcb.snd_wnd = window
                    sender.on_window(now)
                elif sender.probes:
                    sender.on_probe_answered(now)
                elif size == 0:
                    sender.on_repeated_ack(now)
                if size:
                    receiver.in_order(payload, size, packets, now)
                return
        self._slow_path(seq, ack, flags, wnd, options, payload, now, packets)

    def _slow_path(
        self,
        wire_seq: int,
        wire_ack: int,
        flags: int,
        wnd: int,
        options: Buffer,
        payload: Buffer,
        now: Instant,
        packets: int,
    ) -> None:
        """Do RFC 9293 §3.10.7 in its order of checks."""
        tcb = self._tcb
        state = tcb.state
        if state is State.CLOSED:
            return
        if flags & (SYN | FIN) == SYN | FIN or flags & (SYN | RST) == SYN | RST:
            tcb.stats.dropped_malformed += 1
            return
        if state is State.SYN_SENT:
            self._in_syn_sent(wire_seq, wire_ack, flags, wnd, options, now)
            return
        seq = from_wire(wire_seq, tcb.rcv_nxt)
        extra = SegmentOptions() if flags & SYN else parse_segment(options)
        size = len(payload)
        if state is State.TIME_WAIT:
            self._in_time_wait(seq, flags, size, now)
            return
        # PAWS comes first (RFC 7323 §5.3 R1); a reset is exempt.
        if tcb.ts_on and extra.has_ts and not flags & RST and not not_older(extra.ts_val, tcb.ts_recent):
            if now - tcb.ts_recent_at < _PAWS_IDLE:
                tcb.stats.dropped_paws += 1
                self._challenge(now, size > 0)
                return
            tcb.ts_recent = extra.ts_val
        # First, the sequence number.
        length = size + (1 if flags & FIN else 0)
        if not self._acceptable(seq, length):
            if flags & RST:
                tcb.stats.dropped_out_of_window += 1
            elif flags & SYN and state is State.SYN_RECEIVED and seq == tcb.irs:
                self._syn_again(wire_ack, flags, now)
            else:
                self._refuse(seq, length, now)
            return
        # Second, RST (RFC 5961 §3.2).
        if flags & RST:
            if seq == tcb.rcv_nxt:
                self._life.reset_by_peer()
            else:
                self._challenge(now, False)
            return
        # Fourth, SYN (RFC 5961 §4.2).
        if flags & SYN:
            self._challenge(now, False)
            return
        # Fifth, ACK.
        if not flags & ACK:
            tcb.stats.dropped_no_ack += 1
            return
        ack = from_wire(wire_ack, tcb.snd_una)
        if state is State.SYN_RECEIVED:
            if not self._check_handshake_ack(wire_ack, now):
                return
            tcb.snd_wl1 = seq
            tcb.snd_wl2 = ack
            tcb.snd_wnd = wnd << tcb.snd_wscale
            self._sender.on_window(now)
        elif not self._check_ack(ack, size, now):
            return
        self._life.last_heard = now
        if tcb.ts_on and extra.has_ts:
            if seq <= tcb.last_ack_sent:
                tcb.ts_recent = extra.ts_val
                tcb.ts_recent_at = now
            if size:
                self._receiver.note_echo(extra.ts_ecr, now)
        self._take_ack(seq, ack, wnd << tcb.snd_wscale, extra, length, now)
        if tcb.state is State.CLOSED:
            return
        # Seventh, the data; eighth, the FIN.
        if length:
            self._take_data(seq, ack, payload, packets, bool(flags & FIN), now)

    def _check_ack(self, ack: int, size: int, now: Instant) -> bool:
        """Tell whether *ack* is one that the peer can mean; of a segment for which it is not, nothing counts.

        That is stricter than RFC 9293 (RFC 5961 §5.2), and includes TS.Recent.
        """
        tcb = self._tcb
        if tcb.snd_una - tcb.max_snd_wnd <= ack <= tcb.snd_nxt:
            return True
        tcb.stats.dropped_bad_ack += 1
        if ack > tcb.snd_nxt and tcb.state is State.ESTABLISHED:
            self._challenge_later(now)
        else:
            self._challenge(now, size > 0)
        return False

    def _syn_again(self, wire_ack: int, flags: int, now: Instant) -> None:
        """In SYN-RECEIVED: the peer repeats its SYN, or answers ours."""
        if not flags & ACK:
            self._life.syn_due = True  # our SYN-ACK was lost
            self._tcb.control_due = True
        elif self._check_handshake_ack(wire_ack, now):
            self._tcb.ack_now = True  # simultaneous open: this was their SYN-ACK

    def _acceptable(self, seq: int, length: int) -> bool:
        """Return the verdict of RFC 9293 §3.10.7.4, table 6; a FIN at the edge of a closed window passes."""
        tcb = self._tcb
        nxt = tcb.rcv_nxt
        if length == 0:
            return nxt <= seq <= tcb.rcv_adv
        return seq + length > nxt and (seq < tcb.rcv_adv or seq == nxt)

    def _refuse(self, seq: int, length: int, now: Instant) -> None:
        """Answer a segment outside the window with an ACK, unless that could become a loop."""
        tcb = self._tcb
        tcb.stats.dropped_out_of_window += 1
        if length:
            if seq + length <= tcb.rcv_nxt:
                self._receiver.dsack_start = seq
                self._receiver.dsack_end = seq + length
            tcb.ack_now = True
        elif seq == tcb.rcv_nxt - 1:
            # A keep-alive or window probe: whoever sends it waits for the answer.
            if now - self._challenge_at >= _PROBE_ANSWER_INTERVAL:
                self._challenge_at = now
                self._life.last_heard = now
                tcb.ack_now = True
        else:
            self._challenge(now, False)

    def _challenge(self, now: Instant, always: bool) -> None:
        """Send a challenge ACK, rate limited unless it answers data (limiting those would stall a transfer)."""
        if always or now - self._challenge_at >= _CHALLENGE_INTERVAL:
            if not always:
                self._challenge_at = now
            self._tcb.stats.challenge_acks += 1
            self._tcb.ack_now = True

    def _challenge_later(self, now: Instant) -> None:
        """Owe an ACK to a segment that acknowledges what was never sent.

        Two ends that both believe this of each other would answer for ever (RFC 9293 §3.10.7.4 asks for an ACK each
        time, Linux keeps silent). So the ACK waits a little for a segment that it can go with, and is limited.
        """
        tcb = self._tcb
        if now - self._challenge_at >= _CHALLENGE_INTERVAL:
            self._challenge_at = now
            tcb.stats.challenge_acks += 1
            tcb.timers.at[DELAYED_ACK] = min(tcb.timers.at[DELAYED_ACK], now + _CHALLENGE_DELAY)

    def _in_syn_sent(self, seq: int, ack: int, flags: int, wnd: int, options: Buffer, now: Instant) -> None:
        """RFC 9293 §3.10.7.3."""
        tcb = self._tcb
        good_ack = False
        if flags & ACK:
            good_ack = ack == tcb.snd_nxt & MASK32
            if not good_ack:
                tcb.stats.dropped_bad_ack += 1
                if not flags & RST:
                    self._life.send_reset(ack, 0, RST, now)
                    # The peer is in an old incarnation: the reset clears it, so ask again soon.
                    self._life.syn_due = True
                    tcb.control_due = True
                return
        if flags & RST:
            if good_ack:
                self._life.drop("refused")
            return
        if not flags & SYN:
            return
        offer = parse_syn(options)
        if offer is None:
            tcb.stats.dropped_malformed += 1
            return
        self._life.take_syn(seq, wnd, offer, now)
        self._life.last_heard = now
        if good_ack:
            tcb.snd_una = tcb.snd_nxt
            tcb.snd_wl2 = tcb.snd_una
            self._life.establish(now)
            tcb.ack_now = True
        else:
            # Simultaneous open: answer with SYN-ACK and wait for the ACK of our SYN.
            tcb.state = State.SYN_RECEIVED
            self._life.syn_due = True
            tcb.control_due = True

    def _check_handshake_ack(self, wire_ack: int, now: Instant) -> bool:
        """In SYN-RECEIVED: complete the handshake, or answer a wrong ACK with a reset and stay."""
        tcb = self._tcb
        if wire_ack != tcb.snd_nxt & MASK32:
            tcb.stats.dropped_bad_ack += 1
            self._life.send_reset(wire_ack, 0, RST, now)
            return False
        tcb.snd_una = tcb.snd_nxt
        tcb.snd_wl2 = tcb.snd_una
        self._life.establish(now)
        return True

    def _in_time_wait(self, seq: int, flags: int, size: int, now: Instant) -> None:
        """Re-acknowledge a repeated FIN and start over; resets are ignored (RFC 1337).

        A proper pure ACK gets no answer: two ends in TIME-WAIT would keep each other busy for ever.
        """
        if flags & RST:
            return
        if flags & FIN:
            self._tcb.timers.at[TIME_WAIT] = now + self._tcb.config.time_wait
        if size or flags & FIN:
            self._tcb.ack_now = True
        elif flags & SYN or seq != self._tcb.rcv_nxt:
            self._challenge(now, False)

    def _take_ack(self, seq: int, ack: int, window: int, extra: SegmentOptions, length: int, now: Instant) -> None:
        """Process an ACK field within bounds, the window that came with it, and SACK blocks."""
        tcb = self._tcb
        sender = self._sender
        una = tcb.snd_una
        news = 0
        if extra.sacks and tcb.sack_on:
            news = sender.recovery.on_sack(extra.sacks, ack, now)
        changed = False
        if ack >= una and (tcb.snd_wl1 < seq or (tcb.snd_wl1 == seq and tcb.snd_wl2 <= ack)):
            changed = window != tcb.snd_wnd
            tcb.snd_wl1 = seq
            tcb.snd_wl2 = ack
            if changed:
                tcb.snd_wnd = window
                sender.on_window(now)
        if ack > una:
            sender.on_advance(ack, extra.ts_ecr if tcb.ts_on and extra.has_ts else -1, now)
            if news:
                sender.on_sack_news(True, now)
            if tcb.fin_sent and ack == tcb.snd_nxt:
                self._fin_acknowledged(now)
        elif news:
            sender.on_sack_news(False, now)
        elif sender.recovery.dsack:
            sender.on_dsack()
        elif ack == una and sender.probes:
            sender.on_probe_answered(now)
        elif ack == una and length == 0 and not changed:
            sender.on_repeated_ack(now)
        sender.recovery.dsack = False  # it says nothing about the segments that follow

    def _fin_acknowledged(self, now: Instant) -> None:
        tcb = self._tcb
        if tcb.state is State.FIN_WAIT_1:
            tcb.state = State.FIN_WAIT_2
        elif tcb.state is State.CLOSING:
            self._life.enter_time_wait(now)
        elif tcb.state is State.LAST_ACK:
            self._life.drop(None)

    def _take_data(self, seq: int, ack: int, payload: Buffer, packets: int, fin: bool, now: Instant) -> None:
        tcb = self._tcb
        receiver = self._receiver
        if tcb.state not in CAN_RECEIVE:
            tcb.ack_now = True  # after the peer's FIN there is nothing new: a repetition
            return
        if self._life.read_closed and seq + len(payload) > tcb.rcv_nxt and len(payload):
            # RFC 9293 §3.6.1: nobody will ever read this; the peer must learn that it was not delivered. The number is
            # the one the peer waits for, as it says: beyond a gap a reset would only be challenged (RFC 5961 §3.2).
            self._life.send_reset(ack, 0, RST, now)
            self._life.drop(None)
            return
        receiver.arrived(seq, payload, packets, fin, now)
        if not receiver.eof:
            return
        if tcb.state is State.ESTABLISHED:
            tcb.state = State.CLOSE_WAIT
        elif tcb.state is State.FIN_WAIT_1:
            tcb.state = State.CLOSING
        else:
            self._life.enter_time_wait(now)
