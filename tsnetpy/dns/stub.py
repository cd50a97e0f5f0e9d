"""The asking side of DNS: queries for addresses, and what the answer says (RFC 1035, RFC 3596). No I/O here.

Answers come from a server that is not trusted with more than names: each field is checked, compression pointers may
only point backwards and their number is bounded, and records that do not belong to the question are left out.
"""

import struct
from dataclasses import dataclass
from typing import Final

from tsnetpy.base.addr import IpBytes
from tsnetpy.base.errors import DecodeError

from .codec import HEADER_BYTES, MAX_NAME_BYTES, QR, RD, TC, QType, Rcode

MAX_RECORDS: Final = 128
MAX_TTL_S: Final = 300
"""Longest time that an answer is believed, whatever it says."""
_MAX_POINTERS: Final = 16
_MAX_ALIASES: Final = 8
_CNAME: Final = 5
_CLASS_IN: Final = 1

_HEADER: Final = struct.Struct("!HHHHHH")
_QUESTION_END: Final = struct.Struct("!HH")
_RECORD: Final = struct.Struct("!HHIH")


@dataclass(frozen=True, slots=True)
class StubAnswer:
    """What a server says about one name."""

    rcode: int
    addresses: tuple[IpBytes, ...] = ()
    """Of the family that was asked for, aliases (CNAME) followed."""
    ttl_s: int = 0
    """How long that may be kept; 0 without addresses."""
    truncated: bool = False
    """The rest has to be asked for over TCP."""

    @property
    def exists(self) -> bool:
        """False if the server says that there is no such name."""
        return self.rcode != Rcode.NXDOMAIN


def encode_name(name: str) -> bytes:
    """Return *name* as labels; beyond ASCII as IDNA.

    Raises:
        ValueError: an empty label, or one of more than 63 bytes, or a name of more than 255.
    """
    out = bytearray()
    for label in name.removesuffix(".").split("."):
        try:
            raw = label.encode("ascii") if label.isascii() else label.encode("idna")
        except UnicodeError:
            raw = b""
        if not 0 < len(raw) <= 63:
            raise ValueError("a label of a name has 1 to 63 bytes")
        out += bytes((len(raw),)) + raw
    out.append(0)
    if len(out) > MAX_NAME_BYTES:
        raise ValueError("a name has at most 255 bytes")
    return bytes(out)


def encode_query(ident: int, name: str, qtype: QType) -> bytes:
    """Return a query with recursion desired.

    Args:
        ident: 16 unpredictable bits.
        name: what to ask about.
        qtype: A or AAAA.

    Raises:
        ValueError: *name* cannot be a DNS name.
    """
    return _HEADER.pack(ident, RD, 1, 0, 0, 0) + encode_name(name) + _QUESTION_END.pack(qtype, _CLASS_IN)


def decode_answer(data: bytes, query: bytes) -> StubAnswer | None:
    """Return what *data* says to *query*, or ``None`` if it is the answer to something else.

    Raises:
        DecodeError: *data* is no DNS message.
    """
    if len(data) < HEADER_BYTES:
        raise DecodeError("DNS message shorter than its header")
    ident, flags, questions, answers, _, _ = _HEADER.unpack_from(data)
    if ident != int.from_bytes(query[:2], "big") or not flags & QR or questions != 1:
        return None
    asked, at = _read_name(query, HEADER_BYTES)
    qtype, _ = _QUESTION_END.unpack_from(query, at)
    repeated, at = _read_name(data, HEADER_BYTES)
    if repeated != asked or data[at : at + 4] != query[-4:]:
        return None
    at += 4
    rcode, truncated = flags & 15, bool(flags & TC)
    if rcode:
        return StubAnswer(rcode, truncated=truncated)
    aliases: dict[bytes, tuple[bytes, int]] = {}
    found: dict[bytes, list[tuple[IpBytes, int]]] = {}
    size = 4 if qtype == QType.A else 16
    for _ in range(min(answers, MAX_RECORDS)):
        owner, at = _read_name(data, at)
        if at + _RECORD.size > len(data):
            raise DecodeError("DNS record ends early")
        kind, klass, ttl, length = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        if at + length > len(data):
            raise DecodeError("DNS record ends early")
        if klass == _CLASS_IN and kind == _CNAME:
            aliases[owner] = _read_name(data, at)[0], ttl
        elif klass == _CLASS_IN and kind == qtype and length == size:
            found.setdefault(owner, []).append((data[at : at + length], ttl))
        at += length
    name, shortest = asked, MAX_TTL_S
    for _ in range(_MAX_ALIASES):
        if name not in aliases:
            break
        name, ttl = aliases[name]
        shortest = min(shortest, ttl)
    records = found.get(name, [])
    shortest = min([shortest, *(ttl for _, ttl in records)])
    return StubAnswer(rcode, tuple(ip for ip, _ in records), shortest if records else 0, truncated)


def _read_name(data: bytes, at: int) -> tuple[bytes, int]:
    """Return the name at *at*, folded to lower case with its length bytes, and where it ends."""
    out = bytearray()
    end = -1
    pointers = 0
    while True:
        if at >= len(data):
            raise DecodeError("DNS name ends early")
        length = data[at]
        if length == 0:
            return bytes(out).lower(), at + 1 if end < 0 else end
        if length >= 0xC0:
            if at + 2 > len(data):
                raise DecodeError("DNS name ends early")
            target = (length & 0x3F) << 8 | data[at + 1]
            pointers += 1
            if target >= at or pointers > _MAX_POINTERS:
                raise DecodeError("DNS name with a pointer that leads nowhere")
            end = at + 2 if end < 0 else end
            at = target
            continue
        if length > 63 or at + 1 + length > len(data) or len(out) + length >= MAX_NAME_BYTES:
            raise DecodeError("DNS name with a bad label")
        out += data[at : at + 1 + length]
        at += 1 + length
