"""The unit of output: one super-segment, and the reset for segments that belong to no connection."""

from typing import final

from tsnetpy.base.packet import Buffer

from .flags import ACK, FIN, RST, SYN, flag_names
from .seqnum import MASK32


@final
class Segment:
    """One TCP segment of up to 64 KiB, cut into packets later by the NIC.

    Attributes:
        seq, ack: 32-bit wire numbers.
        flags: control bits (:mod:`tsnetpy.tcp.flags`).
        wnd: the 16-bit window field, already scaled down.
        options: option bytes, a multiple of four.
        payload: immutable pieces in order.
        payload_len: their total length in bytes.
        gso_size: payload bytes per packet if it may be cut, else 0.
    """

    __slots__ = ("ack", "flags", "gso_size", "options", "payload", "payload_len", "seq", "wnd")

    def __init__(
        self,
        seq: int,
        ack: int,
        flags: int,
        wnd: int,
        options: bytes,
        payload: list[Buffer],
        payload_len: int,
        gso_size: int,
    ) -> None:
        self.seq = seq
        self.ack = ack
        self.flags = flags
        self.wnd = wnd
        self.options = options
        self.payload = payload
        self.payload_len = payload_len
        self.gso_size = gso_size

    def __repr__(self) -> str:
        return (
            f"<Segment {flag_names(self.flags)} seq={self.seq} ack={self.ack} wnd={self.wnd} "
            f"len={self.payload_len} options={self.options.hex()}>"
        )


def rst_for(seq: int, ack: int, flags: int, payload_len: int) -> tuple[int, int, int]:
    """Return (seq, ack, flags) of the reset that answers a segment for no connection (RFC 9293 §3.10.7.1).

    Never call it for a segment that itself carries RST.
    """
    if flags & ACK:
        return ack, 0, RST
    length = payload_len + (1 if flags & SYN else 0) + (1 if flags & FIN else 0)
    return 0, (seq + length) & MASK32, RST | ACK
