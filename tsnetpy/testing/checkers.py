"""Packet checkers: they watch a wire and complain about what no correct sender does.

A :class:`TcpChecker` is an observer of a :class:`~tsnetpy.testing.sim.Simulator` over stacks, or is fed by hand with
:meth:`TcpChecker.see`. Each complaint names the rule; a correct stack never causes one, whatever the link does, since
only what is *sent* is looked at.
"""

from typing import Final, final

from tsnetpy.base.instant import SECOND, Instant
from tsnetpy.base.packet import PROTO_TCP, Buffer
from tsnetpy.base.stats import Drops
from tsnetpy.nic.parse import parse
from tsnetpy.nic.rx import RxPacket
from tsnetpy.tcp.flags import ACK, FIN, RST, SYN
from tsnetpy.tcp.options import parse_segment, parse_syn
from tsnetpy.tcp.seqnum import from_wire

_NOBODY: Final = bytes(32)
_KEEP: Final = 1 << 20


@final
class _Side:
    """What one end of a connection has said so far. Numbers are absolute, from the ISN on."""

    __slots__ = ("acked", "base", "data", "edge", "fin", "next", "scale", "start", "ts_on", "ts_val")

    def __init__(self, isn: int) -> None:
        self.start = isn  # number of the SYN
        self.next = isn + 1  # one past the highest number sent
        self.acked = 0  # highest acknowledgement it sent (of the other side's numbers)
        self.edge = 0  # right edge of the window that it promised
        self.scale = -1  # the shift that its SYN offered
        self.ts_on = False
        self.ts_val = 0
        self.fin = -1
        self.data = bytearray()  # what it sent, from ``base`` on
        self.base = isn + 1


