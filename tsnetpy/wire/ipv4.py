"""The IPv4 header (RFC 791)."""

import struct
from dataclasses import dataclass
from typing import Final

from tsnetpy.base.addr import IpBytes
from tsnetpy.base.errors import DecodeError
from tsnetpy.base.packet import Buffer

from .checksum import checksum

HEADER_LEN: Final = 20
FLAG_DF: Final = 0x4000
FLAG_MF: Final = 0x2000
OFFSET_MASK: Final = 0x1FFF
MIN_MTU: Final = 576
"""The smallest path MTU this stack believes a router to report (RFC 1122 §3.3.3 makes 576 everyone's minimum)."""

OPTION_LSRR: Final = 131
OPTION_SSRR: Final = 137

_FIXED: Final = struct.Struct("!BBHHHBBH4s4s")


@dataclass(slots=True)
class Ipv4Header:
    """An IPv4 header; lengths in bytes, the fragment offset too."""

    src: IpBytes
    dst: IpBytes
    proto: int
    total_length: int = 0
    ttl: int = 64
    tos: int = 0
    ident: int = 0
    dont_fragment: bool = False
    more_fragments: bool = False
    fragment_offset: int = 0
    options: bytes = b""

    @property
    def header_len(self) -> int:
        """Header length with options padded to a multiple of four."""
        return HEADER_LEN + (len(self.options) + 3) // 4 * 4

    def encode(self) -> bytes:
        """Return the header with its checksum.

        Raises:
            ValueError: options or a field do not fit.
        """
        options = self.options + bytes(-len(self.options) % 4)
        if len(options) > 40 or self.fragment_offset % 8:
            raise ValueError("IPv4 options or fragment offset do not fit")
        flags = (FLAG_DF if self.dont_fragment else 0) | (FLAG_MF if self.more_fragments else 0)
        try:
            head = _FIXED.pack(
                0x45 + len(options) // 4,
                self.tos,
                self.total_length,
                self.ident,
                flags | self.fragment_offset >> 3,
                self.ttl,
                self.proto,
                0,
                self.src,
                self.dst,
            )
        except struct.error as error:
            raise ValueError(f"IPv4 field out of range: {error}") from error
        head += options
        return head[:10] + checksum(head).to_bytes(2, "big") + head[12:]


def decode(data: Buffer) -> Ipv4Header:
    """Parse the header at the start of *data*; the checksum is not verified here.

    Raises:
        DecodeError: too short, not version 4, or lengths that contradict each other or the buffer.
    """
    if len(data) < HEADER_LEN:
        raise DecodeError("IPv4 header is cut short")
    first, tos, total, ident, frag, ttl, proto, _, src, dst = _FIXED.unpack_from(data)
    header_len = (first & 15) * 4
    if first >> 4 != 4 or header_len < HEADER_LEN or total < header_len or total > len(data):
        raise DecodeError("IPv4 header lengths disagree")
    return Ipv4Header(
        src,
        dst,
        proto,
        total,
        ttl,
        tos,
        ident,
        bool(frag & FLAG_DF),
        bool(frag & FLAG_MF),
        (frag & OFFSET_MASK) * 8,
        bytes(data[HEADER_LEN:header_len]),
    )


def has_source_route(options: Buffer) -> bool:
    """Tell whether *options* holds a source route, or is malformed before its end (both are refused, RFC 7126 §4.3)."""
    at = 0
    while at < len(options):
        kind = options[at]
        if kind == 0:
            return False
        if kind == 1:
            at += 1
            continue
        if kind in (OPTION_LSRR, OPTION_SSRR) or at + 1 >= len(options):
            return True
        size = options[at + 1]
        if size < 2 or at + size > len(options):
            return True
        at += size
    return False
