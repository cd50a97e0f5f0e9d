"""IPv6 extension headers: order, action bits, bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ipstack.kit import feed, make_stack
from tests.nic.kit import A6, B6, PEER, ip_packet, tcp_packet
from tsnetpy.base.stats import Drops
from tsnetpy.nic.extensions import MAX_HEADERS, walk
from tsnetpy.nic.parse import parse
from tsnetpy.wire import icmpv6, ipv6, udp

UDP6 = udp.encode_datagram(B6, A6, 7, 9, b"hello")
HOP, ROUTING, FRAGMENT, DESTINATION, NONE = 0, 43, 44, 60, 59


def options(following: int, body: bytes = b"\x01\x04\0\0\0\0") -> bytes:
    """Return an options header; *body* must leave the whole a multiple of eight."""
    assert len(body) % 8 == 6
    return bytes((following, (len(body) + 2) // 8 - 1)) + body


def routing(following: int, kind: int, left: int) -> bytes:
    return bytes((following, 0, kind, left)) + bytes(4)


def frag(following: int, offset: int, more: bool, ident: int = 5) -> bytes:
    return ipv6.FragmentHeader(following, offset, more, ident).encode()


def outcome(first: int, body: bytes) -> str:
    drops = Drops()
    rx = parse(PEER, ip_packet(B6, A6, first, body), drops)
    if rx is None:
        assert drops.total == 1
        return next(iter(drops.counts))
    assert drops.total == 0
    if rx.problem >= 0:
        return f"problem {rx.problem >> 16} at {rx.problem & 0xFFFF}"
    return f"{'fragment' if rx.fragment else 'whole'} of {rx.proto} port {rx.dst_port}"


@pytest.mark.checklist(148)
@pytest.mark.attack(19)
@pytest.mark.parametrize(
    ("first", "body", "expected"),
    [
        (HOP, options(17) + UDP6, "whole of 17 port 9"),
        (HOP, options(DESTINATION) + options(17) + UDP6, "whole of 17 port 9"),
        (HOP, options(6, b"\x05\x02\0\0\x01\0") + tcp_packet(1, b"x", src=B6, dst=A6)[40:], "whole of 6 port 2000"),
        (DESTINATION, options(HOP) + options(17) + UDP6, "problem 1 at 40"),  # hop-by-hop not first
        (FRAGMENT, frag(HOP, 0, False) + options(17) + UDP6, "problem 1 at 40"),
        (ROUTING, routing(17, 0, 0) + UDP6, "whole of 17 port 9"),  # used up
        (ROUTING, routing(17, 0, 1) + UDP6, "problem 0 at 42"),  # type 0 with a segment left (RFC 5095)
        (DESTINATION, options(ROUTING) + routing(17, 4, 9) + UDP6, "problem 0 at 50"),
        # options by their action bits: 00 skip, 01 drop, 10 and 11 report
        (DESTINATION, options(17, b"\x3e\x04\0\0\0\0") + UDP6, "whole of 17 port 9"),
        (DESTINATION, options(17, b"\x7e\x04\0\0\0\0") + UDP6, "ip_options"),
        (DESTINATION, options(17, b"\x00\x00\xbe\x02\0\0") + UDP6, "problem 2 at 44"),
        (HOP, options(17, b"\xfe\x04\0\0\0\0") + UDP6, "problem 2 at 42"),
        (HOP, options(17, b"\xc2\x04\0\x01\0\0") + UDP6, "problem 2 at 42"),  # a jumbogram's
        # lengths
        (DESTINATION, options(17, b"\x01\x05\0\0\0\0") + UDP6, "ip_options"),  # the option runs past its header
        (DESTINATION, options(17, b"\0\0\0\0\0\x01") + UDP6, "ip_options"),  # no room for its length
        (DESTINATION, b"\x11\x09" + bytes(14), "ip_length"),  # the header runs past the packet
        (DESTINATION, b"\x11\x00\x01\x04\0\0", "ip_length"),
        (DESTINATION, options(17), "transport_length"),
        (DESTINATION, options(DESTINATION) * MAX_HEADERS + UDP6, "ip_options"),  # longer than anybody needs
        (DESTINATION, options(1) + UDP6, "ip_protocol"),
        (NONE, b"x" * 8, "whole of 59 port 0"),
        # behind a Fragment header
        (FRAGMENT, frag(DESTINATION, 0, False) + options(17) + UDP6, "whole of 17 port 9"),
        (FRAGMENT, frag(FRAGMENT, 0, False) + frag(17, 0, False) + UDP6, "ip_options"),
        (FRAGMENT, frag(FRAGMENT, 0, True) + frag(17, 0, True) + UDP6 + bytes(3), "tiny_fragment"),
        (FRAGMENT, frag(DESTINATION, 0, True) + options(17) + UDP6 + bytes(3), "fragment of 17 port 9"),
        (FRAGMENT, frag(DESTINATION, 0, True) + options(DESTINATION), "tiny_fragment"),  # RFC 7112: no transport
        (FRAGMENT, frag(DESTINATION, 0, True) + options(17), "tiny_fragment"),
        (FRAGMENT, frag(ROUTING, 0, True) + routing(17, 0, 3) + UDP6 + bytes(3), "problem 0 at 50"),
        (FRAGMENT, frag(DESTINATION, 80, True) + bytes(8), "fragment of 60 port 0"),
        (FRAGMENT, frag(17, 0, True)[:6], "ip_length"),
    ],
)  # fmt: skip
def test_chains(first: int, body: bytes, expected: str) -> None:
    assert outcome(first, body) == expected


@pytest.mark.checklist(148)
def test_parameter_problem_points_at_the_culprit() -> None:
    stack = make_stack()
    packet = ip_packet(B6, A6, HOP, options(17, b"\xfe\x04\0\0\0\0") + UDP6)
    (error,) = feed(stack, packet)
    message = icmpv6.decode(error[40:])
    assert (message.type, message.code, message.rest) == (icmpv6.PARAMETER_PROBLEM, icmpv6.CODE_UNKNOWN_OPTION, 42)
    assert message.body == packet
    (error,) = feed(stack, ip_packet(B6, A6, DESTINATION, options(47) + b"gre?"))
    message = icmpv6.decode(error[40:])
    assert (message.code, message.rest) == (icmpv6.CODE_UNKNOWN_NEXT_HEADER, 40)
    (error,) = feed(stack, ip_packet(B6, A6, FRAGMENT, frag(DESTINATION, 0, False) + options(47) + b"gre?"))
    assert icmpv6.decode(error[40:]).rest == 48
    assert feed(stack, ip_packet(B6, A6, NONE, b"nothing follows")) == []


@pytest.mark.checklist(149)
@pytest.mark.attack(16, 17)
def test_sizes_that_no_fragment_has_are_reported() -> None:
    stack = make_stack()
    for piece, offset, pointer in ((bytes(15), 0, 4), (bytes(800), 65000, 42)):
        (error,) = feed(stack, ip_packet(B6, A6, FRAGMENT, frag(17, offset, pointer == 4) + piece))
        message = icmpv6.decode(error[40:])
        assert (message.type, message.code, message.rest) == (icmpv6.PARAMETER_PROBLEM, 0, pointer)


@pytest.mark.checklist(149)
@pytest.mark.attack(20)
def test_fragments_with_headers_on_both_sides_come_together() -> None:
    stack = make_stack()
    socket = stack.udp_bind(9)
    whole = options(17) + udp.encode_datagram(B6, A6, 7, 9, bytes(range(200)))
    for start, end in ((80, len(whole)), (0, 80)):
        body = options(FRAGMENT) + frag(DESTINATION, start, end < len(whole)) + whole[start:end]
        assert feed(stack, ip_packet(B6, A6, HOP, body)) == []
        # An atomic fragment of the same identification has nothing to do with them (RFC 6946).
        assert feed(stack, ip_packet(B6, A6, FRAGMENT, frag(17, 0, False) + UDP6)) == []
    payloads = []
    while (item := socket.recv_from()) is not None:
        payloads.append(item[0])
    assert payloads == [b"hello", bytes(range(200)), b"hello"]


@given(st.sampled_from([0, 43, 44, 60]), st.binary(max_size=200), st.booleans())
@pytest.mark.attack(54)
def test_any_chain_ends(first: int, body: bytes, verify: bool) -> None:
    packet = ip_packet(B6, A6, first, body)
    drops = Drops()
    rx = parse(PEER, packet, drops, verify)
    assert (rx is None) == bool(drops.total)
    chain = walk(packet, first, 40, 6)
    assert 40 <= chain.at <= len(packet) + 8
