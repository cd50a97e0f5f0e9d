"""How a connection begins and ends: handshake, resets, TIME-WAIT, CLOSED (RFC 9293 §3.5, §3.6, §3.10).

What arrives (:mod:`~tsnetpy.tcp.arrival`), what the application asks for and what timers say
(:mod:`~tsnetpy.tcp.connection`) all change the state by way of this.
"""

from typing import final

from tsnetpy.base.instant import Instant

from .config import TcpConfig
from .emit import Emitter
from .flags import ACK, CLOSED, ERROR, ESTABLISHED, RST, WRITABLE
from .options import SynOptions, encode_timestamps
from .receiver import Receiver
from .segment import Segment
from .sender import Sender
from .seqnum import MASK32
from .states import HANDSHAKE, State
from .tcb import Tcb
from .timers import KEEPALIVE, NEVER, RETRANSMIT, TIME_WAIT


@final
class Lifecycle:
    """The parts of one connection, and its way from SYN to CLOSED.

    Attributes:
        tcb, receiver, emitter, sender: the parts.
        control: resets and probes that are ready to go.
        syn_due: our SYN or SYN-ACK is to be sent (again); syn_tries, syn_sent_at: how often and when it was.
        last_heard: when the peer last sent something acceptable.
        passive: the peer began; until the handshake is done, this is an embryo.
        read_closed: nobody will read any more; closed_by_app: ``close()`` was called.
        soft_error: an ICMP error that explains a later timeout.
    """

    __slots__ = (
        "closed_by_app",
        "control",
        "emitter",
        "last_heard",
        "passive",
        "read_closed",
        "receiver",
        "sender",
        "soft_error",
        "syn_due",
        "syn_sent_at",
        "syn_tries",
        "tcb",
    )

    def __init__(self, config: TcpConfig, iss: int, now: Instant, ts_offset: int) -> None:
        self.tcb = Tcb(config, iss, now, ts_offset)
        self.receiver = Receiver(self.tcb)
        self.emitter = Emitter(self.tcb, self.receiver)
        self.sender = Sender(self.tcb, self.emitter, config)
        self.control: list[Segment] = []
        self.syn_due = False
        self.syn_tries = 0
        self.syn_sent_at: Instant = 0
        self.last_heard: Instant = now
        self.passive = False
        self.read_closed = False
        self.closed_by_app = False
        self.soft_error: str | None = None

    def start_syn(self, state: State) -> None:
        """Send our SYN, or SYN-ACK, from the next output on."""
        tcb = self.tcb
        tcb.state = state
        tcb.snd_nxt = tcb.iss + 1
        self.syn_due = True
        tcb.control_due = True

    def take_syn(self, seq: int, wnd: int, offer: SynOptions, now: Instant) -> None:
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
        self.sender.on_mss()
        self.receiver.first_window()

    def establish(self, now: Instant) -> None:
        """The handshake is complete."""
        tcb = self.tcb
        tcb.state = State.ESTABLISHED
        tcb.ready |= ESTABLISHED | WRITABLE
        tcb.timers.at[RETRANSMIT] = NEVER
        tcb.progress_at = now
        sender = self.sender
        if self.syn_tries == 1:
            sender.rtt.sample(now - self.syn_sent_at)
            sender.rtt.note_least(now - self.syn_sent_at, now)
        else:
            sender.rtt.restart_after_syn()
        sender.start(self.syn_tries > 1, now)
        self.receiver.rtt = sender.rtt.srtt
        self.syn_due = False
        if tcb.config.keepalive_idle:
            tcb.timers.at[KEEPALIVE] = now + tcb.config.keepalive_idle
        if tcb.fin_queued:
            tcb.state = State.FIN_WAIT_1

    def send_reset(self, seq: int, ack: int, flags: int, now: Instant) -> None:
        """Queue a reset (bounded: one flood of bad segments must not become a queue of answers).

        It carries timestamps where they are agreed upon (RFC 7323 §3.2: a reset SHOULD).
        """
        if len(self.control) < 4:
            tcb = self.tcb
            options = b""
            if tcb.ts_on and tcb.state is not State.SYN_SENT:
                options = encode_timestamps(tcb.clock(now), tcb.ts_recent)
            self.control.append(Segment(seq & MASK32, ack & MASK32, flags, 0, options, [], 0, 0))
            tcb.control_due = True

    def enter_time_wait(self, now: Instant) -> None:
        """Both FINs are acknowledged: stay a while for what is still under way."""
        tcb = self.tcb
        tcb.state = State.TIME_WAIT
        self.sender.stop()
        tcb.timers.stop_all()
        tcb.timers.at[TIME_WAIT] = now + tcb.config.time_wait

    def reset_by_peer(self) -> None:
        """An exact RST arrived. Received bytes stay readable; the error comes after them."""
        state = self.tcb.state
        if state is State.SYN_RECEIVED:
            self.drop("refused")
        elif state is State.CLOSING or state is State.LAST_ACK:
            self.drop(None)
        else:
            self.drop("reset")

    def give_up(self, now: Instant) -> None:
        """A timer says that the peer is gone."""
        if self.tcb.state not in HANDSHAKE:
            self.send_reset(self.tcb.snd_nxt, self.tcb.rcv_nxt, RST | ACK, now)
        self.drop(self.soft_error or "timeout")

    def drop(self, error: str | None) -> None:
        """Enter CLOSED; readable bytes stay readable."""
        tcb = self.tcb
        tcb.state = State.CLOSED
        tcb.ready |= CLOSED
        if error is not None:
            tcb.error = error
            tcb.ready |= ERROR
        tcb.timers.stop_all()
        tcb.ack_now = False
        self.sender.stop()
        self.receiver.reassembly.clear()
        if self.closed_by_app:
            self.receiver.queue.clear()
