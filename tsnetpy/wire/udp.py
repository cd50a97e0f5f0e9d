"""The UDP header (RFC 768)."""

import struct
from dataclasses import dataclass
from typing import Final

from tsnetpy.base.addr import IpBytes
from tsnetpy.base.errors import DecodeError
from tsnetpy.base.packet import PROTO_UDP, Buffer

from .checksum import complement, pseudo_header, raw_sum

HEADER_LEN: Final = 8

_FIXED: Final = struct.Struct("!HHHH")


@dataclass(slots=True)
class UdpHeader:
    """A UDP header; ``length`` counts header and data."""

    src_port: int
    dst_port: int
    length: int = 0
    checksum: int = 0

    def encode(self) -> bytes:
        """Return the 8 bytes with the fields as they are."""
        return _FIXED.pack(self.src_port, self.dst_port, self.length, self.checksum)


def encode_datagram(src: IpBytes, dst: IpBytes, src_port: int, dst_port: int, payload: Buffer) -> bytes:
    """Return header and payload with the checksum filled in (0 is sent as 0xFFFF, RFC 768).

    Raises:
        ValueError: the datagram is over 65535 bytes.
    """
    length = HEADER_LEN + len(payload)
    if length > 0xFFFF:
        raise ValueError("UDP datagram over 65535 bytes")
    words = src_port + dst_port + length + pseudo_header(src, dst, PROTO_UDP, length) + raw_sum(payload)
    return _FIXED.pack(src_port, dst_port, length, complement(words) or 0xFFFF) + bytes(payload)


def decode(data: Buffer) -> UdpHeader:
    """Parse the header at the start of *data*.

    Raises:
        DecodeError: too short, or the length is below 8 or over the buffer.
    """
    if len(data) < HEADER_LEN:
        raise DecodeError("UDP header is cut short")
    sport, dport, length, value = _FIXED.unpack_from(data)
    if length < HEADER_LEN or length > len(data):
        raise DecodeError("UDP length disagrees with the packet")
    return UdpHeader(sport, dport, length, value)
