"""The Internet checksum (RFC 1071).

A *raw sum* is any integer congruent to the sum of 16-bit words modulo 65535 (:func:`tsnetpy.accel.segments.raw_sum`).
One's complement addition is arithmetic modulo 65535 with two names for zero: 0 (all words were zero) and 0xFFFF
(everything else), which is all that :func:`fold` and :func:`complement` have to sort out.
"""

from tsnetpy.accel.segments import raw_sum
from tsnetpy.base.packet import Buffer

__all__ = ["checksum", "complement", "fold", "pseudo_header", "raw_sum", "transport_checksum", "transport_ok"]


def fold(total: int) -> int:
    """Return the 16-bit one's complement sum that *total* (see :func:`raw_sum`) stands for; not complemented."""
    return total % 65535 or (0xFFFF if total else 0)


def complement(total: int) -> int:
    """Return the checksum field for words that sum to *total*: the complement of :func:`fold`."""
    return -total % 65535 if total else 0xFFFF


def checksum(data: Buffer, initial: int = 0) -> int:
    """Return the RFC 1071 checksum field value for *data*; *initial* is a raw sum to start from.

    Over data whose checksum field is filled in, the result is 0 exactly if the checksum is right.
    """
    return complement(initial + raw_sum(data))


def pseudo_header(src: Buffer, dst: Buffer, proto: int, length: int) -> int:
    """Return the raw sum of the pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1); the sum is the same for both families."""
    return int.from_bytes(src, "big") + int.from_bytes(dst, "big") + proto + length


def transport_checksum(src: Buffer, dst: Buffer, proto: int, segment: Buffer) -> int:
    """Return the checksum field for a TCP, UDP or ICMPv6 *segment* whose checksum field holds zero.

    A UDP sender must send 0xFFFF where this returns 0 (RFC 768).
    """
    return complement(pseudo_header(src, dst, proto, len(segment)) + raw_sum(segment))


def transport_ok(src: Buffer, dst: Buffer, proto: int, segment: Buffer) -> bool:
    """Tell whether the checksum inside *segment* (as received) is right."""
    return (pseudo_header(src, dst, proto, len(segment)) + raw_sum(segment)) % 65535 == 0
