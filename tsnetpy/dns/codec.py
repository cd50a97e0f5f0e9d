"""DNS messages (RFC 1035) between bytes and two small values. The only importer of dnslib.

dnslib writes the answers. The first question of a query is read here, because a server for the tailnet has to take what
dnslib refuses (labels that are not UTF-8) and to refuse what dnslib follows (chains of compression pointers, which it
walks by recursion: a cheap way to exhaust the stack).
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from dnslib import AAAA, PTR, RR, SOA, A
from dnslib.dns import DNSHeader, DNSQuestion
from dnslib.label import DNSBuffer, DNSLabel

from tsnetpy.base.addr import IpBytes
from tsnetpy.base.errors import DecodeError

HEADER_BYTES: Final = 12
MAX_NAME_BYTES: Final = 255
UDP_PAYLOAD_BYTES: Final = 512
"""What a UDP client without EDNS can be sent (RFC 1035 §2.3.4)."""

_HEADER: Final = struct.Struct("!HHHHHH")

QR: Final = 0x8000
AA: Final = 0x0400
TC: Final = 0x0200
RD: Final = 0x0100
RA: Final = 0x0080
AD: Final = 0x0020
CD: Final = 0x0010
OPCODE_MASK: Final = 0x7800


class QType(IntEnum):
    """The record types that this server tells apart."""

    A = 1
    NS = 2
    SOA = 6
    PTR = 12
    HINFO = 13
    AAAA = 28
    AXFR = 252
    ANY = 255


class Rcode(IntEnum):
    """Response codes (RFC 1035 §4.1.1)."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4


@dataclass(frozen=True, slots=True)
class Question:
    """The first question of a query."""

    labels: tuple[bytes, ...]
    """As on the wire, in the case of the asker; empty for the root."""
    qtype: int
    qclass: int

    @property
    def name(self) -> str:
        """The name in lower case without a final dot (Latin-1: one character per byte)."""
        return b".".join(self.labels).decode("latin-1").lower()


@dataclass(frozen=True, slots=True)
class Query:
    """A query: its header and its first question, which is absent when it cannot be read."""

    ident: int
    flags: int
    question: Question | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What to say to a query; :func:`encode_answer` turns it into bytes."""

    rcode: Rcode
    addresses: tuple[IpBytes, ...] = ()
    """A or AAAA records, by length."""
    pointer: str = ""
    """The target of a PTR record."""
    soa_zone: str = ""
    """The zone whose SOA goes into the authority section (RFC 2308)."""
    authoritative: bool = True
    recursion_available: bool = True


def decode_query(data: bytes) -> Query:
    """Read the header and the first question of *data*; what follows them is ignored.

    Raises:
        DecodeError: *data* is shorter than a header.
    """
    if len(data) < HEADER_BYTES:
        raise DecodeError("DNS message shorter than its header")
    ident, flags, question_count, _, _, _ = _HEADER.unpack_from(data)
    return Query(ident, flags, _read_question(data) if question_count else None)


def _read_question(data: bytes) -> Question | None:
    """Read the question that starts after the header, or return None when it is malformed."""
    labels: list[bytes] = []
    at = HEADER_BYTES
    while True:
        if at >= len(data):
            return None
        length = data[at]
        at += 1
        if length == 0:
            break
        # Pointers and reserved label types alike: nothing a first question could point to precedes it.
        if length > 63 or at + length > len(data) or at + length - HEADER_BYTES >= MAX_NAME_BYTES:
            return None
        label = data[at : at + length]
        if b"." in label:  # would read as two labels in every text form
            return None
        labels.append(label)
        at += length
    if at + 4 > len(data):
        return None
    return Question(
        tuple(labels), int.from_bytes(data[at : at + 2], "big"), int.from_bytes(data[at + 2 : at + 4], "big")
    )


def encode_answer(query: Query, answer: Answer, *, ttl_s: int, soa_ttl_s: int, serial: int, compress: bool) -> bytes:
    """Return the message that answers *query*.

    RD, CD, AD, TC and the opcode are those of the query, and RA follows RD, as recorded from the official resolver.

    Args:
        query: what was asked.
        answer: what to say.
        ttl_s: for address and PTR records, in seconds.
        soa_ttl_s: for the SOA record and the four times inside it, in seconds.
        serial: the serial number inside the SOA record.
        compress: use name compression (RFC 1035 §4.1.4).
    """
    flags = QR | (query.flags & (OPCODE_MASK | RD | TC | AD | CD)) | int(answer.rcode)
    if answer.authoritative:
        flags |= AA
    if answer.recursion_available and query.flags & RD:
        flags |= RA
    question = query.question
    buffer = DNSBuffer()
    if not compress:
        buffer.encode_name = buffer.encode_name_nocompress
    records = [] if question is None else _records(question, answer, ttl_s)
    header = DNSHeader(query.ident, flags, q=question is not None, a=len(records), auth=bool(answer.soa_zone))
    header.pack(buffer)
    if question is not None:
        DNSQuestion(DNSLabel(question.labels), question.qtype, question.qclass).pack(buffer)
    for record in records:
        record.pack(buffer)
    if answer.soa_zone:
        zone = _label(answer.soa_zone)
        data = SOA(zone, zone, (serial & 0xFFFFFFFF, soa_ttl_s, soa_ttl_s, soa_ttl_s, soa_ttl_s))
        RR(zone, int(QType.SOA), ttl=soa_ttl_s, rdata=data).pack(buffer)
    return bytes(buffer.data)


def _records(question: Question, answer: Answer, ttl_s: int) -> list[RR]:
    owner = DNSLabel(question.labels)
    records = [
        RR(owner, int(QType.A), ttl=ttl_s, rdata=A(tuple(ip)))
        if len(ip) == 4
        else RR(owner, int(QType.AAAA), ttl=ttl_s, rdata=AAAA(tuple(ip)))
        for ip in answer.addresses
    ]
    if answer.pointer:
        records.append(RR(owner, int(QType.PTR), ttl=ttl_s, rdata=PTR(_label(answer.pointer))))
    return records


def _label(name: str) -> DNSLabel:
    """Return *name* as dnslib wants it; bytes, so that it applies neither IDNA nor escapes."""
    return DNSLabel(tuple(name.encode("latin-1", "replace").split(b".")))
