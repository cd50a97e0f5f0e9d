"""One TCP connection: the state machine of RFC 9293 §3.10 over a sender and a receiver.

The owner feeds segments and time in, and after every call takes readiness bits, pulls segments until none come, and
re-arms its timer. Addresses, ports and checksums live a layer up.
"""

from dataclasses import replace
from typing import final

from tsnetpy.base.errors import LocalProtocolError
from tsnetpy.base.instant import Duration, Instant
from tsnetpy.base.packet import Buffer

from .arrival import Arrival
from .config import TcpConfig
from .flags import ACK, RST
from .lifecycle import Lifecycle
from .options import SynOptions, parse_syn
from .recovery import OPEN
from .segment import Segment
from .seqnum import MASK32
from .states import CAN_RECEIVE, CAN_TRANSMIT, HANDSHAKE, State
from .stats import TcpInfo
from .timers import (
    CORK,
    DELAYED_ACK,
    KEEPALIVE,
    LINGER,
    NEVER,
    PACING,
    PERSIST,
    REORDER,
    RETRANSMIT,
    TIME_WAIT,
    USER_TIMEOUT,
)
from .timewait import TimeWait


@final
class Connection:
    """A connection from SYN to CLOSED.

    Attributes:
        tcb: the protocol variables, for inspection.
        owner: a slot for the layer above; the engine never looks at it.
    """

    __slots__ = (
        "_arrival",
        "_emitter",
        "_keepalive_sent",
        "_life",
        "_receiver",
        "_sender",
        "owner",
        "tcb",
    )

    def __init__(self, config: TcpConfig, iss: int, now: Instant, ts_offset: int = 0) -> None:
        """Make a connection in CLOSED; use :meth:`connect` or :meth:`accept` instead."""
        life = Lifecycle(config, iss, now, ts_offset)
        self._life = life
        self._arrival = Arrival(life, now)
        self.tcb = life.tcb
        self._receiver = life.receiver
        self._emitter = life.emitter
        self._sender = life.sender
        self.owner: object | None = None
        self._keepalive_sent = 0

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
        conn._life.start_syn(State.SYN_SENT)
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
        conn._life.take_syn(seq, wnd, offer, now)
        conn._life.passive = True
        conn._life.start_syn(State.SYN_RECEIVED)
        return conn

    @classmethod
    def from_cookie(
        cls, config: TcpConfig, iss: int, irs: int, offer: SynOptions, now: Instant, ts_offset: int
    ) -> "Connection":
        """Take up a handshake whose SYN-ACK was a cookie (:mod:`.cookies`); the ACK that brought it back comes next.

        Args:
            config: as the SYN-ACK was made with.
            iss, irs: initial sequence numbers, ours and the peer's.
            offer: what the SYN had offered, as far as the cookie kept it.
            now: the current instant.
            ts_offset: as for :meth:`connect`.
        """
        conn = cls(config, iss & MASK32, now, ts_offset)
        conn._life.take_syn(irs & MASK32, 0, offer, now)
        conn._life.start_syn(State.SYN_RECEIVED)
        conn._life.syn_due = False  # it was sent, only not by this object
        conn.tcb.control_due = False
        return conn

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
        self._arrival.receive_segment(seq, ack, flags, wnd, options, payload, now, packets)

    def accepts_new_syn(self, seq: int, options: Buffer) -> bool:
        """Tell whether a SYN for this connection's pair may start a new one (RFC 9293 §3.6.1, RFC 6191).

        If so, the owner forgets this connection and hands the SYN to the listener.
        """
        return self.tcb.state is State.TIME_WAIT and self.time_wait().accepts_new_syn(seq, options)

    def time_wait(self) -> TimeWait:
        """Return what must stay of this connection, which is in TIME-WAIT, when the owner lets go of it."""
        tcb = self.tcb
        window = (tcb.rcv_adv - tcb.rcv_nxt) >> tcb.rcv_wscale
        return TimeWait(
            tcb.snd_nxt,
            tcb.rcv_nxt,
            min(window, 0xFFFF),
            tcb.ts_on,
            tcb.ts_recent,
            tcb.ts_offset,
            tcb.timers.at[TIME_WAIT],
            tcb.config.time_wait,
        )

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
        taken = self._sender.write(data)
        if taken and tcb.config.user_timeout and tcb.snd_una == tcb.snd_nxt:
            self._sender.expect_fetch(now)
        return taken

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
        if tcb.state is State.CLOSED or self._life.closed_by_app:
            return
        self._life.closed_by_app = True
        if tcb.state is State.SYN_SENT:
            self._life.drop(None)
            return
        if self._receiver.queue.size:
            self.abort(now)
            return
        self._life.read_closed = True
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
            self._life.send_reset(tcb.snd_nxt, tcb.rcv_nxt, RST | ACK, now)
        self._receiver.queue.clear()
        self._life.drop(None)

    def discard(self) -> None:
        """End silently, without a reset: the local address is gone."""
        if self.tcb.state is not State.CLOSED:
            self._life.drop("unreachable")

    # -- options -----------------------------------------------------------------------------------------------------

    def set_nodelay(self, on: bool) -> None:
        """False turns Nagle's algorithm on (RFC 9293 §3.7.4)."""
        if on != self.tcb.config.nodelay:
            self.tcb.config = replace(self.tcb.config, nodelay=on)

    def set_cork(self, on: bool) -> None:
        """Send full packets only, until uncorked; less than one waits 200 ms at most. A FIN lets everything go."""
        self._sender.set_cork(on)

    def set_keepalive(self, idle: Duration, interval: Duration, probes: int, now: Instant) -> None:
        """Probe after *idle* of silence, then *probes* times every *interval*, then give up; *idle* 0 turns it off."""
        tcb = self.tcb
        tcb.config = replace(tcb.config, keepalive_idle=idle, keepalive_interval=interval, keepalive_probes=probes)
        self._keepalive_sent = 0
        running = tcb.state is not State.CLOSED and tcb.state is not State.TIME_WAIT and tcb.state not in HANDSHAKE
        if running:
            tcb.timers.at[KEEPALIVE] = self._life.last_heard + idle if idle else NEVER

    def set_user_timeout(self, duration: Duration) -> None:
        """Give up when nothing was acknowledged for *duration* (RFC 5482, local part); 0 for never."""
        self.tcb.config = replace(self.tcb.config, user_timeout=duration)
        self.tcb.timers.at[USER_TIMEOUT] = NEVER
        if self._sender.retries or self._sender.probes:
            self._sender.arm_user_timeout()

    # -- network conditions ------------------------------------------------------------------------------------------

    def mtu_changed(self, mss: int, lost: bool = True) -> None:
        """Use *mss* (before options) from now on; with *lost*, what is in flight and too big is sent again."""
        tcb = self.tcb
        before = tcb.mss
        tcb.limit_mss(mss)
        if tcb.mss == before or tcb.state in HANDSHAKE:
            return
        self._sender.on_mss()
        if lost and tcb.mss < before and tcb.snd_nxt > tcb.snd_una:
            self._sender.recovery.on_mtu_shrunk()

    def icmp_error(self, hard: bool, reason: str) -> None:
        """Take an ICMP error that the owner matched to this connection (RFC 5927).

        A hard error ends an attempt to connect; an established connection only remembers it. An embryo ends by any:
        nobody here waits for it, and the peer may ask again (RFC 5461 §3.1 leaves the choice).
        """
        state = self.tcb.state
        if state in HANDSHAKE and (hard or (self._life.passive and state is State.SYN_RECEIVED)):
            self._life.drop(reason)
        else:
            self._life.soft_error = reason

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
        if self._life.control:
            out.extend(self._life.control)
            self._life.control = []
        if self._life.syn_due and tcb.state in HANDSHAKE:
            self._life.syn_due = False
            out.append(self._emitter.syn(now))
            self._life.syn_tries += 1
            self._life.syn_sent_at = now
            if tcb.timers.at[RETRANSMIT] == NEVER:
                tcb.timers.at[RETRANSMIT] = now + self._sender.rtt.rto
        if self._sender.probe_due:
            self._sender.probe(out, now)
        if self._sender.tail_due:
            self._sender.probe_tail(out, now)

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
                self._life.give_up(now)
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
        if at[CORK] <= now:
            self._sender.on_cork_timer()
        if at[PERSIST] <= now:
            if self._sender.unanswered > tcb.config.data_retries:
                self._life.give_up(now)
                return
            if not self._sender.on_persist_timer(now):
                self._life.give_up(now)
                return
        if at[KEEPALIVE] <= now:
            self._keepalive(now)
        if at[USER_TIMEOUT] <= now:
            self._life.give_up(now)
        if at[LINGER] <= now:
            self._orphan_check(now)
        if at[TIME_WAIT] <= now:
            self._life.drop(None)

    def _retry_syn(self, now: Instant) -> None:
        tcb = self.tcb
        if self._life.syn_tries > tcb.config.syn_retries:
            self._life.give_up(now)
            return
        self._sender.rtt.back_off()
        tcb.timers.at[RETRANSMIT] = now + self._sender.rtt.rto
        self._life.syn_due = True
        tcb.control_due = True
        tcb.stats.rto_fires += 1

    def _keepalive(self, now: Instant) -> None:
        """RFC 9293 §3.8.4: probe after silence; with data in flight the retransmission timer does the watching."""
        tcb = self.tcb
        config = tcb.config
        due = self._life.last_heard + config.keepalive_idle
        if due > now or tcb.snd_nxt != tcb.snd_una or tcb.state is State.TIME_WAIT:
            self._keepalive_sent = 0
            tcb.timers.at[KEEPALIVE] = max(due, now + config.keepalive_interval)
            return
        if self._keepalive_sent >= config.keepalive_probes:
            self._life.give_up(now)
            return
        self._keepalive_sent += 1
        tcb.timers.at[KEEPALIVE] = now + config.keepalive_interval
        self._life.control.append(self._emitter.segment(tcb.snd_nxt - 1, ACK, [], 0, now))
        tcb.control_due = True

    def _orphan_check(self, now: Instant) -> None:
        """After close(): an orphan lives as long as the peer makes progress."""
        tcb = self.tcb
        due = tcb.progress_at + tcb.config.orphan_timeout
        if due > now:
            tcb.timers.at[LINGER] = due
        else:
            self.abort(now)

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
        recovery = sender.recovery
        flight = recovery.flight
        again = flight.repeated()
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
            recovery=recovery.name,
            sacked_bytes=recovery.reported_bytes,
            lost_bytes=flight.lost.total + (again if recovery.state != OPEN else 0),
            retransmitted_in_flight=again,
            dup_acks=recovery.dup_acks,
            reordering=recovery.rack.reordering,
            reorder_seen=recovery.rack.reorder_seen,
            rcv_mss=self._receiver.rcv_mss,
            probes=sender.unanswered + sender.stalls,
            backoff=sender.rtt.backoff,
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
