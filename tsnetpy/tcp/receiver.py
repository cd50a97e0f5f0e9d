"""The receiving half: reassembly, the advertised window, its growth, and when to acknowledge.

Read RFC 9293 §3.8.6 (window, silly window syndrome) and §3.8.6.3 (delayed ACK) first.
"""

from typing import Final, final

from tsnetpy.base.instant import MILLISECOND, Duration, Instant
from tsnetpy.base.packet import Buffer

from .buffers import ReassemblyQueue, ReceiveQueue
from .flags import EOF, READABLE
from .seqnum import HALF32, MASK32
from .tcb import Tcb
from .timers import DELAYED_ACK, NEVER

_DEFAULT_RTT: Final = 100 * MILLISECOND


@final
class Receiver:
    """Bytes from the peer, in order.

    Attributes:
        queue: readable bytes; reassembly: bytes beyond a gap.
        fin_seq: number of the peer's FIN once seen (perhaps beyond a gap), or -1.
        eof: the FIN was reached.
        limit: receive buffer size, autotuned.
        unacked_packets: packets received since the last ACK went out.
        dsack_start, dsack_end: a duplicate to report in the next SACK (RFC 2883); end 0 for none.
        rtt: smoothed round trip as the receiver sees it, 0 if unknown.
        rcv_mss: the largest packet payload seen, 0 at first.
    """

    __slots__ = (
        "_copied",
        "_echo_seen",
        "_epoch",
        "_quick",
        "_tcb",
        "_waited_for",
        "dsack_end",
        "dsack_start",
        "eof",
        "fin_seq",
        "limit",
        "queue",
        "rcv_mss",
        "reassembly",
        "rtt",
        "unacked_packets",
    )

    def __init__(self, tcb: Tcb) -> None:
        config = tcb.config
        self._tcb = tcb
        self.queue = ReceiveQueue()
        self.reassembly = ReassemblyQueue(config.max_reassembly_ranges)
        self.fin_seq = -1
        self.eof = False
        self.limit = config.rcv_buf
        self.unacked_packets = 0
        self.dsack_start = 0
        self.dsack_end = 0
        self.rtt: Duration = 0
        self.rcv_mss = 0
        self._quick = config.quick_acks
        self._waited_for = False
        self._copied = 0
        self._epoch: Instant = tcb.progress_at
        self._echo_seen = -1

    # -- window ------------------------------------------------------------------------------------------------------

    def first_window(self) -> int:
        """Return the window for a SYN (never scaled) and promise it."""
        window = min(self.limit, 0xFFFF)
        tcb = self._tcb
        if tcb.rcv_adv < tcb.rcv_nxt + window:
            tcb.rcv_adv = tcb.rcv_nxt + window
        return window

    def window_field(self) -> int:
        """Return the 16-bit window to send now, and move the promised edge if that is worth while.

        The edge never moves left (RFC 9293 §3.8.6), and moves right only by steps that are not silly (§3.8.6.2.2).
        """
        tcb = self._tcb
        nxt = tcb.rcv_nxt
        room = self.limit - self.queue.size
        most = 0xFFFF << tcb.rcv_wscale  # what the field can say
        edge = nxt + (room if room < most else most)
        if edge - tcb.rcv_adv >= tcb.mss or edge - tcb.rcv_adv >= self.limit >> 1:
            tcb.rcv_adv = edge
        field = (tcb.rcv_adv - nxt) >> tcb.rcv_wscale
        return 0xFFFF if field > 0xFFFF else field

    def after_read(self, size: int, now: Instant) -> None:
        """The application took *size* bytes: grow the buffer if it keeps up, and tell the peer when that pays."""
        tcb = self._tcb
        self._copied += size
        elapsed = now - self._epoch
        if elapsed >= (self.rtt or _DEFAULT_RTT):
            self._tune(now)
        if self.fin_seq >= 0:
            return  # nothing more will come
        left = tcb.rcv_adv - tcb.rcv_nxt
        room = min(self.limit - self.queue.size, 0xFFFF << tcb.rcv_wscale)
        # At least doubled, and by a packet or half the buffer: otherwise the next ACK says it soon enough.
        if room >= left << 1 and (room - left >= tcb.mss or room - left >= self.limit >> 1):
            tcb.ack_now = True

    def _tune(self, now: Instant) -> None:
        """Dynamic right-sizing: twice what the application took in one round trip, plus slack.

        Growth follows consumption, so a slow application never makes the buffer grow; it also never shrinks.
        """
        config = self._tcb.config
        want = 2 * self._copied + 16 * self._tcb.mss
        if want > self.limit:
            self.limit = max(self.limit, min(want, config.rcv_buf_max))
        self._copied = 0
        self._epoch = now

    def note_echo(self, ts_ecr: int, now: Instant) -> None:
        """Learn the round trip from a timestamp echoed on data: what a pure receiver has instead of ACKs."""
        if ts_ecr == self._echo_seen:
            return
        self._echo_seen = ts_ecr
        elapsed = (self._tcb.clock(now) - ts_ecr) & MASK32
        if elapsed >= HALF32:
            return
        rtt = max(elapsed, 1) * MILLISECOND
        self.rtt = rtt if self.rtt == 0 else self.rtt + ((rtt - self.rtt) >> 3)

    # -- data --------------------------------------------------------------------------------------------------------

    def in_order(self, payload: Buffer, size: int, packets: int, now: Instant) -> None:
        """Take a payload that starts at RCV.NXT, fits the window, and finds no gap waiting: the common case."""
        tcb = self._tcb
        self.queue.append(payload if type(payload) is bytes else bytes(payload))
        nxt = tcb.rcv_nxt + size
        tcb.rcv_nxt = nxt
        tcb.stats.bytes_in += size
        tcb.ready |= READABLE
        if size > self.rcv_mss * packets:
            self.rcv_mss = -(-size // packets)
        packets += self.unacked_packets
        self.unacked_packets = packets
        mss = tcb.mss
        if packets >= 2 or nxt - tcb.last_ack_sent >= mss << 1:
            self._quick -= packets
            tcb.ack_now = True
        elif self._quick > 0 and (size >= mss or self._waited_for):
            self._quick -= 1
            tcb.ack_now = True
        else:
            self._delay_ack(now)

    def on_ack_timer(self) -> None:
        """The delayed ACK found nothing to go with: perhaps the peer waits for it (Nagle), so be quick for a while."""
        self._tcb.ack_now = True
        self._waited_for = True
        self._quick = self._tcb.config.quick_acks

    def _delay_ack(self, now: Instant) -> None:
        """Owe an ACK that may wait for data, or a FIN, to go with."""
        tcb = self._tcb
        if tcb.timers.at[DELAYED_ACK] == NEVER:
            tcb.timers.at[DELAYED_ACK] = now + tcb.config.delayed_ack

    def arrived(self, seq: int, payload: Buffer, packets: int, fin: bool, now: Instant) -> None:
        """Take any payload and FIN that overlap the window; trims, queues, and decides about the ACK."""
        tcb = self._tcb
        size = len(payload)
        fin_at = seq + size
        nxt = tcb.rcv_nxt
        start = max(seq, nxt)
        stop = min(fin_at, tcb.rcv_adv)
        if stop < fin_at:
            tcb.stats.dropped_out_of_window += 1
            tcb.ack_now = True
        if size and seq < nxt:
            self._duplicate(seq, min(fin_at, nxt))
        if stop > start:
            filling = bool(self.reassembly.starts)
            if start == nxt and not filling:
                self.in_order(
                    payload[start - seq : stop - seq] if stop - start < size else payload, stop - start, packets, now
                )
            else:
                self._out_of_order(start, bytes(payload[start - seq : stop - seq]))
        if fin and self.fin_seq < 0 and fin_at <= tcb.rcv_adv and fin_at >= nxt:
            # With the window shut a bare FIN at its edge is taken all the same: it needs no room.
            self.fin_seq = fin_at
            if fin_at != tcb.rcv_nxt:
                tcb.ack_now = True
        if self.fin_seq == tcb.rcv_nxt and not self.eof:
            tcb.rcv_nxt += 1
            if tcb.rcv_adv < tcb.rcv_nxt:
                tcb.rcv_adv = tcb.rcv_nxt
            self.eof = True
            tcb.ready |= EOF
            if tcb.fin_queued:
                tcb.ack_now = True
            else:
                self._delay_ack(now)  # most applications close in their turn, and then one packet does both
            self.reassembly.clear()

    def _out_of_order(self, seq: int, data: bytes) -> None:
        """Queue *data*; deliver what became contiguous. Either way the ACK goes out at once (RFC 5681 §4.2)."""
        tcb = self._tcb
        held = self.reassembly
        tcb.ack_now = True
        if self.fin_seq >= 0 and seq + len(data) > self.fin_seq:
            data = data[: max(0, self.fin_seq - seq)]
            if not data:
                return
        new = held.add(seq, data)
        if new < 0:
            tcb.stats.dropped_reassembly += 1
            return
        if new == 0:
            self._duplicate(seq, seq + len(data))
            return
        if held.starts[0] > tcb.rcv_nxt:
            return
        for part in held.pop_until(tcb.rcv_nxt):
            self.queue.append(part)
            tcb.rcv_nxt += len(part)
            tcb.stats.bytes_in += len(part)
            tcb.ready |= READABLE

    def _duplicate(self, start: int, end: int) -> None:
        """Something came twice: say so at once, and which part (RFC 2883 §4)."""
        self._tcb.ack_now = True
        self.dsack_start = start
        self.dsack_end = end

    def sack_blocks(self, limit: int) -> list[tuple[int, int]]:
        """Return the wire edges for a SACK option: a duplicate first, then the most recent ranges."""
        out: list[tuple[int, int]] = []
        if self.dsack_end:
            out.append((self.dsack_start & MASK32, self.dsack_end & MASK32))
            self.dsack_end = 0
        for left, right in self.reassembly.blocks(limit - len(out)):
            out.append((left & MASK32, right & MASK32))
        return out