@final
class TcpChecker:
    """Checks every packet against the rules that hold for a sender.

    Headers and checksums are right and the packet fits the MTU; acknowledgements and the right edge of the window never
    move back (RFC 9293 §3.8.6); nothing is sent beyond the window that the peer promised, but for one byte of a probe;
    the same sequence number always carries the same byte; nothing follows a FIN; SACK blocks lie above the
    acknowledgement or report a duplicate below it (RFC 2883); timestamps never run backwards (RFC 7323 §5.4).

    Args:
        mtu: longest IP packet allowed.

    Attributes:
        complaints: what was wrong, in order of time; bounded.
        packets: how many were looked at.
    """

    def __init__(self, mtu: int = 1280) -> None:
        self.complaints: list[str] = []
        self.packets = 0
        self._mtu = mtu
        self._sides: dict[tuple[bytes, int], _Side] = {}
        self._drops = Drops()

    def __call__(self, now: Instant, sender: object, receiver: object, packet: Buffer) -> None:
        """Look at a packet on its way, as an observer of a simulator."""
        self.see(packet, now)

    def see(self, packet: Buffer, now: Instant = 0) -> None:
        """Look at one complete IP packet."""
        self.packets += 1
        if len(packet) > self._mtu:
            self._complain(now, f"packet of {len(packet)} bytes exceeds the MTU of {self._mtu}")
        rx = parse(_NOBODY, packet, self._drops)
        if rx is None:
            reasons = ", ".join(self._drops.counts) or "unknown reason"
            self._complain(now, f"malformed packet ({reasons})")
            self._drops = Drops()
            return
        if rx.proto == PROTO_TCP and not rx.fragment:
            self._tcp(rx, now)

    def raise_if_any(self) -> None:
        """Raise AssertionError with the complaints, if there are any."""
        if self.complaints:
            raise AssertionError("; ".join(self.complaints[:5]))

    def _complain(self, now: Instant, what: str) -> None:
        if len(self.complaints) < 100:
            self.complaints.append(f"{now / SECOND:.6f}: {what}")

    def _tcp(self, rx: RxPacket, now: Instant) -> None:
        key = (rx.addrs, rx.ports)
        half = len(rx.addrs) >> 1
        back = (rx.addrs[half:] + rx.addrs[:half], (rx.ports & 0xFFFF) << 16 | rx.ports >> 16)
        if rx.flags & SYN:
            side = self._sides.get(key)
            if side is None or side.start & 0xFFFFFFFF != rx.seq:
                side = self._sides[key] = _Side(rx.seq + (1 << 32))
                offer = parse_syn(rx.options)
                if offer is None:
                    self._complain(now, "SYN with malformed options")
                    return
                side.scale = offer.wscale
                side.ts_on = offer.has_ts
            self._ack(side, self._sides.get(back), rx, now)
            return
        side = self._sides.get(key)
        if side is None or rx.flags & RST:
            return  # we joined late, or it is a reset, whose numbers follow other rules
        other = self._sides.get(back)
        seq = from_wire(rx.seq, side.next)
        self._timestamps(side, other, rx, now)
        self._window(side, other, rx, seq, now)
        self._bytes(side, rx, seq, now)
        self._ack(side, other, rx, now)

    def _timestamps(self, side: _Side, other: _Side | None, rx: RxPacket, now: Instant) -> None:
        extra = parse_segment(rx.options)
        if extra.has_ts:
            if side.ts_val and (extra.ts_val - side.ts_val) & 0xFFFFFFFF >= 1 << 31:
                self._complain(now, "a timestamp runs backwards")
            side.ts_val = extra.ts_val
        elif side.ts_on and other is not None and other.ts_on:
            self._complain(now, "no timestamp although both sides offered them")
        ack = from_wire(rx.ack, side.acked)
        for at, (left, right) in enumerate(extra.sacks):
            low, high = from_wire(left, ack), from_wire(right, ack)
            if low >= high or (at and low < ack):
                self._complain(now, f"SACK block {low - ack}:{high - ack} relative to the acknowledgement")

    def _window(self, side: _Side, other: _Side | None, rx: RxPacket, seq: int, now: Instant) -> None:
        length = len(rx.payload)
        if other is None or not other.edge or not length:
            return
        end = seq + length
        if end > other.edge and not (length == 1 and seq <= other.edge):
            self._complain(now, f"{end - other.edge} bytes beyond the promised window")

    def _bytes(self, side: _Side, rx: RxPacket, seq: int, now: Instant) -> None:
        length = len(rx.payload)
        end = seq + length
        if side.fin >= 0 and end > side.fin:
            self._complain(now, "data behind a FIN")
        if rx.flags & FIN:
            if side.fin >= 0 and side.fin != end:
                self._complain(now, "the FIN moved")
            side.fin = end
        at = seq - side.base
        if length and at >= 0:
            known = side.data[at : at + length]
            if known != bytes(rx.payload)[: len(known)]:
                self._complain(now, f"other bytes at sequence number {rx.seq}")
            if at <= len(side.data) < at + length:
                side.data += bytes(rx.payload)[len(side.data) - at :]
            if len(side.data) > 4 * _KEEP:
                del side.data[:_KEEP]
                side.base += _KEEP
        elif length == 0 and not rx.flags & FIN and seq > side.next:
            self._complain(now, "an ACK numbered beyond what was sent")
        side.next = max(side.next, end + (1 if rx.flags & FIN else 0))

    def _ack(self, side: _Side, other: _Side | None, rx: RxPacket, now: Instant) -> None:
        if not rx.flags & ACK or other is None:
            return
        if rx.flags & SYN:
            side.acked = from_wire(rx.ack, other.start)
            side.edge = side.acked + rx.wnd
            return
        ack = from_wire(rx.ack, side.acked or other.start)
        if ack < side.acked:
            self._complain(now, f"the acknowledgement moves back by {side.acked - ack}")
        if ack > other.next:
            self._complain(now, f"acknowledges {ack - other.next} bytes that were never sent")
        scale = max(side.scale, 0) if other.scale >= 0 else 0
        edge = ack + (rx.wnd << scale)
        # A scaled field cannot express every edge: it may seem to move back by less than one unit.
        if edge + (1 << scale) <= side.edge:
            self._complain(now, f"the window shrinks by {side.edge - edge}")
        side.acked = max(side.acked, ack)
        side.edge = max(side.edge, edge)
