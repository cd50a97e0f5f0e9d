"""The control bits of a TCP header (RFC 9293 §3.1) as plain ints, and the readiness bits a connection reports."""

from typing import Final

FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
PSH: Final = 0x08
ACK: Final = 0x10
URG: Final = 0x20
ECE: Final = 0x40
CWR: Final = 0x80

READABLE: Final = 1
"""Bytes became readable."""
WRITABLE: Final = 2
"""Room came free in the send buffer after a send() that was not fully accepted."""
ESTABLISHED: Final = 4
"""The handshake completed."""
EOF: Final = 8
"""The peer finished sending: after the buffered bytes there is nothing more."""
CLOSED: Final = 16
"""The connection reached CLOSED: the owner may forget it."""
ERROR: Final = 32
"""The connection ended with an error; see ``Connection.error``."""

_NAMES: Final = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")


def flag_names(flags: int) -> str:
    """Return control bits in words, for instance ``"SYN|ACK"``."""
    return "|".join(name for bit, name in enumerate(_NAMES) if flags >> bit & 1) or "none"
