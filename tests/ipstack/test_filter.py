"""The packet filter against the table of the control protocol reference, section 7."""

import pytest

from tests.ipstack.kit import A4, A6, B4, B6, C4
from tests.nic.kit import PEER, ip_packet, tcp_packet
from tsnetpy.base.addr import parse_ip, parse_prefix
from tsnetpy.base.packet import PROTO_TCP, PROTO_TSMP, TxPacket
from tsnetpy.base.stats import Drops
from tsnetpy.ipstack import DstRange, FilterRule, IpRange, PacketFilter, parse_ip_ranges
from tsnetpy.ipstack.filter import ANY_IP, CONNTRACK_ENTRIES
from tsnetpy.nic.gro import coalesce
from tsnetpy.nic.rx import RxPacket
from tsnetpy.wire import icmpv4, icmpv6, tcp, tsmp, udp

LOCAL = (A4, A6)


def rule(srcs: str, dst: str, first: int = 0, last: int = 65535, protos: tuple[int, ...] = ()) -> FilterRule:
    sources = tuple(r for text in srcs.split() for r in parse_ip_ranges(text))
    dsts = tuple(DstRange(r, first, last) for r in parse_ip_ranges(dst))
    return FilterRule(sources, dsts, frozenset(protos))


def make(*rules: FilterRule, shields_up: bool = False) -> PacketFilter:
    table = PacketFilter()
    table.configure(rules, LOCAL, shields_up)
    return table


def rx(packet: bytes) -> RxPacket:
    (unit,) = coalesce([(PEER, packet)], Drops(), verify=False)
    return unit


def syn(dport: int = 80, src: bytes = B4, dst: bytes = A4) -> RxPacket:
    return rx(tcp_packet(1, src=src, dst=dst, dport=dport, flags=tcp.SYN, ack=0))


def datagram(dport: int = 53, src: bytes = B4, dst: bytes = A4, sport: int = 1000) -> RxPacket:
    return rx(ip_packet(src, dst, 17, udp.encode_datagram(src, dst, sport, dport, b"x")))


def echo(kind: int, src: bytes = B4, dst: bytes = A4) -> RxPacket:
    if len(src) == 16:
        return rx(ip_packet(src, dst, 58, icmpv6.Icmpv6Message(kind, 0).encode(src, dst)))
    return rx(ip_packet(src, dst, 1, icmpv4.Icmpv4Message(kind, 0).encode()))


def outbound(dst: bytes, sport: int, dport: int, src: bytes = A4, proto: int = 17) -> TxPacket:
    return TxPacket(src, dst, proto, udp.UdpHeader(sport, dport, 8).encode(), [], 0)


ALL = rule("*", "*")


def test_nothing_comes_in_by_default() -> None:
    table = make()
    for packet in (syn(), datagram(), echo(8), echo(128, B6, A6), rx(ip_packet(B4, A4, 47, b"x" * 8))):
        assert not table.check_inbound(packet)
    assert table.drops.snapshot() == {"rule": 5}
    assert table.accepted == 0


def test_unconfigured_filter_denies() -> None:
    assert not PacketFilter().check_inbound(syn())


@pytest.mark.parametrize("flags", [tcp.ACK, tcp.SYN | tcp.ACK, tcp.RST, tcp.FIN | tcp.ACK, tcp.PSH, 0])
def test_tcp_that_does_not_open_a_connection_passes(flags: int) -> None:
    assert make().check_inbound(rx(tcp_packet(1, b"x", src=B4, dst=A4, flags=flags)))


def test_answers_pass_for_icmp() -> None:
    table = make()
    for kind in (0, 3, 4, 5, 11, 12):
        assert table.check_inbound(echo(kind))
    for kind in (1, 2, 3, 4, 129):
        assert table.check_inbound(echo(kind, B6, A6))
    for kind in (8, 13, 17):
        assert not table.check_inbound(echo(kind))


def test_tsmp_passes() -> None:
    assert make().check_inbound(rx(ip_packet(B4, A4, 99, b"p12345678")))


def test_rule_decides_by_source_destination_port_and_protocol() -> None:
    table = make(rule("100.64.0.2", "100.64.0.1", 80, 90, (6,)))
    assert table.check_inbound(syn(80))
    assert table.check_inbound(syn(90))
    assert not table.check_inbound(syn(79))
    assert not table.check_inbound(syn(91))
    assert not table.check_inbound(syn(80, C4))
    assert not table.check_inbound(datagram(80))
    assert not table.check_inbound(syn(80, B6, A6))


