"""Puts headers on what the engine sends: ACK number, window, timestamps and SACK blocks of this very moment."""

from typing import final

from tsnetpy.base.instant import Instant
from tsnetpy.base.packet import Buffer

from .flags import ACK, SYN
from .options import encode_sack, encode_syn, encode_timestamps
from .receiver import Receiver
from .segment import Segment
from .seqnum import MASK32
from .states import State
from .tcb import Tcb
from .timers import DELAYED_ACK, NEVER


@final
class Emitter:
    """Builds segments for one connection and keeps the books of what an ACK settles."""

    __slots__ = ("_receiver", "_tcb", "_ts_bytes", "_ts_echo", "_ts_now")

    def __init__(self, tcb: Tcb, receiver: Receiver) -> None:
        self._tcb = tcb
        self._receiver = receiver
        self._ts_now = -1
        self._ts_echo = -1
        self._ts_bytes = b""

    def segment(self, seq: int, flags: int, payload: list[Buffer], size: int, now: Instant) -> Segment:
        """Return a segment with ACK and everything that goes with it; any owed ACK is thereby paid."""
        tcb = self._tcb
        options = b""
        if tcb.ts_on:
            clock = tcb.clock(now)
            if clock != self._ts_now or tcb.ts_recent != self._ts_echo:
                self._ts_now = clock
                self._ts_echo = tcb.ts_recent
                self._ts_bytes = encode_timestamps(clock, tcb.ts_recent)
            options = self._ts_bytes
        window = self._receiver.window_field()
        ack = tcb.rcv_nxt
        tcb.last_ack_sent = ack
        tcb.ack_now = False
        tcb.timers.at[DELAYED_ACK] = NEVER
        self._receiver.unacked_packets = 0
        tcb.stats.segments_out += 1
        return Segment(
            seq & MASK32, ack & MASK32, flags | ACK, window, options, payload, size, tcb.mss if size > tcb.mss else 0
        )

    def pure_ack(self, now: Instant) -> Segment:
        """Return an ACK without data, with SACK blocks if there are gaps.

        Blocks go on pure ACKs only: on a data packet they would eat the payload that the MSS leaves.
        """
        tcb = self._tcb
        receiver = self._receiver
        segment = self.segment(tcb.snd_nxt, ACK, [], 0, now)
        if tcb.sack_on and (receiver.reassembly.starts or receiver.dsack_end):
            segment.options += encode_sack(receiver.sack_blocks(3 if tcb.ts_on else 4))
        return segment

    def syn(self, now: Instant) -> Segment:
        """Return our SYN, or SYN-ACK in SYN-RECEIVED. Its window is never scaled (RFC 7323 §2.2)."""
        tcb = self._tcb
        answering = tcb.state is State.SYN_RECEIVED
        options = encode_syn(
            tcb.config.mss,
            tcb.rcv_wscale if tcb.wscale_on else -1,
            tcb.sack_on,
            tcb.ts_on,
            tcb.clock(now) if tcb.ts_on else 0,
            tcb.ts_recent if answering else 0,
        )
        window = self._receiver.first_window()
        tcb.stats.segments_out += 1
        if answering:
            tcb.last_ack_sent = tcb.rcv_nxt
            tcb.ack_now = False
            return Segment(tcb.iss & MASK32, tcb.rcv_nxt & MASK32, SYN | ACK, window, options, [], 0, 0)
        return Segment(tcb.iss & MASK32, 0, SYN, window, options, [], 0, 0)
