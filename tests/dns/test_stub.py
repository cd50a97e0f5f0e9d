"""The asking side: queries, answers with aliases, and hostile answers."""

import struct

import pytest
from dnslib import AAAA, CNAME, QTYPE, RR, A, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from tsnetpy.base.addr import parse_ip
from tsnetpy.base.errors import DecodeError
from tsnetpy.dns.codec import QType
from tsnetpy.dns.stub import StubAnswer, decode_answer, encode_query

QUERY = encode_query(7, "Web.example.", QType.A)
V4 = parse_ip("10.0.0.1")


def reply(query: bytes, *records: RR, **header: int) -> bytes:
    """Return what dnslib makes of an answer."""
    message = DNSRecord.parse(query).reply(ra=1, aa=0)
    for record in records:
        message.add_answer(record)
    for name, value in header.items():
        setattr(message.header, name, value)
    return bytes(message.pack())


def a(owner: str, ip: str = "10.0.0.1", ttl: int = 60) -> RR:
    return RR(owner, QTYPE.A, rdata=A(ip), ttl=ttl)


def alias(owner: str, to: str, ttl: int = 60) -> RR:
    return RR(owner, QTYPE.CNAME, rdata=CNAME(to), ttl=ttl)


def test_a_query_is_what_others_read() -> None:
    parsed = DNSRecord.parse(QUERY)
    assert (parsed.header.id, parsed.header.rd, str(parsed.q.qname), parsed.q.qtype) == (7, 1, "Web.example.", 1)
    assert str(DNSRecord.parse(encode_query(1, "bücher.example", QType.AAAA)).q.qname) == "xn--bcher-kva.example."


@pytest.mark.parametrize("name", ["", ".", "a..b", "x" * 64, ".".join(["x" * 60] * 5)])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(ValueError, match=r"^a (name|label)"):
        encode_query(1, name, QType.A)


def test_addresses_through_aliases() -> None:
    data = reply(QUERY, alias("web.example", "a.example", 30), alias("a.example", "b.example"), a("B.example"))
    assert decode_answer(data, QUERY) == StubAnswer(0, (V4,), 30)
    data = reply(QUERY, a("web.example", ttl=0), a("web.example", "10.0.0.2", 90))
    assert decode_answer(data, QUERY) == StubAnswer(0, (V4, parse_ip("10.0.0.2")), 0)
    assert decode_answer(reply(QUERY, a("web.example", ttl=86400)), QUERY) == StubAnswer(0, (V4,), 300)
    six = encode_query(8, "web.example", QType.AAAA)
    data = reply(six, RR("web.example", QTYPE.AAAA, rdata=AAAA("fd00::1"), ttl=5), a("web.example"))
    assert decode_answer(data, six) == StubAnswer(0, (parse_ip("fd00::1"),), 5)


def test_records_of_other_names_and_alias_loops_say_nothing() -> None:
    assert decode_answer(reply(QUERY, a("other.example")), QUERY) == StubAnswer(0)
    loop = reply(QUERY, alias("web.example", "b.example"), alias("b.example", "web.example"))
    assert decode_answer(loop, QUERY) == StubAnswer(0)


def test_codes_and_truncation() -> None:
    missing = decode_answer(reply(QUERY, rcode=3), QUERY)
    assert missing is not None
    assert not missing.exists
    cut = decode_answer(reply(QUERY, tc=1), QUERY)
    assert cut is not None
    assert (cut.truncated, cut.exists) == (True, True)


def test_answers_to_something_else_are_passed_over() -> None:
    good = reply(QUERY, a("web.example"))
    assert decode_answer(bytes(2) + good[2:], QUERY) is None
    assert decode_answer(QUERY, QUERY) is None
    assert decode_answer(reply(encode_query(7, "web.example", QType.AAAA)), QUERY) is None
    assert decode_answer(reply(encode_query(7, "wep.example", QType.A), a("wep.example")), QUERY) is None


def test_pointers_that_lead_nowhere() -> None:
    head = struct.pack("!6H", 7, 0x8180, 1, 1, 0, 0) + QUERY[12:]
    for name in (b"\xc0" + bytes((len(head),)), b"\xff\xff", b"\x40x"):
        with pytest.raises(DecodeError):
            decode_answer(head + name + struct.pack("!HHIH", 1, 1, 9, 4) + V4, QUERY)
    for cut in (b"\xc0", b"\xc0\x0c\0", b""):
        with pytest.raises(DecodeError):
            decode_answer(head + cut, QUERY)
    with pytest.raises(DecodeError):
        decode_answer(head + b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 9, 5) + V4, QUERY)


@given(st.binary(max_size=120), st.integers(0, 80))
def test_garbage_is_nothing_or_a_decode_error(noise: bytes, keep: int) -> None:
    data = reply(QUERY, alias("web.example", "b.example"), a("b.example"))[:keep] + noise
    try:
        found = decode_answer(data, QUERY)
    except DecodeError:
        return
    assert found is None or all(len(ip) == 4 for ip in found.addresses)
