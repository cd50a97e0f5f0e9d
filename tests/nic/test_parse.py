"""Form checks on single packets: the attack table's length and offset rows."""

import pytest

from tests.nic.kit import A4, A6, B4, B6, PEER, ip_packet, tcp_packet, udp_packet
from tsnetpy.base.stats import Drops
from tsnetpy.nic.parse import parse
from tsnetpy.wire import icmpv4, icmpv6, ipv4, ipv6, udp


def reason(packet: bytes, *, verify: bool = True) -> str:
    """Return why *packet* is dropped, or ``"ok"``."""
    drops = Drops()
    rx = parse(PEER, packet, drops, verify)
    if rx is not None:
        assert drops.total == 0
        if rx.problem >= 0:
            return f"problem {rx.problem >> 16} at {rx.problem & 0xFFFF}"
        return "ok"
    assert drops.total == 1
    return next(iter(drops.counts))


def v4(body: bytes, proto: int = 17, **fields: int) -> bytes:
    header = bytearray(ipv4.Ipv4Header(A4, B4, proto, 20 + len(body)).encode())
    for name, value in fields.items():
        if name == "first":
            header[0] = value
        elif name == "total":
            header[2:4] = value.to_bytes(2, "big")
        elif name == "frag":
            header[6:8] = value.to_bytes(2, "big")
    header[10:12] = bytes(2)
    total = -int.from_bytes(header, "big") % 65535
    header[10:12] = total.to_bytes(2, "big")
    return bytes(header) + body


DATAGRAM = udp.encode_datagram(A4, B4, 7, 9, b"hello")


@pytest.mark.checklist(53, 148, 149, 150)
@pytest.mark.attack(1, 2, 3, 9, 11, 12, 13, 14, 16, 17)
@pytest.mark.parametrize(
    ("packet", "why"),
    [
        (b"", "ip_version"),
        (b"\x00" * 40, "ip_version"),
        (b"\x75" + bytes(39), "ip_version"),
        (v4(DATAGRAM)[:19], "ip_length"),
        (v4(DATAGRAM, first=0x44), "ip_length"),
        (v4(DATAGRAM, first=0x4F), "ip_length"),
        (v4(DATAGRAM, total=19), "ip_length"),
        (v4(DATAGRAM, total=60), "ip_length"),
        (v4(DATAGRAM)[:10] + b"\x00\x00" + v4(DATAGRAM)[12:], "ip_checksum"),
        (v4(DATAGRAM), "ok"),
        (v4(DATAGRAM) + b"trailing bytes", "ok"),
        (v4(b"", 99), "ok"),
        # UDP lengths
        (v4(DATAGRAM[:7]), "transport_length"),
        (v4(DATAGRAM[:4] + b"\x00\x07" + DATAGRAM[6:]), "transport_length"),
        (v4(DATAGRAM[:4] + b"\x00\x0e" + DATAGRAM[6:]), "transport_length"),
        (v4(DATAGRAM[:-1] + b"?"), "udp_checksum"),
        (v4(DATAGRAM[:6] + b"\x00\x00" + DATAGRAM[8:]), "ok"),  # no checksum: allowed over IPv4 only
        (v4(DATAGRAM + b"padding"), "ok"),
        (v4(udp.encode_datagram(A4, B4, 0, 9, b"x")), "port_zero"),
        (v4(udp.encode_datagram(A4, B4, 9, 0, b"x")), "port_zero"),
        # TCP lengths
        (v4(tcp_packet(1)[20:39], 6), "transport_length"),
        (v4(tcp_packet(1)[20:32] + b"\x40" + tcp_packet(1)[33:], 6), "transport_length"),
        (v4(tcp_packet(1)[20:32] + b"\x60" + tcp_packet(1)[33:], 6), "transport_length"),
        (tcp_packet(1, sport=0), "port_zero"),
        # ICMP
        (v4(icmpv4.echo(True, 1, 1, b"x").encode(), 1), "ok"),
        (v4(icmpv4.echo(True, 1, 1, b"x").encode()[:7], 1), "transport_length"),
        (v4(icmpv4.echo(True, 1, 1, b"x").encode()[:-1] + b"y", 1), "icmp_checksum"),
        (v4(icmpv6.echo(True, 1, 1, b"x").encode(A6, B6), 58), "ip_protocol"),
        # fragments
        (v4(bytes(16), frag=0x2000), "ok"),
        (v4(bytes(15), frag=0x2000), "fragment_length"),
        (v4(b"", frag=0x2000), "fragment_length"),
        (v4(bytes(8), 6, frag=0x2000), "tiny_fragment"),  # a first fragment without the TCP flags
        (v4(bytes(8), frag=0x2000 | 9), "tiny_fragment"),  # could overwrite the TCP header (RFC 1858)
        (v4(bytes(8), frag=0x2000 | 10), "ok"),
        (v4(bytes(16), frag=0x1FFD), "ok"),
        (v4(bytes(1000), frag=0x1FFF), "fragment_length"),  # ping of death
    ],
)
def test_ipv4(packet: bytes, why: str) -> None:
    assert reason(packet) == why


