"""STUN (RFC 5389) in Tailscale's dialect: a Binding request that only its own servers answer (reference, section 4)."""

import zlib
from typing import Final

from tsnetpy.base.addr import Endpoint, to_ip16, unmap
from tsnetpy.base.errors import DecodeError
from tsnetpy.base.packet import Buffer

MAGIC_COOKIE: Final = b"\x21\x12\xa4\x42"
TXID_BYTES: Final = 12
HEADER_BYTES: Final = 20

BINDING_REQUEST: Final = b"\x00\x01"
BINDING_SUCCESS: Final = b"\x01\x01"

ATTR_MAPPED_ADDRESS: Final = 0x0001
ATTR_XOR_MAPPED_ADDRESS: Final = 0x0020
ATTR_XOR_MAPPED_ADDRESS_ALT: Final = 0x8020
"""The number that drafts of RFC 5389 used, and some servers still do."""

_SOFTWARE: Final = b"\x80\x22\x00\x08tailnode"
_FINGERPRINT_HEADER: Final = b"\x80\x28\x00\x04"
_FINGERPRINT_XOR: Final = 0x5354554E


def looks_like_stun(data: Buffer) -> bool:
    """Tell whether *data* is a STUN message (RFC 5389 section 6: two zero bits, the cookie) of the Binding method."""
    return len(data) >= HEADER_BYTES and data[0] & 0xC0 == 0 and data[1] == 0x01 and data[4:8] == MAGIC_COOKIE


def encode_request(txid: bytes) -> bytes:
    """Return the 40-byte Binding request with SOFTWARE ``tailnode`` and a FINGERPRINT."""
    message = BINDING_REQUEST + b"\x00\x14" + MAGIC_COOKIE + txid + _SOFTWARE
    return message + _FINGERPRINT_HEADER + _fingerprint(message)


def decode_request(data: Buffer) -> bytes:
    """Return the transaction id of a Binding request.

    Raises:
        DecodeError: not the request that :func:`encode_request` makes. Anything else stays unanswered, so that the
            server cannot be used to amplify traffic or as a public STUN server.
    """
    raw = bytes(data)
    if len(raw) != 40 or raw[:8] != BINDING_REQUEST + b"\x00\x14" + MAGIC_COOKIE or raw[20:32] != _SOFTWARE:
        raise DecodeError("not a STUN request of a tailnet node")
    if raw[32:] != _FINGERPRINT_HEADER + _fingerprint(raw[:32]):
        raise DecodeError("STUN request with a wrong fingerprint")
    return raw[8:20]


def encode_response(txid: bytes, source: Endpoint, *, v4_mapped: bool = False) -> bytes:
    """Return the Binding success response that tells the requester its address.

    Args:
        txid: of the request.
        source: where the request came from.
        v4_mapped: write an IPv4 address as ``::ffff:a.b.c.d``, as a dual-stack derper does.
    """
    ip = to_ip16(source.ip) if v4_mapped else source.ip
    mask = MAGIC_COOKIE + txid
    address = bytes(a ^ b for a, b in zip(ip, mask))
    value = bytes((0, 1 if len(ip) == 4 else 2)) + (source.port ^ 0x2112).to_bytes(2, "big") + address
    attribute = ATTR_XOR_MAPPED_ADDRESS.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value
    return BINDING_SUCCESS + len(attribute).to_bytes(2, "big") + MAGIC_COOKIE + txid + attribute


def decode_response(data: Buffer) -> tuple[bytes, Endpoint]:
    """Return the transaction id and the mapped address of a Binding success response.

    Raises:
        DecodeError: malformed, or without any address.
    """
    raw = bytes(data)
    if not looks_like_stun(raw) or raw[:2] != BINDING_SUCCESS:
        raise DecodeError("not a STUN success response")
    length = int.from_bytes(raw[2:4], "big")
    if len(raw) < HEADER_BYTES + length:
        raise DecodeError("truncated STUN response")
    txid = raw[8:20]
    fallback: Endpoint | None = None
    at, end = HEADER_BYTES, HEADER_BYTES + length
    while at + 4 <= end:
        kind = int.from_bytes(raw[at : at + 2], "big")
        size = int.from_bytes(raw[at + 2 : at + 4], "big")
        value = raw[at + 4 : at + 4 + size]
        if at + 4 + size > end:
            raise DecodeError("STUN attribute runs over the end")
        at += 4 + size + (-size & 3)
        if kind in (ATTR_XOR_MAPPED_ADDRESS, ATTR_XOR_MAPPED_ADDRESS_ALT):
            return txid, _address(value, MAGIC_COOKIE + txid)
        if kind == ATTR_MAPPED_ADDRESS:
            fallback = _address(value, bytes(16))
    if fallback is None:
        raise DecodeError("STUN response without an address")
    return txid, fallback


def _address(value: bytes, mask: bytes) -> Endpoint:
    if len(value) < 4:
        raise DecodeError("STUN address is too short")
    size = {1: 4, 2: 16}.get(value[1], 0)
    if not size or len(value) != 4 + size:
        raise DecodeError("STUN address of an unknown family")
    port = int.from_bytes(value[2:4], "big") ^ int.from_bytes(mask[:2], "big")
    ip = bytes(a ^ b for a, b in zip(value[4:], mask))
    return Endpoint(unmap(ip), port)


def _fingerprint(message: bytes) -> bytes:
    """RFC 5389 section 15.5; the length field in *message* already counts the FINGERPRINT."""
    return (zlib.crc32(message) ^ _FINGERPRINT_XOR).to_bytes(4, "big")
