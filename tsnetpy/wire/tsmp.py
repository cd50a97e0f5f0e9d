"""TSMP, the Tailscale Message Protocol: IP protocol 99 inside the tunnel (data path reference, section 7)."""

from dataclasses import dataclass
from typing import Final

from tsnetpy.base.errors import DecodeError
from tsnetpy.base.packet import Buffer

MIN_LEN: Final = 7
TYPE_REJECTED: Final = 0x21
TYPE_PING: Final = 0x70
TYPE_PONG: Final = 0x6F
TYPE_DISCO_ADVERT: Final = 0x61

REASON_ACL: Final = 0x41
REASON_SHIELDS_UP: Final = 0x53
REASON_FORWARDING: Final = 0x46
REASON_HOST_FIREWALL: Final = 0x57

PING_DATA_LEN: Final = 8


@dataclass(slots=True)
class Rejected:
    """A flow that the receiver's policy refused; ports in the order of the refused flow."""

    proto: int
    reason: int
    src_port: int
    dst_port: int
    maybe_broken: bool = False

    def encode(self) -> bytes:
        """Return the payload after the IP header."""
        head = bytes((TYPE_REJECTED, self.proto, self.reason))
        ports = self.src_port.to_bytes(2, "big") + self.dst_port.to_bytes(2, "big")
        return head + ports + (b"\x01" if self.maybe_broken else b"")


@dataclass(slots=True)
class Ping:
    """A request for a :class:`Pong` with the same 8 bytes."""

    data: bytes

    def encode(self) -> bytes:
        """Return the payload after the IP header."""
        return bytes((TYPE_PING,)) + self.data


@dataclass(slots=True)
class Pong:
    """The answer to a :class:`Ping`; ``peer_api_port`` is 0 when the sender does not say."""

    data: bytes
    peer_api_port: int = 0

    def encode(self) -> bytes:
        """Return the payload after the IP header."""
        return bytes((TYPE_PONG,)) + self.data + self.peer_api_port.to_bytes(2, "big")


@dataclass(slots=True)
class DiscoAdvert:
    """The sender's disco public key (32 bytes)."""

    disco_key: bytes


def decode(data: Buffer) -> Rejected | Ping | Pong | DiscoAdvert:
    """Parse the payload of an IP packet with protocol 99; bytes after the known fields are ignored.

    Raises:
        DecodeError: too short, or a type this code does not know.
    """
    if len(data) < MIN_LEN:
        raise DecodeError("TSMP message is cut short")
    kind = data[0]
    if kind == TYPE_REJECTED:
        src_port = int.from_bytes(data[3:5], "big")
        dst_port = int.from_bytes(data[5:7], "big")
        return Rejected(data[1], data[2], src_port, dst_port, len(data) > 7 and bool(data[7] & 1))
    if kind == TYPE_PING and len(data) > PING_DATA_LEN:
        return Ping(bytes(data[1:9]))
    if kind == TYPE_PONG and len(data) > PING_DATA_LEN:
        return Pong(bytes(data[1:9]), int.from_bytes(data[9:11], "big") if len(data) >= 11 else 0)
    if kind == TYPE_DISCO_ADVERT and len(data) >= 33:
        return DiscoAdvert(bytes(data[1:33]))
    raise DecodeError("TSMP message of an unknown type or length")
