"""ICMP for IPv4 (RFC 792, RFC 1122 §3.2.2, RFC 1812 §4.3.2)."""

from dataclasses import dataclass
from typing import Final

from tsnetpy.base.errors import DecodeError
from tsnetpy.base.packet import Buffer

from .checksum import checksum

HEADER_LEN: Final = 8
ECHO_REPLY: Final = 0
UNREACHABLE: Final = 3
SOURCE_QUENCH: Final = 4
REDIRECT: Final = 5
ECHO_REQUEST: Final = 8
TIME_EXCEEDED: Final = 11
PARAMETER_PROBLEM: Final = 12

CODE_NET: Final = 0
CODE_HOST: Final = 1
CODE_PROTOCOL: Final = 2
CODE_PORT: Final = 3
CODE_FRAGMENTATION_NEEDED: Final = 4
CODE_ADMIN_PROHIBITED: Final = 13
CODE_REASSEMBLY: Final = 1
"""Time exceeded, code 1: fragment reassembly."""

ERRORS: Final = frozenset({UNREACHABLE, SOURCE_QUENCH, REDIRECT, TIME_EXCEEDED, PARAMETER_PROBLEM})
"""Types that report an error and must never cause one (RFC 1122 §3.2.2)."""

MAX_ERROR_PACKET: Final = 576
"""An error with its quote and IP header stays within this (RFC 1812 §4.3.2.3)."""


@dataclass(slots=True)
class Icmpv4Message:
    """An ICMP message: type, code, the 32 bits after the checksum, and the body."""

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

    @property
    def next_hop_mtu(self) -> int:
        """MTU in "fragmentation needed" (RFC 1191); 0 from routers that do not say."""
        return self.rest & 0xFFFF

    def encode(self) -> bytes:
        """Return the message with its checksum."""
        head = bytes((self.type, self.code, 0, 0)) + self.rest.to_bytes(4, "big") + self.body
        return head[:2] + checksum(head).to_bytes(2, "big") + head[4:]


def echo(request: bool, ident: int, seq: int, payload: bytes) -> Icmpv4Message:
    """Return an echo request or reply."""
    return Icmpv4Message(ECHO_REQUEST if request else ECHO_REPLY, 0, ident << 16 | seq, payload)


def decode(data: Buffer) -> Icmpv4Message:
    """Parse a message; the checksum is not verified here.

    Raises:
        DecodeError: shorter than 8 bytes.
    """
    if len(data) < HEADER_LEN:
        raise DecodeError("ICMP message is cut short")
    return Icmpv4Message(data[0], data[1], int.from_bytes(data[4:8], "big"), bytes(data[8:]))
