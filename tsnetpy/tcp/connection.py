"""One TCP connection: the state machine of RFC 9293 §3.10 over a sender and a receiver.

The owner feeds segments and time in, and after every call takes readiness bits, pulls segments until none come, and
re-arms its timer. Addresses, ports and checksums live a layer up.
"""

from typing import Final, final

from tsnetpy.base.errors import LocalProtocolError
from tsnetpy.base.instant import MILLISECOND, SECOND, Instant
from tsnetpy.base.packet import Buffer

from .config import TcpConfig
from .emit import Emitter
from .flags import ACK, CLOSED, ERROR, ESTABLISHED, FIN, RST, SYN, URG, WRITABLE
from .options import TS_HEAD, TS_LAYOUT, TS_LENGTH, SegmentOptions, SynOptions, parse_segment, parse_syn
from .receiver import Receiver
from .recovery import NAMES
from .segment import Segment
from .sender import Sender
from .seqnum import HALF32, MASK32, from_wire, not_older
from .states import CAN_RECEIVE, CAN_TRANSMIT, HANDSHAKE, State
from .stats import TcpInfo
from .tcb import Tcb
from .timers import DELAYED_ACK, KEEPALIVE, LINGER, NEVER, PACING, PERSIST, REORDER, RETRANSMIT, TIME_WAIT, USER_TIMEOUT

_ONLY_ACK: Final = FIN | SYN | RST | ACK | URG
_CHALLENGE_INTERVAL: Final = 500 * MILLISECOND
"""RFC 5961 §7 wants challenge ACKs limited; per connection, so that the limit is no side channel (CVE-2016-5696)."""
_PROBE_ANSWER_INTERVAL: Final = 100 * MILLISECOND
_PAWS_IDLE: Final = 24 * 24 * 3600 * SECOND
"""RFC 7323 §5.5: after that much silence the timestamp clock may have gone half round."""


