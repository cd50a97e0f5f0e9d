"""The TCP header (RFC 9293 §3.1). Option contents are the business of :mod:`tsnetpy.tcp`."""

import struct
from dataclasses import dataclass
from typing import Final

from tsnetpy.base.addr import IpBytes
from tsnetpy.base.errors import DecodeError
from tsnetpy.base.packet import PROTO_TCP, Buffer

from .checksum import complement, pseudo_header, raw_sum

HEADER_LEN: Final = 20
FIN: Final = 1
SYN: Final = 2
RST: Final = 4
PSH: Final = 8
ACK: Final = 16
URG: Final = 32
ECE: Final = 64
CWR: Final = 128

_FIXED: Final = struct.Struct("!HHIIBBHHH")


@dataclass(slots=True)
class TcpHeader:
    """A TCP header with raw option bytes; all numbers as on the wire."""

    src_port: int
    dst_port: int
    seq: int
    ack: int
    flags: int
    window: int
    checksum: int = 0
    urgent: int = 0
    options: bytes = b""

    def encode(self, src: IpBytes | None = None, dst: IpBytes | None = None, payload: Buffer = b"") -> bytes:
        """Return the header; with addresses given, its checksum over *payload* is computed, else taken as is.

        Raises:
            ValueError: options over 40 bytes.
        """
        head = encode_header(
            self.src_port, self.dst_port, self.seq, self.ack, self.flags, self.window, self.options, self.urgent
        )
        if src is None or dst is None:
            value = self.checksum
        else:
            length = len(head) + len(payload)
            value = complement(pseudo_header(src, dst, PROTO_TCP, length) + raw_sum(head) + raw_sum(payload))
        return head[:16] + value.to_bytes(2, "big") + head[18:]


def encode_header(
    src_port: int, dst_port: int, seq: int, ack: int, flags: int, window: int, options: bytes = b"", urgent: int = 0
) -> bytes:
    """Return a header with a zero checksum field; *options* is padded with zeros to a multiple of four.

    Raises:
        ValueError: options over 40 bytes.
    """
    if not options:
        return _FIXED.pack(src_port, dst_port, seq, ack, 0x50, flags, window, 0, urgent)
    options += bytes(-len(options) % 4)
    if len(options) > 40:
        raise ValueError("TCP options over 40 bytes")
    offset = 0x50 + (len(options) << 2)
    return _FIXED.pack(src_port, dst_port, seq, ack, offset, flags, window, 0, urgent) + options


def decode(data: Buffer) -> TcpHeader:
    """Parse the header at the start of *data*; the payload follows at ``20 + len(options)``.

    Raises:
        DecodeError: too short, or the data offset lies outside.
    """
    if len(data) < HEADER_LEN:
        raise DecodeError("TCP header is cut short")
    sport, dport, seq, ack, offset, flags, window, value, urgent = _FIXED.unpack_from(data)
    end = (offset >> 4) * 4
    if end < HEADER_LEN or end > len(data):
        raise DecodeError("TCP data offset lies outside the segment")
    return TcpHeader(sport, dport, seq, ack, flags, window, value, urgent, bytes(data[HEADER_LEN:end]))


def options_ok(options: Buffer) -> bool:
    """Tell whether the option list is well-formed to its end; required of a SYN."""
    at = 0
    size = len(options)
    while at < size:
        kind = options[at]
        if kind == 0:
            return True
        if kind == 1:
            at += 1
            continue
        if at + 1 >= size or options[at + 1] < 2 or at + options[at + 1] > size:
            return False
        at += options[at + 1]
    return True
