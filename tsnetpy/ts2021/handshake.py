"""Frames of the ts2021 handshake (reference, sections 3.3 and 3.4). All integers are big-endian.

::

    initiation  u16 version, 01, u16 96, ephemeral 32, sealed static 48, tag 16     (101 bytes)
    response    02, u16 48, ephemeral 32, tag 16                                    (51 bytes)
    error       03, u16 n, n bytes of text (unauthenticated, in place of a response)

The prologue binds the version: a man in the middle who changes it breaks the handshake.
"""

import struct
from typing import Final

from tsnetpy.base.errors import DecodeError, RemoteProtocolError
from tsnetpy.base.packet import Buffer
from tsnetpy.crypto.errors import CryptoError
from tsnetpy.noise.ik import MESSAGE_1_BYTES, MESSAGE_2_BYTES, IkInitiator, IkResponder

INITIATION: Final = 1
RESPONSE: Final = 2
ERROR: Final = 3
RECORD: Final = 4

HEADER_BYTES: Final = 3
INITIATION_BYTES: Final = 5 + MESSAGE_1_BYTES
RESPONSE_BYTES: Final = HEADER_BYTES + MESSAGE_2_BYTES
MAX_ERROR_BYTES: Final = 1024
"""What is kept of an error frame: its text is nobody's proven word."""

_INITIATION_HEADER: Final = struct.Struct(">HBH")
_HEADER: Final = struct.Struct(">BH")


def prologue(version: int) -> bytes:
    """Return the bytes that bind the handshake to protocol and version."""
    return b"Tailscale Control Protocol v%d" % version


def initiation_frame(version: int, message: bytes) -> bytes:
    """Return the first frame: *message* is Noise message 1."""
    return _INITIATION_HEADER.pack(version, INITIATION, len(message)) + message


def parse_initiation(frame: Buffer) -> tuple[int, bytes]:
    """Return ``(version, Noise message 1)`` of an initiation.

    Raises:
        DecodeError: wrong length, type or inner length.
    """
    if len(frame) != INITIATION_BYTES:
        raise DecodeError(f"an initiation has {INITIATION_BYTES} bytes, not {len(frame)}")
    version, kind, size = _INITIATION_HEADER.unpack_from(frame)
    if kind != INITIATION or size != MESSAGE_1_BYTES:
        raise DecodeError("not an initiation")
    return version, bytes(frame[_INITIATION_HEADER.size :])


def response_frame(message: bytes) -> bytes:
    """Return the answer: *message* is Noise message 2."""
    return _HEADER.pack(RESPONSE, len(message)) + message


def error_frame(text: str) -> bytes:
    """Return a refusal in place of the answer."""
    encoded = text.encode()[:MAX_ERROR_BYTES]
    return _HEADER.pack(ERROR, len(encoded)) + encoded


def parse_header(data: Buffer) -> tuple[int, int]:
    """Return ``(type, length)`` of the frame that starts with *data* (at least three bytes)."""
    kind, size = _HEADER.unpack_from(data)
    return kind, size


def start(
    version: int, machine_private: bytes, server_public: bytes, ephemeral_private: bytes
) -> tuple[IkInitiator, bytes]:
    """Return the client's Noise state and its initiation frame.

    Raises:
        RemoteProtocolError: the server's key is unusable.
    """
    noise = IkInitiator(prologue(version), machine_private, server_public, ephemeral_private)
    try:
        return noise, initiation_frame(version, noise.write_message_1())
    except CryptoError as error:
        raise RemoteProtocolError("the server's Noise key is unusable") from error


def answer(server_private: bytes, initiation: Buffer, ephemeral_private: bytes) -> tuple[IkResponder, int, bytes]:
    """Return the server's Noise state, the client's version, and the response frame.

    Raises:
        RemoteProtocolError: *initiation* is malformed or was made for another server key or version.
    """
    version, message = parse_initiation(initiation)
    noise = IkResponder(prologue(version), server_private)
    try:
        noise.read_message_1(message)
        return noise, version, response_frame(noise.write_message_2(ephemeral_private))
    except CryptoError as error:
        raise RemoteProtocolError("handshake failed: the client used another server key or version") from error