def test_rule_without_protocols_means_the_usual_four() -> None:
    table = make(ALL)
    assert table.check_inbound(syn())
    assert table.check_inbound(datagram())
    assert table.check_inbound(echo(8))
    assert table.check_inbound(echo(128, B6, A6))
    assert not table.check_inbound(rx(ip_packet(B4, A4, 47, b"x" * 8)))


def test_icmp_ignores_port_and_protocol_of_the_rule() -> None:
    table = make(rule("100.64.0.2", "100.64.0.1", 80, 80, (6,)))
    assert table.check_inbound(echo(8))
    assert not table.check_inbound(echo(8, C4))


def test_other_protocols_need_all_ports() -> None:
    gre = rx(ip_packet(B4, A4, 47, b"x" * 8))
    assert make(rule("*", "*", protos=(47,))).check_inbound(gre)
    assert not make(rule("*", "*", 0, 65534, (47,))).check_inbound(gre)
    assert not make(rule("*", "*", 1, 65535, (47,))).check_inbound(gre)


def test_rule_with_no_sources_matches_nothing() -> None:
    # Headscale sends such rules for a policy source that has no node.
    assert not make(FilterRule((), (DstRange(ANY_IP[0], 0, 65535),))).check_inbound(syn())


def test_destination_must_be_local() -> None:
    table = make(ALL)
    assert not table.check_inbound(syn(dst=C4))
    assert not table.check_inbound(rx(tcp_packet(1, src=B4, dst=C4)))
    assert table.drops.snapshot() == {"not_local": 2}
    table.configure([ALL], (*LOCAL, parse_prefix("100.64.0.3/32"), parse_prefix("10.0.0.0/8")))
    assert table.check_inbound(syn(dst=C4))
    assert table.check_inbound(syn(dst=parse_ip("10.1.2.3")))
    assert not table.check_inbound(syn(dst=parse_ip("11.1.2.3")))


@pytest.mark.parametrize(
    ("dst", "passes"),
    [("224.0.0.1", False), ("ff02::1", False), ("169.254.1.1", False), ("fe80::1", False), ("169.254.169.254", True)],
)
def test_multicast_and_link_local_in_both_directions(dst: str, passes: bool) -> None:
    ip = parse_ip(dst)
    src = B4 if len(ip) == 4 else B6
    table = PacketFilter()
    table.configure([ALL], (ip,))
    assert table.check_inbound(datagram(src=src, dst=ip)) == passes
    assert table.note_outbound(outbound(ip, 1, 2)) == passes


def test_answers_to_our_datagrams_pass() -> None:
    table = make()
    assert not table.check_inbound(datagram(5000, sport=53))
    assert table.note_outbound(outbound(B4, 5000, 53))
    assert table.check_inbound(datagram(5000, sport=53))
    assert not table.check_inbound(datagram(5000, sport=54))
    assert not table.check_inbound(datagram(5001, sport=53))
    assert not table.check_inbound(datagram(5000, C4, sport=53))
    # The memory outlives new rules, but not shields going up.
    table.configure([], LOCAL)
    assert table.check_inbound(datagram(5000, sport=53))
    table.configure([], LOCAL, shields_up=True)
    assert not table.check_inbound(datagram(5000, sport=53))
    table.note_outbound(outbound(B4, 5000, 53))
    assert table.check_inbound(datagram(5000, sport=53))


def test_sctp_is_tracked_like_udp() -> None:
    table = make()
    answer = rx(ip_packet(B4, A4, 132, (53).to_bytes(2, "big") + (5000).to_bytes(2, "big") + bytes(8)))
    assert not table.check_inbound(answer)
    table.note_outbound(outbound(B4, 5000, 53, proto=132))
    assert table.check_inbound(answer)
    assert not table.check_inbound(datagram(5000, sport=53))


def test_the_least_recently_used_flow_is_forgotten() -> None:
    table = make()
    for port in range(1, CONNTRACK_ENTRIES + 1):
        table.note_outbound(outbound(B4, port, 53))
    assert table.check_inbound(datagram(1, sport=53))  # used again, and thereby the youngest
    table.note_outbound(outbound(B4, 9000, 53))
    assert table.check_inbound(datagram(1, sport=53))
    assert not table.check_inbound(datagram(2, sport=53))
    assert table.check_inbound(datagram(3, sport=53))


def test_shields_up_ignores_the_rules() -> None:
    table = make(ALL, shields_up=True)
    assert not table.check_inbound(syn())
    assert table.check_inbound(echo(0))
    assert tsmp.decode(table.take_rejects()[0].header) == tsmp.Rejected(6, tsmp.REASON_SHIELDS_UP, 1000, 80)


