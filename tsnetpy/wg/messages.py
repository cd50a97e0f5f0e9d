"""Layout of the four messages (whitepaper section 5.4). Integers are little-endian; three reserved bytes are zero."""

import struct
from typing import Final, final

from tsnetpy.base.packet import Buffer

INITIATION: Final = 1
RESPONSE: Final = 2
COOKIE_REPLY: Final = 3
TRANSPORT: Final = 4

INITIATION_BYTES: Final = 148
RESPONSE_BYTES: Final = 92
COOKIE_REPLY_BYTES: Final = 64
TRANSPORT_MIN_BYTES: Final = 32
"""A transport message with empty plaintext: a keepalive."""

MACS_BYTES: Final = 32
"""MAC1 and MAC2 end initiation and response."""

HEAD: Final = struct.Struct("<II")
"""Type with its reserved bytes, then an index: the sender's in types 1 and 2, the receiver's in types 3 and 4."""

_INITIATION: Final = struct.Struct("<II32s48s28s")
_RESPONSE: Final = struct.Struct("<III32s16s")
_COOKIE_REPLY: Final = struct.Struct("<II24s32s")


@final
class Initiation:
    """Message 1, without the MACs."""

    __slots__ = ("ephemeral", "sealed_static", "sealed_timestamp", "sender")

    def __init__(self, sender: int, ephemeral: bytes, sealed_static: bytes, sealed_timestamp: bytes) -> None:
        self.sender = sender
        self.ephemeral = ephemeral
        self.sealed_static = sealed_static
        self.sealed_timestamp = sealed_timestamp

    @staticmethod
    def decode(data: Buffer) -> "Initiation":
        """Return the fields of *data*, whose type and length the caller has checked."""
        _, sender, ephemeral, sealed_static, sealed_timestamp = _INITIATION.unpack_from(data)
        return Initiation(sender, ephemeral, sealed_static, sealed_timestamp)

    def encode(self) -> bytes:
        """Return the message up to MAC1."""
        return _INITIATION.pack(INITIATION, self.sender, self.ephemeral, self.sealed_static, self.sealed_timestamp)


@final
class Response:
    """Message 2, without the MACs."""

    __slots__ = ("ephemeral", "receiver", "sealed_empty", "sender")

    def __init__(self, sender: int, receiver: int, ephemeral: bytes, sealed_empty: bytes) -> None:
        self.sender = sender
        self.receiver = receiver
        self.ephemeral = ephemeral
        self.sealed_empty = sealed_empty

    @staticmethod
    def decode(data: Buffer) -> "Response":
        """Return the fields of *data*, whose type and length the caller has checked."""
        _, sender, receiver, ephemeral, sealed_empty = _RESPONSE.unpack_from(data)
        return Response(sender, receiver, ephemeral, sealed_empty)

    def encode(self) -> bytes:
        """Return the message up to MAC1."""
        return _RESPONSE.pack(RESPONSE, self.sender, self.receiver, self.ephemeral, self.sealed_empty)


@final
class CookieReply:
    """Message 3."""

    __slots__ = ("nonce", "receiver", "sealed_cookie")

    def __init__(self, receiver: int, nonce: bytes, sealed_cookie: bytes) -> None:
        self.receiver = receiver
        self.nonce = nonce
        self.sealed_cookie = sealed_cookie

    @staticmethod
    def decode(data: Buffer) -> "CookieReply":
        """Return the fields of *data*, whose type and length the caller has checked."""
        _, receiver, nonce, sealed_cookie = _COOKIE_REPLY.unpack_from(data)
        return CookieReply(receiver, nonce, sealed_cookie)

    def encode(self) -> bytes:
        """Return the message."""
        return _COOKIE_REPLY.pack(COOKIE_REPLY, self.receiver, self.nonce, self.sealed_cookie)
