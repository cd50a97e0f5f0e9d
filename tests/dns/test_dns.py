"""The name table, names for dials, reverse names, framing, and hostile queries."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsnetpy.base.addr import parse_ip
from tsnetpy.base.errors import DecodeError
from tsnetpy.dns import (
    MAGIC_DNS_V4,
    MAGIC_DNS_V6,
    ExtraRecord,
    MagicHost,
    MagicTable,
    MessageFramer,
    answer,
    frame_message,
    resolve_name,
    reverse_name,
)
from tsnetpy.dns.magic import address_of_reverse_name, via_address

V4, V6 = parse_ip("100.64.0.1"), parse_ip("fd7a:115c:a1e0::1")
HOSTS = [
    MagicHost("Web.Tail.Example.", (V6, V4)),
    MagicHost("six.tail.example", (V6,)),
    MagicHost("wild.tail.example", (V4, V6), subdomains=True),
    MagicHost("shared.other.example", (V4,)),
]


def table(*, bare_names: bool = True, answer_aaaa: bool = False) -> MagicTable:
    extra = [ExtraRecord("db.corp", V4), ExtraRecord("db.corp", parse_ip("10.0.0.1"))]
    return MagicTable(
        "tail.example",
        HOSTS,
        extra,
        search_domains=["tail.example", "corp"],
        bare_names=bare_names,
        answer_aaaa=answer_aaaa,
    )


def query(name: str, qtype: int, flags: int = 0x0100) -> bytes:
    labels = b"".join(bytes((len(part),)) + part.encode() for part in name.split(".") if part)
    return struct.pack("!6H", 7, flags, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", qtype, 1)


def ask(name: str, qtype: int, names: MagicTable) -> tuple[int, int, bytes]:
    """Return rcode, number of answers, and the whole message."""
    message = answer(query(name, qtype), names, 1)
    return message[3] & 15, struct.unpack("!H", message[6:8])[0], message


@pytest.mark.parametrize("name", ["web", "WEB", "web.", "web.tail.example", "Web.TAIL.example."])
def test_a_dial_finds_both_families_v4_first(name: str) -> None:
    assert resolve_name(table(), name) == (V4, V6)


def test_a_dial_uses_search_domains_unless_the_name_ends_in_a_dot() -> None:
    assert resolve_name(table(), "db") == (V4, parse_ip("10.0.0.1"))
    assert resolve_name(table(), "db.") == ()


def test_bare_names_only_below_the_suffix_and_only_with_magic_dns() -> None:
    assert resolve_name(table(), "shared") == ()
    assert ask("web", 1, table(bare_names=False))[0] == 2
    # The search domain still completes it for a dial.
    assert resolve_name(table(bare_names=False), "web") == (V4, V6)


def test_subdomains_resolve_only_below_a_host_with_the_capability() -> None:
    assert resolve_name(table(), "a.b.wild.tail.example") == (V4, V6)
    assert resolve_name(table(), "a.web.tail.example") == ()
    assert ask("x.wild.tail.example", 1, table())[:2] == (0, 1)


def test_aaaa_of_a_host_with_ipv4_is_shown_on_request_only() -> None:
    assert ask("web.tail.example", 28, table())[:2] == (0, 0)
    assert ask("web.tail.example", 28, table(answer_aaaa=True))[:2] == (0, 1)
    assert ask("six.tail.example", 28, table())[:2] == (0, 1)


def test_the_resolver_has_a_name_for_dials() -> None:
    assert resolve_name(table(), "magicdns.localhost-tailscale-daemon") == (MAGIC_DNS_V4, MAGIC_DNS_V6)


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("10-1-1-1-via-0x10", "fd7a:115c:a1e0:b1a:0:10:a01:101"),
        ("10-1-1-1-via-0b11.foo.ts.net", "fd7a:115c:a1e0:b1a:0:3:a01:101"),
        ("10-1-1-1-via-4294967296", None),
        ("10-1-1-1-via-08", None),
        ("10-1-1-1-via-", None),
        ("10-1-1-1-via-٣", None),
        ("10-1-1-1-via-7.example.com", None),
        ("10-1-1-via-7", None),
    ],
)
def test_4via6_names(name: str, address: str | None) -> None:
    assert via_address(name) == (parse_ip(address) if address else None)


@given(st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16))
def test_reverse_names_come_back(ip: bytes) -> None:
    assert address_of_reverse_name(reverse_name(ip)) == ip


@given(st.binary(max_size=80), st.booleans())
def test_any_bytes_get_an_answer_with_the_same_identifier(data: bytes, tcp: bool) -> None:
    message = answer(data, table(), 0, tcp=tcp)
    assert message[2] & 0x80
    if len(data) >= 12:
        assert message[:2] == data[:2]


@given(st.binary(max_size=60))
def test_any_question_gets_an_answer(data: bytes) -> None:
    message = answer(struct.pack("!6H", 9, 0x0100, 1, 0, 0, 0) + data, table(), 0)
    assert message[:3] == b"\0\x09\x85"


def test_a_pointer_chain_is_refused_at_once() -> None:
    chain = b"".join(struct.pack("!H", 0xC000 | at) for at in range(10, 4000, 2))
    message = answer(struct.pack("!6H", 9, 0x0100, 1, 0, 0, 0) + chain, table(), 0)
    assert message[3] & 15 == 1


def test_a_long_name_is_answered_within_512_bytes_over_udp_and_whole_over_tcp() -> None:
    name = ".".join(["a" * 60, "b" * 60, "c" * 60, "d" * 40]) + ".wild.tail.example"
    over_udp = answer(query(name, 1), table(), 0)
    over_tcp = answer(query(name, 1), table(), 0, tcp=True)
    assert len(over_udp) <= 512 < len(over_tcp)
    assert over_udp.endswith(V4)


def test_stream_framing_whatever_the_cuts() -> None:
    stream = frame_message(b"abc") + frame_message(b"") + frame_message(b"de")
    for cut in range(1, 5):
        framer = MessageFramer()
        got = [message for at in range(0, len(stream), cut) for message in framer.feed(stream[at : at + cut])]
        assert got == [b"abc", b"", b"de"]


def test_a_stream_that_is_not_dns_is_refused() -> None:
    with pytest.raises(DecodeError):
        MessageFramer().feed(b"GET / HTTP/1.1\r\n")
