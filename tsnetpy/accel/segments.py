"""Pure twins of the per-byte work of the virtual NIC: word sums and cutting a TCP super-segment into packets.

Functions of bytes only, so that a native twin can replace them. The sum is arithmetic modulo 65535 over big integers: a
string of 16-bit words read as one big-endian number is congruent to the sum of its words, for 2**16 = 1 (mod 65535).
Folding the number in halves before the one division keeps the remainder cheap: 1.3 µs for 1240 bytes, half of it the
conversion, against 2 µs for the division of the whole (CPython 3.11).
"""

import struct
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

from tsnetpy.base.packet import Buffer

_SLICE: Final = 1344
"""Bytes per partial sum; a multiple of 16, so that its eighth is a whole number of words."""
_HALF: Final = _SLICE * 4
_HALF_MASK: Final = (1 << _HALF) - 1
_QUARTER: Final = _SLICE * 2
_QUARTER_MASK: Final = (1 << _QUARTER) - 1
_EIGHTH: Final = _SLICE
_EIGHTH_MASK: Final = (1 << _EIGHTH) - 1
_SMALL: Final = 320
"""Up to this many bytes folding costs more than it saves."""

_PIECE: Final = 448
"""Bytes of a packet that are converted at a time when packets are cut. The most for which the number and the bytes both
take CPython's fast allocator (512 bytes); it makes a packet's sum a sixth cheaper. Three make a packet of MTU 1280."""
_PIECE_HALF: Final = _PIECE * 4
_PIECE_HALF_MASK: Final = (1 << _PIECE_HALF) - 1
_PIECE_QUARTER: Final = _PIECE * 2
_PIECE_QUARTER_MASK: Final = (1 << _PIECE_QUARTER) - 1
_ABOVE_ALL_SUMS: Final = 65535 << 17
_LAYOUTS: Final = 256

_FIN_PSH: Final = 0x09
_CWR: Final = 0x80


def raw_sum(data: Buffer) -> int:
    """Return a non-negative integer congruent to the sum of the 16-bit words of *data* modulo 65535.

    An odd last byte counts as the high half of a word. The result is 0 only if every byte is zero. Results of pieces
    that start at even offsets may be added to each other, and to further words, before the remainder is taken.
    """
    size = len(data)
    if size <= _SLICE:
        total = int.from_bytes(data, "big")
        if size & 1:
            total <<= 8
        if size <= _SMALL:
            return total
    else:
        total = int.from_bytes(data[:_SLICE], "big")
        at = _SLICE
        while size - at > _SLICE:
            total += int.from_bytes(data[at : at + _SLICE], "big")
            at += _SLICE
        tail = int.from_bytes(data[at:], "big")
        total += tail << 8 if size & 1 else tail
    total = (total & _HALF_MASK) + (total >> _HALF)
    total = (total & _QUARTER_MASK) + (total >> _QUARTER)
    return (total & _EIGHTH_MASK) + (total >> _EIGHTH)


def split_tcp(header: bytes, payload: bytes, mss: int) -> list[bytes]:
    """Cut *payload* into complete IP packets of at most *mss* payload bytes each (TSO).

    The rules are those of hardware: the sequence number advances, the acknowledgement, window and options repeat, FIN
    and PSH stay on the last packet only and CWR on the first. Lengths and both checksums are filled in here.

    Args:
        header: IPv4 (no fragment; its identification repeats, which RFC 6864 §4.1 allows for DF=1) or IPv6 header and
            TCP header, with zero in the length and checksum fields.
        payload: at least one byte.
        mss: payload bytes per packet, at least 1.

    Returns:
        The packets in order; all but the last are of equal size.
    """
    ip_len = (header[0] & 15) * 4 if header[0] >> 4 == 4 else 40
    seq = int.from_bytes(header[ip_len + 4 : ip_len + 8], "big")
    flags = header[ip_len + 13]
    total = len(payload)
    packets: list[bytes] = []
    view = memoryview(payload)
    at = 0
    if flags & _CWR and total > mss:
        _equal_packets(header, ip_len, seq, flags & ~_FIN_PSH, view[:mss], mss, packets)
        flags &= ~_CWR
        at = mss
    middle = (total - at - 1) // mss * mss  # what comes before the last packet, which is shorter or has FIN or PSH
    if middle:
        _equal_packets(header, ip_len, seq + at, flags & ~_FIN_PSH, view[at : at + middle], mss, packets)
        at += middle
    _equal_packets(header, ip_len, seq + at, flags, view[at:], total - at, packets)
    return packets


