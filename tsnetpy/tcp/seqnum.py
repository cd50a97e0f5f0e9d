"""Sequence numbers: absolute and unbounded inside the engine, 32 bits on the wire.

Inside, a sequence number is a Python int that never wraps, so ``<`` means "earlier" and the modular arithmetic of
RFC 9293 §3.4 is needed at the border only. PAWS timestamps are compared modulo 2**32 with :func:`not_older`.
"""

from typing import Final

MASK32: Final = 0xFFFFFFFF
HALF32: Final = 0x80000000


def to_wire(seq: int) -> int:
    """Return the 32 bits that stand for absolute *seq* on the wire."""
    return seq & MASK32


def from_wire(wire: int, near: int) -> int:
    """Return the absolute number that *wire* stands for: the one within 2**31 of *near*."""
    return near + (((wire - near) + HALF32) & MASK32) - HALF32


def not_older(a: int, b: int) -> bool:
    """Tell whether 32-bit *a* is at or after 32-bit *b* on the circle (for timestamps)."""
    return ((a - b) & MASK32) < HALF32