@pytest.mark.checklist(148)
@pytest.mark.attack(7)
def test_source_routes_are_refused() -> None:
    for options, why in ((b"\x83\x07\x04\x01\x02\x03\x04\x00", "ip_options"), (b"\x94\x04\x00\x00", "ok")):
        header = ipv4.Ipv4Header(A4, B4, 17, 20 + len(options) + len(DATAGRAM), options=options).encode()
        assert reason(header + DATAGRAM) == why


def fragment6(body: bytes, offset: int, more: bool, proto: int = 17) -> bytes:
    return ip_packet(A6, B6, 44, ipv6.FragmentHeader(proto, offset, more, 5).encode() + body)


DATAGRAM6 = udp.encode_datagram(A6, B6, 7, 9, b"hello")


@pytest.mark.checklist(148, 149, 150)
@pytest.mark.attack(1, 4, 14, 16, 17)
@pytest.mark.parametrize(
    ("packet", "why"),
    [
        (b"\x60" + bytes(38), "ip_length"),
        (ip_packet(A6, B6, 17, DATAGRAM6), "ok"),
        (ip_packet(A6, B6, 17, b""), "ip_length"),  # payload length 0: a jumbogram or nothing
        (ip_packet(A6, B6, 17, DATAGRAM6)[:-1], "ip_length"),
        (ip_packet(A6, B6, 17, DATAGRAM6) + b"tail", "ok"),
        (ip_packet(A6, B6, 17, DATAGRAM6[:6] + b"\x00\x00" + DATAGRAM6[8:]), "udp_checksum"),
        (ip_packet(A6, B6, 0, b"\x11" + bytes(7) + DATAGRAM6), "ok"),
        (ip_packet(A6, B6, 60, b"\x11" + bytes(7) + DATAGRAM6), "ok"),
        (ip_packet(A6, B6, 1, icmpv4.echo(True, 1, 1, b"").encode()), "ip_protocol"),
        (ip_packet(A6, B6, 58, icmpv6.echo(True, 1, 1, b"x").encode(A6, B6)), "ok"),
        (ip_packet(A6, B6, 58, icmpv6.echo(True, 1, 1, b"x").encode(A6, A6)), "icmp_checksum"),
        (ip_packet(A6, B6, 44, bytes(7)), "ip_length"),
        (fragment6(bytes(16), 0, True), "ok"),
        (fragment6(bytes(15), 0, True), "problem 0 at 4"),
        (fragment6(b"", 80, False), "fragment_length"),
        (fragment6(bytes(8), 72, True), "tiny_fragment"),
        (fragment6(bytes(16), 0, True, 6), "tiny_fragment"),
        (fragment6(bytes(800), 65000, False), "problem 0 at 42"),
        (fragment6(DATAGRAM6, 0, False), "ok"),
    ],
)
def test_ipv6(packet: bytes, why: str) -> None:
    assert reason(packet) == why


@pytest.mark.checklist(149)
@pytest.mark.attack(20)
def test_atomic_fragment_is_a_whole_packet() -> None:
    rx = parse(PEER, fragment6(DATAGRAM6, 0, False), Drops())
    assert rx is not None
    assert not rx.fragment
    assert (rx.proto, rx.src_port, rx.dst_port, rx.transport()) == (17, 7, 9, DATAGRAM6)


@pytest.mark.checklist(150)
@pytest.mark.attack(3, 13)
def test_udp_padding_is_cut_off() -> None:
    rx = parse(PEER, v4(DATAGRAM + b"padding"), Drops())
    assert rx is not None
    assert rx.transport() == DATAGRAM


@pytest.mark.checklist(149)
@pytest.mark.attack(14)
def test_first_fragment_shows_ports_and_flags() -> None:
    segment = tcp_packet(1, b"x" * 12, flags=2)[20:]
    rx = parse(PEER, v4(segment, 6, frag=0x2000), Drops())
    assert rx is not None
    assert (rx.fragment, rx.frag_offset, rx.frag_more) == (True, 0, True)
    assert (rx.src_port, rx.dst_port, rx.flags) == (1000, 2000, 2)


def test_verification_can_be_off() -> None:
    bad = v4(DATAGRAM[:-1] + b"?")
    assert reason(bad, verify=False) == "ok"
    assert reason(udp_packet(b"x")[:10] + b"\x00\x00" + udp_packet(b"x")[12:], verify=False) == "ok"
