"""ICMPv6 (RFC 4443). The checksum covers a pseudo-header, so encoding needs the addresses."""

from dataclasses import dataclass
from typing import Final

from tsnetpy.base.addr import IpBytes
from tsnetpy.base.errors import DecodeError
from tsnetpy.base.packet import PROTO_ICMPV6, Buffer

from .checksum import transport_checksum

HEADER_LEN: Final = 8
UNREACHABLE: Final = 1
PACKET_TOO_BIG: Final = 2
TIME_EXCEEDED: Final = 3
PARAMETER_PROBLEM: Final = 4
ECHO_REQUEST: Final = 128
ECHO_REPLY: Final = 129

CODE_NO_ROUTE: Final = 0
CODE_ADMIN_PROHIBITED: Final = 1
CODE_ADDRESS: Final = 3
CODE_PORT: Final = 4
CODE_REASSEMBLY: Final = 1
CODE_ERRONEOUS_FIELD: Final = 0
CODE_UNKNOWN_NEXT_HEADER: Final = 1
CODE_UNKNOWN_OPTION: Final = 2

MAX_ERROR_PACKET: Final = 1280
"""An error with its quote and IPv6 header stays within the minimum MTU (RFC 4443 §2.4 c)."""


def is_error(message_type: int) -> bool:
    """Tell whether *message_type* reports an error: the high bit is clear (RFC 4443 §2.1)."""
    return message_type < 128


@dataclass(slots=True)
class Icmpv6Message:
    """An ICMPv6 message: type, code, the 32 bits after the checksum, and the body."""

    type: int
    code: int
    rest: int = 0
    body: bytes = b""

    @property
    def ident(self) -> int:
        """Identifier of an echo message."""
        return self.rest >> 16

    @property
    def seq(self) -> int:
        """Sequence number of an echo message."""
        return self.rest & 0xFFFF

    def encode(self, src: IpBytes, dst: IpBytes) -> bytes:
        """Return the message with its checksum for a packet from *src* to *dst*."""
        head = bytes((self.type, self.code, 0, 0)) + self.rest.to_bytes(4, "big") + self.body
        return head[:2] + transport_checksum(src, dst, PROTO_ICMPV6, head).to_bytes(2, "big") + head[4:]


def echo(request: bool, ident: int, seq: int, payload: bytes) -> Icmpv6Message:
    """Return an echo request or reply."""
    return Icmpv6Message(ECHO_REQUEST if request else ECHO_REPLY, 0, ident << 16 | seq, payload)


def decode(data: Buffer) -> Icmpv6Message:
    """Parse a message; the checksum is not verified here.

    Raises:
        DecodeError: shorter than 8 bytes.
    """
    if len(data) < HEADER_LEN:
        raise DecodeError("ICMPv6 message is cut short")
    return Icmpv6Message(data[0], data[1], int.from_bytes(data[4:8], "big"), bytes(data[8:]))
