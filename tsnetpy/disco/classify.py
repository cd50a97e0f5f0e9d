"""What a datagram on the shared UDP port is: STUN, disco, or WireGuard (data path reference, section 2.1)."""

from typing import Final

from tsnetpy.base.packet import Buffer

from .box import MAGIC
from .stun import looks_like_stun

WIREGUARD: Final = 0
DISCO: Final = 1
STUN: Final = 2
GENEVE: Final = 3
"""Peer-relay encapsulation, which this node does not use."""
RUNT: Final = 4
"""Too short for any message: some senders append a one-byte datagram to a GSO batch."""

_MIN_WIREGUARD: Final = 32


def classify(data: Buffer) -> int:
    """Return what *data* looks like: one of the constants of this module."""
    size = len(data)
    if size < 20:
        return RUNT
    first = data[0]
    # The four WireGuard types start with 1-4 and three zero bytes; nothing else on this port does.
    if 1 <= first <= 4 and not data[1] and not data[2] and not data[3]:
        return WIREGUARD if size >= _MIN_WIREGUARD else RUNT
    if first == 0x54 and data[:6] == MAGIC:
        return DISCO
    if looks_like_stun(data):
        return STUN
    if first & 0xC0 == 0 and data[1] & 0x3F == 0 and data[7] == 0 and data[2] == 0x7A and data[3] in (0x11, 0x12):
        return GENEVE
    return WIREGUARD if size >= _MIN_WIREGUARD else RUNT


def is_bulk(data: memoryview, segment_size: int) -> bool:
    """Tell whether every datagram of a GRO buffer starts like WireGuard transport data (type 4).

    The one test that bulk traffic pays, a strided copy instead of a call per datagram. No other protocol on this port
    starts with that byte; a forgery is WireGuard's to drop.
    """
    return not bytes(data[::segment_size]).strip(b"\x04")