def test_peer_api_port_is_open_to_the_tailnet() -> None:
    table = make()
    table.exempt_tcp_ports = frozenset({58436})
    assert table.check_inbound(syn(58436))
    assert not table.check_inbound(syn(58437))
    assert not table.check_inbound(datagram(58436))


def test_refused_syn_is_answered_with_a_rejection_and_a_reset() -> None:
    table = make()
    assert not table.check_inbound(syn(80))
    reject, reset = table.take_rejects()
    assert (reject.src, reject.dst, reject.proto) == (A4, B4, PROTO_TSMP)
    assert tsmp.decode(reject.header) == tsmp.Rejected(6, tsmp.REASON_ACL, 1000, 80)
    assert (reset.src, reset.dst, reset.proto) == (A4, B4, PROTO_TCP)
    header = tcp.decode(reset.header)
    assert (header.src_port, header.dst_port, header.flags) == (80, 1000, tcp.RST | tcp.ACK)
    assert table.take_rejects() == []
    assert not table.check_inbound(syn(80, B6, A6))
    assert [packet.proto for packet in table.take_rejects()] == [PROTO_TCP]
    for packet in (datagram(), echo(8)):
        assert not table.check_inbound(packet)
    assert table.take_rejects() == []


def test_a_flood_of_refused_syns_leaves_a_bounded_number_of_answers() -> None:
    table = make()
    for _ in range(500):
        table.check_inbound(syn(80))
    assert len(table.take_rejects()) <= 129


def test_fragments() -> None:
    table = make(rule("*", "*", 53, 53))
    first = ip_packet(B4, A4, 17, udp.encode_datagram(B4, A4, 1000, 53, bytes(200))[:80], frag=0x2000)
    later = ip_packet(B4, A4, 17, bytes(80), frag=10)
    refused = ip_packet(B4, A4, 17, udp.encode_datagram(B4, A4, 1000, 54, bytes(200))[:80], frag=0x2000)
    assert table.check_inbound(rx(first))
    assert table.check_inbound(rx(later))
    assert not table.check_inbound(rx(refused))


def test_verdicts_follow_new_rules() -> None:
    table = make()
    assert not table.check_inbound(syn())
    table.configure([ALL], LOCAL)
    assert table.check_inbound(syn())
    table.configure([], LOCAL)
    assert not table.check_inbound(syn())


def test_counts_are_of_packets() -> None:
    table = make()
    batch = [(PEER, tcp_packet(1 + 3 * i, b"abc", src=B4, dst=A4)) for i in range(5)]
    units = coalesce(batch, Drops())
    assert table.filter_inbound(units) == units
    assert table.accepted == 5


def test_many_sources() -> None:
    singles = " ".join(f"100.64.{n // 250}.{n % 250}" for n in range(0, 5000, 2))
    table = make(rule(singles, "*"))
    assert table.check_inbound(syn(src=parse_ip("100.64.3.4")))
    assert not table.check_inbound(syn(src=parse_ip("100.64.3.5")))
    assert not table.check_inbound(syn(src=parse_ip("100.64.200.4")))


def test_overlapping_sources() -> None:
    table = make(rule("100.64.0.0-100.64.0.10 100.64.0.2 100.64.0.4-100.64.0.20", "*"))
    assert table.check_inbound(syn(src=parse_ip("100.64.0.10")))
    assert table.check_inbound(syn(src=parse_ip("100.64.0.15")))
    assert not table.check_inbound(syn(src=parse_ip("100.64.0.21")))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("*", ANY_IP),
        ("1.2.3.4", (IpRange(b"\x01\x02\x03\x04", b"\x01\x02\x03\x04"),)),
        ("10.0.0.0/8", (IpRange(b"\x0a\x00\x00\x00", b"\x0a\xff\xff\xff"),)),
        ("0.0.0.0/0", (ANY_IP[0],)),
        ("::/0", (ANY_IP[1],)),
        ("1.2.3.4-1.2.3.9", (IpRange(b"\x01\x02\x03\x04", b"\x01\x02\x03\x09"),)),
        ("fd00::1-fd00::2", (IpRange(b"\xfd" + bytes(14) + b"\x01", b"\xfd" + bytes(14) + b"\x02"),)),
    ],
)
def test_range_forms(text: str, expected: tuple[IpRange, ...]) -> None:
    assert parse_ip_ranges(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "x", "10.0.0.1/8", "1.2.3.4/33", "1.2.3.4/-1", "1.2.3.4/", "1.2.3.9-1.2.3.4", "1.2.3.4-fd00::1", "cap:x"],
)
def test_range_forms_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_ip_ranges(text)
