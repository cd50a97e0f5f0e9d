"""The IPv6 header and its Fragment extension header (RFC 8200)."""

import struct
from dataclasses import dataclass
from typing import Final

from tsnetpy.base.addr import IpBytes
from tsnetpy.base.errors import DecodeError
from tsnetpy.base.packet import Buffer

HEADER_LEN: Final = 40
FRAGMENT_LEN: Final = 8
MIN_MTU: Final = 1280
NEXT_HEADER_AT: Final = 6
"""Where the fixed header names what follows it."""

NEXT_HOP_BY_HOP: Final = 0
NEXT_ROUTING: Final = 43
NEXT_FRAGMENT: Final = 44
NEXT_NONE: Final = 59
NEXT_DESTINATION: Final = 60

_FIXED: Final = struct.Struct("!IHBB16s16s")
_FRAGMENT: Final = struct.Struct("!BBHI")


@dataclass(slots=True)
class Ipv6Header:
    """An IPv6 header; ``payload_length`` in bytes counts extension headers too."""

    src: IpBytes
    dst: IpBytes
    next_header: int
    payload_length: int = 0
    hop_limit: int = 64
    traffic_class: int = 0
    flow_label: int = 0

    def encode(self) -> bytes:
        """Return the 40 bytes.

        Raises:
            ValueError: a field does not fit.
        """
        try:
            return _FIXED.pack(
                6 << 28 | self.traffic_class << 20 | self.flow_label,
                self.payload_length,
                self.next_header,
                self.hop_limit,
                self.src,
                self.dst,
            )
        except struct.error as error:
            raise ValueError(f"IPv6 field out of range: {error}") from error


@dataclass(slots=True)
class FragmentHeader:
    """The Fragment extension header (RFC 8200 §4.5); the offset in bytes."""

    next_header: int
    offset: int
    more: bool
    ident: int

    def encode(self) -> bytes:
        """Return the 8 bytes."""
        return _FRAGMENT.pack(self.next_header, 0, self.offset & 0xFFF8 | self.more, self.ident)


def decode(data: Buffer) -> Ipv6Header:
    """Parse the fixed header at the start of *data*.

    Raises:
        DecodeError: too short, not version 6, or the payload is longer than the buffer.
    """
    if len(data) < HEADER_LEN:
        raise DecodeError("IPv6 header is cut short")
    first, length, following, hops, src, dst = _FIXED.unpack_from(data)
    if first >> 28 != 6 or length + HEADER_LEN > len(data):
        raise DecodeError("IPv6 header lengths disagree")
    return Ipv6Header(src, dst, following, length, hops, first >> 20 & 0xFF, first & 0xFFFFF)


def decode_fragment(data: Buffer) -> FragmentHeader:
    """Parse a Fragment header at the start of *data*.

    Raises:
        DecodeError: too short.
    """
    if len(data) < FRAGMENT_LEN:
        raise DecodeError("IPv6 Fragment header is cut short")
    following, _, offset, ident = _FRAGMENT.unpack_from(data)
    return FragmentHeader(following, offset & 0xFFF8, bool(offset & 1), ident)
