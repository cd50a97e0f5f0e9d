"""Every codec against scapy, an independent implementation, over generated packets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrFragment
from scapy.packet import Raw

from tsnetpy.base.addr import format_ip
from tsnetpy.base.errors import DecodeError
from tsnetpy.wire import icmpv4, icmpv6, ipv4, ipv6, pretty, tcp, tsmp, udp
from tsnetpy.wire.checksum import checksum, complement, fold, pseudo_header, raw_sum, transport_checksum, transport_ok

U8 = st.integers(0, 0xFF)
U16 = st.integers(0, 0xFFFF)
U32 = st.integers(0, 0xFFFFFFFF)
V4 = st.binary(min_size=4, max_size=4)
V6 = st.binary(min_size=16, max_size=16)
PORT = st.integers(1, 0xFFFF)


def slow_sum(data: bytes) -> int:
    """RFC 1071 as its text says it: add words, fold the carries."""
    if len(data) % 2:
        data += b"\x00"
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@given(st.binary(max_size=4000))
def test_sum_is_the_rfc_1071_sum(data: bytes) -> None:
    assert fold(raw_sum(data)) == slow_sum(data)
    assert checksum(data) == slow_sum(data) ^ 0xFFFF


@pytest.mark.parametrize("size", [0, 1, 2, 639, 640, 641, 1279, 1280, 1281, 65535])
@pytest.mark.parametrize("byte", [0x00, 0xFF, 0x01])
def test_sum_of_uniform_data(size: int, byte: int) -> None:
    # All zeros must fold to 0 and all ones to 0xFFFF: the two names that zero has modulo 65535.
    data = bytes((byte,)) * size
    assert fold(raw_sum(data)) == slow_sum(data)
    assert complement(raw_sum(data)) == slow_sum(data) ^ 0xFFFF


@given(st.binary(max_size=1500), st.binary(max_size=1500))
def test_sums_of_even_pieces_add_up(a: bytes, b: bytes) -> None:
    a = a[: len(a) & ~1]
    assert fold(raw_sum(a) + raw_sum(b)) == slow_sum(a + b)


@given(V4, V4, st.binary(min_size=8, max_size=200))
def test_transport_checksum_verifies(src: bytes, dst: bytes, segment: bytes) -> None:
    segment = segment[:6] + b"\x00\x00" + segment[8:]
    value = transport_checksum(src, dst, 17, segment)
    filled = segment[:6] + value.to_bytes(2, "big") + segment[8:]
    assert transport_ok(src, dst, 17, filled)
    assert fold(pseudo_header(src, dst, 17, len(filled)) + raw_sum(filled)) == 0xFFFF
    damaged = bytes((filled[0] ^ 1,)) + filled[1:]
    assert not transport_ok(src, dst, 17, damaged)


@given(V4, V4, U8, U8, U8, U16, st.booleans(), st.booleans(), st.integers(0, 8191), st.integers(0, 10))
def test_ipv4_header_is_scapys(
    src: bytes, dst: bytes, proto: int, ttl: int, tos: int, ident: int, df: bool, mf: bool, frag: int, words: int
) -> None:
    options = b"\x01" * (words * 4)
    ours = ipv4.Ipv4Header(src, dst, proto, 20 + len(options), ttl, tos, ident, df, mf, frag * 8, options)
    theirs = IP(
        src=format_ip(src), dst=format_ip(dst), proto=proto, ttl=ttl, tos=tos, id=ident,
        flags=(2 if df else 0) | (1 if mf else 0), frag=frag, options=[b"\x01"] * (words * 4),
    )  # fmt: skip
    wire = bytes(theirs)
    assert ours.encode() == wire
    assert ipv4.decode(wire) == ours


@given(V6, V6, U8, U8, U8, st.integers(0, 0xFFFFF), st.binary(max_size=64))
def test_ipv6_header_is_scapys(
    src: bytes, dst: bytes, proto: int, hops: int, tc: int, label: int, payload: bytes
) -> None:
    ours = ipv6.Ipv6Header(src, dst, proto, len(payload), hops, tc, label)
    theirs = IPv6(src=format_ip(src), dst=format_ip(dst), nh=proto, hlim=hops, tc=tc, fl=label, plen=len(payload))
    wire = bytes(theirs) + payload
    assert ours.encode() == wire[:40]
    assert ipv6.decode(wire) == ours


@given(U8, st.integers(0, 8191), st.booleans(), U32)
def test_ipv6_fragment_header_is_scapys(proto: int, offset: int, more: bool, ident: int) -> None:
    ours = ipv6.FragmentHeader(proto, offset * 8, more, ident)
    wire = bytes(IPv6ExtHdrFragment(nh=proto, offset=offset, m=int(more), id=ident))
    assert ours.encode() == wire
    assert ipv6.decode_fragment(wire) == ours


@given(V4, V4, PORT, PORT, U32, U32, U8, U16, st.booleans(), st.binary(max_size=300))
def test_tcp_header_is_scapys(
    src: bytes, dst: bytes, sport: int, dport: int, seq: int, ack: int, flags: int, wnd: int, stamps: bool, body: bytes
) -> None:
    options = [("NOP", None), ("NOP", None), ("Timestamp", (7, 9))] if stamps else []
    packet = IP(src=format_ip(src), dst=format_ip(dst)) / TCP(
        sport=sport, dport=dport, seq=seq, ack=ack, flags=flags, window=wnd, options=options
    )
    wire = bytes(packet / Raw(body) if body else packet)[20:]
    raw = bytes.fromhex("0101080a0000000700000009") if stamps else b""
    ours = tcp.TcpHeader(sport, dport, seq, ack, flags, wnd, 0, 0, raw)
    assert ours.encode(src, dst, body) + body == wire
    ours.checksum = int.from_bytes(wire[16:18], "big")
    assert tcp.decode(wire) == ours


@given(V6, V6, PORT, PORT, st.binary(max_size=300))
def test_udp_datagram_is_scapys(src: bytes, dst: bytes, sport: int, dport: int, body: bytes) -> None:
    packet = IPv6(src=format_ip(src), dst=format_ip(dst)) / UDP(sport=sport, dport=dport) / Raw(body)
    wire = bytes(packet)[40:]
    assert udp.encode_datagram(src, dst, sport, dport, body) == wire
    assert udp.decode(wire) == udp.UdpHeader(sport, dport, 8 + len(body), int.from_bytes(wire[6:8], "big"))


def test_udp_checksum_zero_is_sent_as_ones() -> None:
    # Chosen so that the words sum to 0xFFFF: its complement, 0, would mean "no checksum" (RFC 768).
    src, dst = bytes(4), bytes(4)
    body = (0xFFFF - (17 + 10 + 10 + 1 + 1)).to_bytes(2, "big")
    assert udp.encode_datagram(src, dst, 1, 1, body)[6:8] == b"\xff\xff"


@given(U16, U16, st.binary(max_size=200), V6, V6)
def test_echo_is_scapys(ident: int, seq: int, body: bytes, src: bytes, dst: bytes) -> None:
    wire = bytes(ICMP(type=8, id=ident, seq=seq) / Raw(body))
    message = icmpv4.echo(True, ident, seq, body)
    assert message.encode() == wire
    again = icmpv4.decode(wire)
    assert (again, again.ident, again.seq) == (message, ident, seq)

    packet = IPv6(src=format_ip(src), dst=format_ip(dst)) / ICMPv6EchoRequest(id=ident, seq=seq, data=body)
    message6 = icmpv6.echo(True, ident, seq, body)
    assert message6.encode(src, dst) == bytes(packet)[40:]
    assert icmpv6.decode(bytes(packet)[40:]) == message6


def test_tsmp_messages() -> None:
    rejected = tsmp.Rejected(6, tsmp.REASON_ACL, 4000, 80)
    assert rejected.encode() == b"!\x06A\x0f\xa0\x00\x50"
    assert tsmp.decode(rejected.encode()) == rejected
    broken = tsmp.Rejected(6, tsmp.REASON_SHIELDS_UP, 4000, 80, True)
    assert tsmp.decode(broken.encode()) == broken
    assert tsmp.decode(b"p12345678 and padding") == tsmp.Ping(b"12345678")
    assert tsmp.decode(b"o12345678") == tsmp.Pong(b"12345678", 0)
    assert tsmp.decode(tsmp.Pong(b"12345678", 58436).encode()) == tsmp.Pong(b"12345678", 58436)
    assert tsmp.decode(b"a" + bytes(32)) == tsmp.DiscoAdvert(bytes(32))
    for bad in (b"", b"p1234567"[:7], b"p1234567", b"o1234567", b"a" + bytes(31), b"?1234567"):
        with pytest.raises(DecodeError):
            tsmp.decode(bad)


@pytest.mark.attack(7)
def test_source_routes_and_malformed_options_are_seen() -> None:
    assert not ipv4.has_source_route(b"\x01\x01\x00\x83")  # end of list, what follows does not count
    assert not ipv4.has_source_route(b"\x94\x04\x00\x00")  # router alert
    assert ipv4.has_source_route(b"\x01\x83\x03\x04")
    assert ipv4.has_source_route(b"\x89\x03\x04\x00")
    assert ipv4.has_source_route(b"\x94\x00\x00\x00")  # length 0: a parser that believed it would never end
    assert ipv4.has_source_route(b"\x94\x05\x00\x00")


def test_tcp_option_lists() -> None:
    assert tcp.options_ok(b"")
    assert tcp.options_ok(b"\x02\x04\x04\xd8\x01\x00\xff\xff")
    assert not tcp.options_ok(b"\x02\x00\x04\xd8")
    assert not tcp.options_ok(b"\x02\x01\x04\xd8")
    assert not tcp.options_ok(b"\x01\x08")
    assert not tcp.options_ok(b"\x08\x0a\x00\x00")


@pytest.mark.attack(54)
@given(st.binary(max_size=120))
def test_decoders_refuse_or_return(data: bytes) -> None:
    for decode in (ipv4.decode, ipv6.decode, ipv6.decode_fragment, tcp.decode, udp.decode, icmpv4.decode, tsmp.decode):
        try:
            decode(data)
        except DecodeError:
            continue
    ipv4.has_source_route(data)
    tcp.options_ok(data)
    assert isinstance(pretty.packet(data), str)


def test_pretty_lines() -> None:
    packet = IP(src="1.2.3.4", dst="5.6.7.8", ttl=3) / TCP(sport=1000, dport=80, seq=7, ack=8, flags="SA", window=9)
    line = "IP 1.2.3.4 > 5.6.7.8 ttl 3 TCP 1000 > 80 [SA] seq 7 ack 8 win 9 len 2"
    assert pretty.packet(bytes(packet / Raw(b"hi"))) == line
    ping = IPv6(src="fd00::1", dst="fd00::2") / ICMPv6EchoRequest(id=1, seq=2, data=b"abc")
    assert pretty.packet(bytes(ping)) == "IP6 fd00::1 > fd00::2 ttl 64 ICMP6 echo request id 1 seq 2 len 3"
    late = IP(src="1.2.3.4", dst="5.6.7.8", frag=10, id=0x1234, proto=17) / Raw(b"x" * 8)
    assert pretty.packet(bytes(late)) == "IP 1.2.3.4 > 5.6.7.8 ttl 64 frag 0x1234:80 proto 17 len 8"
    assert pretty.packet(b"\x45").startswith("malformed")
