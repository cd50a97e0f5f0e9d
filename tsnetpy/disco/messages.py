"""The plaintext of disco messages (data path reference, section 2.1): type, version, payload.

Ping, Pong and CallMeMaybe find direct paths. The kinds that set up peer relays are recognised and carried as
:class:`OtherMessage`; this node offers and uses no relay but DERP.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias, final

from tsnetpy.base.addr import Endpoint, to_ip16, unmap
from tsnetpy.base.errors import DecodeError
from tsnetpy.base.packet import Buffer

PING: Final = 0x01
PONG: Final = 0x02
CALL_ME_MAYBE: Final = 0x03

TXID_BYTES: Final = 12
_AP: Final = 18
MAX_ENDPOINTS: Final = 100
"""Endpoints that a CallMeMaybe may list; more are ignored, so that one message cannot cause a flood of pings."""

DERP_MAGIC_IP: Final = bytes((127, 3, 3, 40))
"""Tailscale writes the DERP region *n* as the endpoint ``127.3.3.40:n``."""


@final
@dataclass(slots=True)
class Ping:
    """ "Are you there, under this address?" """

    txid: bytes
    """12 bytes that the Pong repeats."""
    node_key: bytes
    """The sender's node key, empty if it left it out (it is answered all the same)."""
    padding: int = 0
    """Zero bytes after the node key, to probe a packet size."""


@final
@dataclass(slots=True)
class Pong:
    """The answer, with the source address that the Ping arrived from."""

    txid: bytes
    source: Endpoint


@final
@dataclass(slots=True)
class CallMeMaybe:
    """ "Ping me at these addresses": goes over DERP, because it asks the other side to open its NAT."""

    endpoints: tuple[Endpoint, ...]


@final
@dataclass(slots=True)
class OtherMessage:
    """A kind that this node does not act on."""

    kind: int
    version: int
    payload: bytes


Message: TypeAlias = Ping | Pong | CallMeMaybe | OtherMessage


def encode(message: Message) -> bytes:
    """Return the plaintext of *message*."""
    if isinstance(message, Ping):
        return bytes((PING, 0)) + message.txid + message.node_key + bytes(message.padding)
    if isinstance(message, Pong):
        return bytes((PONG, 0)) + message.txid + encode_address_port(message.source)
    if isinstance(message, CallMeMaybe):
        return bytes((CALL_ME_MAYBE, 0)) + b"".join(map(encode_address_port, message.endpoints))
    return bytes((message.kind, message.version)) + message.payload


def decode(plain: Buffer) -> Message:
    """Return the message in *plain*; bytes after a Ping or Pong are ignored, as newer senders may add fields.

    Raises:
        DecodeError: too short for what it claims to be.
    """
    data = bytes(plain)
    if len(data) < 2:
        raise DecodeError("disco message without a header")
    kind, version = data[0], data[1]
    if kind == PING:
        if len(data) < 2 + TXID_BYTES:
            raise DecodeError("disco Ping without a transaction id")
        node_key = data[14:46]
        if len(node_key) < 32:
            return Ping(data[2:14], b"")
        return Ping(data[2:14], node_key, len(data) - 46)
    if kind == PONG:
        if len(data) < 2 + TXID_BYTES + _AP:
            raise DecodeError("disco Pong is too short")
        return Pong(data[2:14], decode_address_port(data[14:32]))
    if kind == CALL_ME_MAYBE:
        payload = data[2:]
        # A later version or an odd length means "no endpoints", not an error.
        if version != 0 or len(payload) % _AP:
            return CallMeMaybe(())
        count = min(len(payload) // _AP, MAX_ENDPOINTS)
        return CallMeMaybe(tuple(decode_address_port(payload[i * _AP : i * _AP + _AP]) for i in range(count)))
    return OtherMessage(kind, version, data[2:])


def encode_address_port(endpoint: Endpoint) -> bytes:
    """Return the 18-byte form: 16-byte address (IPv4 mapped) and port."""
    return to_ip16(endpoint.ip) + endpoint.port.to_bytes(2, "big")


def decode_address_port(data: bytes) -> Endpoint:
    """Return the endpoint in 18 bytes; a mapped IPv4 address comes out as IPv4."""
    return Endpoint(unmap(data[:16]), int.from_bytes(data[16:18], "big"))


def derp_endpoint(region: int) -> Endpoint:
    """Return the endpoint that stands for a DERP region."""
    return Endpoint(DERP_MAGIC_IP, region & 0xFFFF)


def unique_endpoints(endpoints: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
    """Return *endpoints* without repetitions, in order."""
    return tuple(dict.fromkeys(endpoints))