def _equal_packets(
    header: bytes, ip_len: int, seq: int, flags: int, payload: memoryview, mss: int, packets: list[bytes]
) -> None:
    """Append the packets of *payload*, a multiple of *mss* bytes, that differ in nothing but sequence and checksum."""
    size = len(header) + mss
    ports = header[ip_len : ip_len + 4]
    after_seq = header[ip_len + 8 : ip_len + 13] + bytes((flags,)) + header[ip_len + 14 : ip_len + 16]
    tail = header[ip_len + 18 :]
    if ip_len == 40 and header[0] >> 4 == 6:
        ip = header[:4] + (size - 40).to_bytes(2, "big") + header[6:40]
        shared = int.from_bytes(header[8:40], "big")
    else:
        ip = header[:2] + size.to_bytes(2, "big") + header[4:ip_len]
        ip = ip[:10] + (-raw_sum(ip) % 65535).to_bytes(2, "big") + ip[12:]
        shared = int.from_bytes(header[12:20], "big")
    shared += 6 + size - ip_len + raw_sum(ports + after_seq + tail)
    # A large multiple of 65535 keeps the difference below positive.
    constant = _ABOVE_ALL_SUMS - shared % 65535
    front = ip + ports
    cut, pack = _layout(len(front), len(tail), mss)
    append = packets.append
    from_bytes = int.from_bytes
    seq &= 0xFFFFFFFF
    # A sum of little-endian words is the sum of big-endian ones with its bytes exchanged (RFC 1071 §2 (B)), that is,
    # times 256 modulo 65535. Little-endian is what CPython converts fastest, and an odd last byte needs no care.
    if 2 * _PIECE < mss <= 3 * _PIECE:
        for first, second, third in cut(payload):
            words = from_bytes(first, "little") + from_bytes(second, "little") + from_bytes(third, "little")
            words = (words & _PIECE_HALF_MASK) + (words >> _PIECE_HALF)
            words = (words & _PIECE_QUARTER_MASK) + (words >> _PIECE_QUARTER)
            value = (constant - seq - (words % 65535 << 8)) % 65535
            append(pack(front, seq, after_seq, value, tail, first, second, third))
            seq = (seq + mss) & 0xFFFFFFFF
        return
    for pieces in cut(payload):
        words = 0
        for piece in pieces:
            words += from_bytes(piece, "little")
        words = (words & _PIECE_HALF_MASK) + (words >> _PIECE_HALF)
        words = (words & _PIECE_QUARTER_MASK) + (words >> _PIECE_QUARTER)
        value = (constant - seq - (words % 65535 << 8)) % 65535
        append(pack(front, seq, after_seq, value, tail, *pieces))
        seq = (seq + mss) & 0xFFFFFFFF


_Cut: TypeAlias = Callable[[memoryview], Iterator[tuple[bytes, ...]]]
_Pack: TypeAlias = Callable[..., bytes]
_layouts: Final[dict[tuple[int, int, int], tuple[_Cut, _Pack]]] = {}


def _layout(front: int, tail: int, mss: int) -> tuple[_Cut, _Pack]:
    """Return what cuts payloads into the pieces of each packet, and what packs the packets of these lengths."""
    known = _layouts.get((front, tail, mss))
    if known is None:
        pieces = f"{_PIECE}s" * (mss // _PIECE) + (f"{mss % _PIECE}s" if mss % _PIECE else "")
        known = (struct.Struct(pieces).iter_unpack, struct.Struct(f"!{front}sI8sH{tail}s{pieces}").pack)
        if len(_layouts) >= _LAYOUTS:
            _layouts.clear()
        _layouts[front, tail, mss] = known
    return known