@final
class Connection:
    """A connection from SYN to CLOSED.

    Attributes:
        tcb: the protocol variables, for inspection.
        owner: a slot for the layer above; the engine never looks at it.
    """

    __slots__ = (
        "_challenge_at",
        "_closed_by_app",
        "_control",
        "_emitter",
        "_keepalive_sent",
        "_last_heard",
        "_read_closed",
        "_receiver",
        "_sender",
        "_soft_error",
        "_syn_due",
        "_syn_sent_at",
        "_syn_tries",
        "owner",
        "tcb",
    )

    def __init__(self, config: TcpConfig, iss: int, now: Instant, ts_offset: int = 0) -> None:
        """Make a connection in CLOSED; use :meth:`connect` or :meth:`accept` instead."""
        self.tcb = Tcb(config, iss, now, ts_offset)
        self._receiver = Receiver(self.tcb)
        self._emitter = Emitter(self.tcb, self._receiver)
        self._sender = Sender(self.tcb, self._emitter, config)
        self.owner: object | None = None
        self._control: list[Segment] = []
        self._syn_due = False
        self._syn_tries = 0
        self._syn_sent_at: Instant = 0
        self._challenge_at: Instant = now - SECOND
        self._last_heard: Instant = now
        self._keepalive_sent = 0
        self._read_closed = False
        self._closed_by_app = False
        self._soft_error: str | None = None

    # -- opening -----------------------------------------------------------------------------------------------------

    @classmethod
    def connect(cls, config: TcpConfig, iss: int, now: Instant, ts_offset: int = 0) -> "Connection":
        """Open actively; the SYN is in the next :meth:`segments_to_send`.

        Args:
            config: limits and features.
            iss: initial send sequence number, 32 bits, unpredictable (RFC 9293 §3.4.1).
            now: the current instant.
            ts_offset: added to the timestamp clock, per address pair (RFC 7323 §5.4); 32 bits.
        """
        conn = cls(config, iss & MASK32, now, ts_offset)
        conn._start_syn(State.SYN_SENT)
        return conn

    @classmethod
    def accept(
        cls, config: TcpConfig, iss: int, seq: int, wnd: int, options: Buffer, now: Instant, ts_offset: int = 0
    ) -> "Connection | None":
        """Open passively from a received SYN; ``None`` if its options are malformed."""
        offer = parse_syn(options)
        if offer is None:
            return None
        conn = cls(config, iss & MASK32, now, ts_offset)
        conn._take_syn(seq, wnd, offer, now)
        conn._start_syn(State.SYN_RECEIVED)
        return conn

    def _start_syn(self, state: State) -> None:
        tcb = self.tcb
        tcb.state = state
        tcb.snd_nxt = tcb.iss + 1
        self._syn_due = True
        tcb.control_due = True

    def _take_syn(self, seq: int, wnd: int, offer: SynOptions, now: Instant) -> None:
        """Learn the peer's sequence number, window and options from its SYN or SYN-ACK."""
        tcb = self.tcb
        tcb.irs = seq
        tcb.rcv_nxt = seq + 1
        tcb.rcv_adv = seq + 1
        tcb.last_ack_sent = seq + 1
        tcb.negotiate(offer, now)
        tcb.snd_wnd = wnd  # never scaled on a SYN
        tcb.max_snd_wnd = wnd
        tcb.snd_wl1 = seq
        self._sender.on_mss()
        self._receiver.first_window()

    def _establish(self, now: Instant) -> None:
        tcb = self.tcb
        tcb.state = State.ESTABLISHED
        tcb.ready |= ESTABLISHED | WRITABLE
        tcb.timers.at[RETRANSMIT] = NEVER
        tcb.progress_at = now
        sender = self._sender
        if self._syn_tries == 1:
            sender.rtt.sample(now - self._syn_sent_at)
        else:
            sender.rtt.restart_after_syn()
        sender.start(self._syn_tries > 1, now)
        self._receiver.rtt = sender.rtt.srtt
        self._syn_due = False
        if tcb.config.keepalive_idle:
            tcb.timers.at[KEEPALIVE] = now + tcb.config.keepalive_idle
        if tcb.fin_queued:
            tcb.state = State.FIN_WAIT_1

    # -- input -------------------------------------------------------------------------------------------------------

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
        tcb = self.tcb
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
                and not self._read_closed
            ):
                self._last_heard = now
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
                elif size == 0 and tcb.snd_nxt != una and not tcb.sack_on:
                    sender.on_duplicate(now)
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
        tcb = self.tcb
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
                return
            if flags & SYN and state is State.SYN_RECEIVED and seq == tcb.irs:
                if not flags & ACK:
                    self._syn_due = True  # our SYN-ACK was lost
                    tcb.control_due = True
                elif self._check_handshake_ack(wire_ack, now):
                    tcb.ack_now = True  # simultaneous open: this was their SYN-ACK
                return
            self._refuse(seq, length, now)
            return
        # Second, RST (RFC 5961 §3.2).
        if flags & RST:
            if seq == tcb.rcv_nxt:
                self._reset_by_peer()
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
        elif ack > tcb.snd_nxt or ack < tcb.snd_una - tcb.max_snd_wnd:
            # RFC 5961 §5.2. Nothing of such a segment may change state, TS.Recent included.
            tcb.stats.dropped_bad_ack += 1
            self._challenge(now, size > 0)
            return
        self._last_heard = now
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
            self._take_data(seq, payload, packets, bool(flags & FIN), now)

    def _acceptable(self, seq: int, length: int) -> bool:
        """Return the verdict of RFC 9293 §3.10.7.4, table 6; a FIN at the edge of a closed window passes."""
        tcb = self.tcb
        nxt = tcb.rcv_nxt
        if length == 0:
            return nxt <= seq <= tcb.rcv_adv
        return seq + length > nxt and (seq < tcb.rcv_adv or seq == nxt)

    def _refuse(self, seq: int, length: int, now: Instant) -> None:
        """Answer a segment outside the window with an ACK, unless that could become a loop."""
        tcb = self.tcb
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
                self._last_heard = now
                tcb.ack_now = True
        else:
            self._challenge(now, False)

    def _challenge(self, now: Instant, always: bool) -> None:
        """Send a challenge ACK, rate limited unless it answers data (limiting those would stall a transfer)."""
        if always or now - self._challenge_at >= _CHALLENGE_INTERVAL:
            if not always:
                self._challenge_at = now
            self.tcb.stats.challenge_acks += 1
            self.tcb.ack_now = True

    def _in_syn_sent(self, seq: int, ack: int, flags: int, wnd: int, options: Buffer, now: Instant) -> None:
        """RFC 9293 §3.10.7.3."""
        tcb = self.tcb
        good_ack = False
        if flags & ACK:
            good_ack = ack == tcb.snd_nxt & MASK32
            if not good_ack:
                tcb.stats.dropped_bad_ack += 1
                if not flags & RST:
                    self._send_reset(ack, 0, RST)
                    self._syn_due = True  # the peer is in an old incarnation: the reset clears it, so ask again soon
                    tcb.control_due = True
                return
        if flags & RST:
            if good_ack:
                self._drop("refused")
            return
        if not flags & SYN:
            return
        offer = parse_syn(options)
        if offer is None:
            tcb.stats.dropped_malformed += 1
            return
        self._take_syn(seq, wnd, offer, now)
        self._last_heard = now
        if good_ack:
            tcb.snd_una = tcb.snd_nxt
            tcb.snd_wl2 = tcb.snd_una
            self._establish(now)
            tcb.ack_now = True
        else:
            # Simultaneous open: answer with SYN-ACK and wait for the ACK of our SYN.
            tcb.state = State.SYN_RECEIVED
            self._syn_due = True
            tcb.control_due = True

    def _check_handshake_ack(self, wire_ack: int, now: Instant) -> bool:
        """In SYN-RECEIVED: complete the handshake, or answer a wrong ACK with a reset and stay."""
        tcb = self.tcb
        if wire_ack != tcb.snd_nxt & MASK32:
            tcb.stats.dropped_bad_ack += 1
            self._send_reset(wire_ack, 0, RST)
            return False
        tcb.snd_una = tcb.snd_nxt
        tcb.snd_wl2 = tcb.snd_una
        self._establish(now)
        return True

    def _in_time_wait(self, seq: int, flags: int, size: int, now: Instant) -> None:
        """Re-acknowledge a repeated FIN and start over; resets are ignored (RFC 1337).

        A proper pure ACK gets no answer: two ends in TIME-WAIT would keep each other busy for ever.
        """
        if flags & RST:
            return
        if flags & FIN:
            self.tcb.timers.at[TIME_WAIT] = now + self.tcb.config.time_wait
        if size or flags & FIN:
            self.tcb.ack_now = True
        elif flags & SYN or seq != self.tcb.rcv_nxt:
            self._challenge(now, False)

    def accepts_new_syn(self, seq: int, options: Buffer) -> bool:
        """Tell whether a SYN for this connection's pair may start a new one (RFC 9293 §3.6.1, RFC 6191).

        If so, the owner forgets this connection and hands the SYN to the listener.
        """
        tcb = self.tcb
        if tcb.state is not State.TIME_WAIT:
            return False
        offer = parse_syn(options)
        if offer is None:
            return False
        if tcb.ts_on and offer.has_ts and offer.ts_val != tcb.ts_recent:
            return not_older(offer.ts_val, tcb.ts_recent)
        return from_wire(seq, tcb.rcv_nxt) > tcb.rcv_nxt

    def _take_ack(self, seq: int, ack: int, window: int, extra: SegmentOptions, length: int, now: Instant) -> None:
        """Process an ACK field within bounds, the window that came with it, and SACK blocks."""
        tcb = self.tcb
        sender = self._sender
        una = tcb.snd_una
        news = 0
        if extra.sacks and tcb.sack_on and tcb.snd_nxt > una:
            news = sender.recovery.on_sack(extra.sacks, ack, extra.ts_ecr if tcb.ts_on and extra.has_ts else -1, now)
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
        elif sender.recovery.dsack and extra.sacks:
            sender.on_dsack()
        elif ack == una and length == 0 and not changed and tcb.snd_nxt > una and not tcb.sack_on:
            sender.on_duplicate(now)
        elif ack == una and sender.probes:
            sender.on_probe_answered(now)

    def _fin_acknowledged(self, now: Instant) -> None:
        tcb = self.tcb
        if tcb.state is State.FIN_WAIT_1:
            tcb.state = State.FIN_WAIT_2
        elif tcb.state is State.CLOSING:
            self._enter_time_wait(now)
        elif tcb.state is State.LAST_ACK:
            self._drop(None)

    def _take_data(self, seq: int, payload: Buffer, packets: int, fin: bool, now: Instant) -> None:
        tcb = self.tcb
        receiver = self._receiver
        if tcb.state not in CAN_RECEIVE:
            tcb.ack_now = True  # after the peer's FIN there is nothing new: a repetition
            return
        if self._read_closed and seq + len(payload) > tcb.rcv_nxt and len(payload):
            # RFC 9293 §3.6.1: nobody will ever read this; the peer must learn that it was not delivered.
            self._send_reset(tcb.snd_nxt, tcb.rcv_nxt, RST | ACK)
            self._drop(None)
            return
        receiver.arrived(seq, payload, packets, fin, now)
        if not receiver.eof:
            return
        if tcb.state is State.ESTABLISHED:
            tcb.state = State.CLOSE_WAIT
        elif tcb.state is State.FIN_WAIT_1:
            tcb.state = State.CLOSING
        else:
            self._enter_time_wait(now)

    # -- application -------------------------------------------------------------------------------------------------

    def send(self, data: Buffer, now: Instant) -> int:
        """Queue *data*; return how many bytes were taken, 0 when the buffer is full.

        Large ``bytes`` (and views of ``bytes``) are kept by reference, everything else is copied. After a short count
        the WRITABLE bit tells when to go on. Data queued before ESTABLISHED goes out afterwards.

        Raises:
            LocalProtocolError: after :meth:`shutdown`, or when the connection is closed.
        """
        tcb = self.tcb
        if tcb.fin_queued:
            raise LocalProtocolError("send after shutdown")
        if tcb.state is State.CLOSED or tcb.state is State.TIME_WAIT:
            raise LocalProtocolError(f"send on a closed connection ({tcb.error or 'closed'})")
        if isinstance(data, memoryview) and (data.itemsize != 1 or data.ndim != 1):
            data = data.cast("B")
        return self._sender.write(data)

    def read(self, max_bytes: int, now: Instant) -> bytes:
        """Return up to *max_bytes* of what was received, ``b""`` when nothing waits (see :attr:`eof_received`)."""
        receiver = self._receiver
        data = receiver.queue.read(max_bytes)
        if data and self.tcb.state in CAN_RECEIVE:
            receiver.after_read(len(data), now)
        return data

    def shutdown(self, now: Instant) -> None:
        """Finish sending: a FIN follows the queued data. Reading goes on. A second call does nothing."""
        tcb = self.tcb
        if tcb.fin_queued or tcb.state is State.CLOSED:
            return
        if tcb.state is State.SYN_SENT:
            tcb.fin_queued = True
            return
        tcb.fin_queued = True
        if tcb.state is State.ESTABLISHED:
            tcb.state = State.FIN_WAIT_1
        elif tcb.state is State.CLOSE_WAIT:
            tcb.state = State.LAST_ACK

    def close(self, now: Instant) -> None:
        """Close both directions: FIN after the queued data, or RST if received bytes were never read (RFC 2525 §2.17).

        The connection lives on until the peer agrees or ``config.orphan_timeout`` passes without progress.
        """
        tcb = self.tcb
        if tcb.state is State.CLOSED or self._closed_by_app:
            return
        self._closed_by_app = True
        if tcb.state is State.SYN_SENT:
            self._drop(None)
            return
        if self._receiver.queue.size:
            self.abort(now)
            return
        self._read_closed = True
        self.shutdown(now)
        if tcb.state is not State.TIME_WAIT:
            tcb.progress_at = now
            tcb.timers.at[LINGER] = now + tcb.config.orphan_timeout

    def abort(self, now: Instant) -> None:
        """Reset the connection: what is queued is lost. In SYN-SENT and TIME-WAIT nothing is sent."""
        tcb = self.tcb
        if tcb.state is State.CLOSED:
            return
        if tcb.state is not State.SYN_SENT and tcb.state is not State.TIME_WAIT:
            self._send_reset(tcb.snd_nxt, tcb.rcv_nxt, RST | ACK)
        self._receiver.queue.clear()
        self._drop(None)

    def discard(self) -> None:
        """End silently, without a reset: the local address is gone."""
        if self.tcb.state is not State.CLOSED:
            self._drop("unreachable")

    # -- network conditions ------------------------------------------------------------------------------------------

    def mtu_changed(self, mss: int) -> None:
        """Use *mss* (before options) from now on; what is in flight and too big is sent again in smaller packets."""
        tcb = self.tcb
        before = tcb.mss
        tcb.limit_mss(mss)
        if tcb.mss == before or tcb.state in HANDSHAKE:
            return
        self._sender.on_mss()
        if tcb.mss < before and tcb.snd_nxt > tcb.snd_una:
            self._sender.recovery.on_mtu_shrunk()

    def icmp_error(self, hard: bool, reason: str) -> None:
        """Take an ICMP error that the owner matched to this connection (RFC 5927).

        A hard error ends an attempt to connect; an established connection only remembers it.
        """
        if hard and self.tcb.state in HANDSHAKE:
            self._drop(reason)
        else:
            self._soft_error = reason

    # -- output ------------------------------------------------------------------------------------------------------

    @property
    def has_output(self) -> bool:
        """False if :meth:`segments_to_send` would return nothing; True is a maybe. Cheap, for the common pure ACK."""
        tcb = self.tcb
        return tcb.ack_now or tcb.control_due or self._sender.has_output

    def segments_to_send(self, now: Instant) -> list[Segment]:
        """Return what is to go out now; nothing is left when it is shorter than ``config.max_segments_per_call``."""
        tcb = self.tcb
        out: list[Segment] = []
        if tcb.control_due:
            self._control_out(out, now)
        state = tcb.state
        if state in CAN_TRANSMIT:
            if tcb.ack_now and tcb.sack_on and (self._receiver.reassembly.starts or self._receiver.dsack_end):
                out.append(self._emitter.pure_ack(now))
            self._sender.transmit(out, now)
        if tcb.ack_now:
            if state is State.CLOSED or state in HANDSHAKE:
                tcb.ack_now = False
            else:
                out.append(self._emitter.pure_ack(now))
        return out

    def _control_out(self, out: list[Segment], now: Instant) -> None:
        """Send what is neither data nor a plain ACK."""
        tcb = self.tcb
        tcb.control_due = False
        if self._control:
            out.extend(self._control)
            self._control = []
        if self._syn_due and tcb.state in HANDSHAKE:
            self._syn_due = False
            out.append(self._emitter.syn(now))
            self._syn_tries += 1
            self._syn_sent_at = now
            if tcb.timers.at[RETRANSMIT] == NEVER:
                tcb.timers.at[RETRANSMIT] = now + self._sender.rtt.rto
        if self._sender.probe_due:
            self._sender.probe(out, now)
        if self._sender.tail_due:
            self._sender.probe_tail(out, now)

    def _send_reset(self, seq: int, ack: int, flags: int) -> None:
        """Queue a reset (bounded: one flood of bad segments must not become a queue of answers)."""
        if len(self._control) < 4:
            tcb = self.tcb
            self._control.append(Segment(seq & MASK32, ack & MASK32, flags, 0, b"", [], 0, 0))
            tcb.control_due = True

    # -- time --------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> Instant | None:
        """Return when :meth:`handle_deadline` is due, or ``None``."""
        return self.tcb.timers.earliest()

    def handle_deadline(self, now: Instant) -> None:
        """Run the timers that are due at *now*; then pull :meth:`segments_to_send`."""
        tcb = self.tcb
        at = tcb.timers.at
        if at[RETRANSMIT] <= now:
            if tcb.state in HANDSHAKE:
                self._retry_syn(now)
            elif not self._sender.on_retransmit_timer(now):
                self._give_up()
        if tcb.state is State.CLOSED:
            return
        if at[REORDER] <= now:
            due = at[REORDER]
            at[REORDER] = NEVER
            self._sender.on_reorder_timer(due)
        if at[PACING] <= now:
            at[PACING] = NEVER
        if at[DELAYED_ACK] <= now:
            at[DELAYED_ACK] = NEVER
            self._receiver.on_ack_timer()
        if at[PERSIST] <= now:
            if self._sender.unanswered > tcb.config.data_retries:
                self._give_up()
                return
            self._sender.on_persist_timer(now)
        if at[KEEPALIVE] <= now:
            self._keepalive(now)
        if at[USER_TIMEOUT] <= now:
            self._give_up()
        if at[LINGER] <= now:
            self._orphan_check(now)
        if at[TIME_WAIT] <= now:
            self._drop(None)

    def _retry_syn(self, now: Instant) -> None:
        tcb = self.tcb
        if self._syn_tries > tcb.config.syn_retries:
            self._give_up()
            return
        self._sender.rtt.back_off()
        tcb.timers.at[RETRANSMIT] = now + self._sender.rtt.rto
        self._syn_due = True
        tcb.control_due = True
        tcb.stats.rto_fires += 1

    def _keepalive(self, now: Instant) -> None:
        """RFC 9293 §3.8.4: probe after silence; with data in flight the retransmission timer does the watching."""
        tcb = self.tcb
        config = tcb.config
        due = self._last_heard + config.keepalive_idle
        if due > now or tcb.snd_nxt != tcb.snd_una or tcb.state is State.TIME_WAIT:
            self._keepalive_sent = 0
            tcb.timers.at[KEEPALIVE] = max(due, now + config.keepalive_interval)
            return
        if self._keepalive_sent >= config.keepalive_probes:
            self._give_up()
            return
        self._keepalive_sent += 1
        tcb.timers.at[KEEPALIVE] = now + config.keepalive_interval
        self._control.append(self._emitter.segment(tcb.snd_nxt - 1, ACK, [], 0, now))
        tcb.control_due = True

    def _orphan_check(self, now: Instant) -> None:
        """After close(): an orphan lives as long as the peer makes progress."""
        tcb = self.tcb
        due = tcb.progress_at + tcb.config.orphan_timeout
        if due > now:
            tcb.timers.at[LINGER] = due
        else:
            self.abort(now)

    # -- the end -----------------------------------------------------------------------------------------------------

    def _enter_time_wait(self, now: Instant) -> None:
        tcb = self.tcb
        tcb.state = State.TIME_WAIT
        self._sender.stop()
        tcb.timers.stop_all()
        tcb.timers.at[TIME_WAIT] = now + tcb.config.time_wait

    def _reset_by_peer(self) -> None:
        """An exact RST arrived. Received bytes stay readable; the error comes after them."""
        state = self.tcb.state
        if state is State.SYN_RECEIVED:
            self._drop("refused")
        elif state is State.CLOSING or state is State.LAST_ACK:
            self._drop(None)
        else:
            self._drop("reset")

    def _give_up(self) -> None:
        """A timer says that the peer is gone."""
        if self.tcb.state not in HANDSHAKE:
            self._send_reset(self.tcb.snd_nxt, self.tcb.rcv_nxt, RST | ACK)
        self._drop(self._soft_error or "timeout")

    def _drop(self, error: str | None) -> None:
        """Enter CLOSED; readable bytes stay readable."""
        tcb = self.tcb
        tcb.state = State.CLOSED
        tcb.ready |= CLOSED
        if error is not None:
            tcb.error = error
            tcb.ready |= ERROR
        tcb.timers.stop_all()
        tcb.ack_now = False
        self._sender.stop()
        self._receiver.reassembly.clear()
        if self._closed_by_app:
            self._receiver.queue.clear()

    # -- looking in --------------------------------------------------------------------------------------------------

    def take_ready(self) -> int:
        """Return the readiness bits (:mod:`tsnetpy.tcp.flags`) that came up since the last call."""
        ready = self.tcb.ready
        self.tcb.ready = 0
        return ready

    @property
    def state(self) -> State:
        """The state by RFC 9293."""
        return self.tcb.state

    @property
    def error(self) -> str | None:
        """Why it ended: "refused", "reset", "timeout", "unreachable", or the reason of an ICMP error."""
        return self.tcb.error

    @property
    def readable_bytes(self) -> int:
        """Bytes that :meth:`read` could return now."""
        return self._receiver.queue.size

    @property
    def send_space(self) -> int:
        """Bytes that :meth:`send` would take now."""
        return self._sender.space()

    @property
    def unsent_bytes(self) -> int:
        """Bytes queued and not yet acknowledged; 0 once the peer has everything."""
        buffer = self._sender.buffer
        return buffer.end - buffer.start

    @property
    def eof_received(self) -> bool:
        """Whether the peer's FIN was reached; buffered bytes may still wait."""
        return self._receiver.eof

    def info(self) -> TcpInfo:
        """Return a snapshot of the inner state."""
        tcb = self.tcb
        sender = self._sender
        stats = tcb.stats
        return TcpInfo(
            state=tcb.state.value,
            mss=tcb.mss,
            srtt=sender.rtt.srtt,
            rttvar=sender.rtt.rttvar,
            min_rtt=sender.rtt.min_rtt,
            rto=sender.rtt.rto,
            cwnd=sender.cc.cwnd,
            ssthresh=sender.cc.ssthresh,
            bytes_in_flight=tcb.snd_nxt - tcb.snd_una,
            bytes_unsent=max(0, sender.buffer.end - tcb.snd_nxt),
            snd_wnd=tcb.snd_wnd,
            rcv_wnd=tcb.rcv_adv - tcb.rcv_nxt,
            snd_buf=sender.limit,
            rcv_buf=self._receiver.limit,
            recovery=NAMES[sender.recovery.state],
            retransmits=stats.retransmits,
            rto_fires=stats.rto_fires,
            fast_retransmits=stats.fast_retransmits,
            tail_probes=stats.tail_probes,
            undos=stats.undos,
            dsacks=stats.dsacks_in,
            bytes_in=stats.bytes_in,
            bytes_out=stats.bytes_out,
            bytes_retransmitted=stats.bytes_retransmitted,
            sack=tcb.sack_on,
            timestamps=tcb.ts_on,
            window_scaling=tcb.wscale_on,
        )
