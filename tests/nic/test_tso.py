"""Cutting outbound units into packets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6

from tests.nic.kit import A4, A6, B4, B6, PEER, check_packet, tcp_unit
from tsnetpy.accel.segments import split_tcp
from tsnetpy.base.packet import TxPacket
from tsnetpy.base.stats import Drops
from tsnetpy.nic import gro, tso
from tsnetpy.wire import icmpv4, ipv4, ipv6, tcp, udp


@pytest.mark.checklist(83)
@given(
    size=st.integers(1, 9000),
    gso=st.integers(1, 1400),
    v6=st.booleans(),
    seq=st.integers(0, 0xFFFFFFFF),
    flags=st.sampled_from([tcp.ACK, tcp.ACK | tcp.PSH, tcp.ACK | tcp.PSH | tcp.FIN, tcp.ACK | tcp.CWR | tcp.PSH]),
)
def test_split_packets_carry_the_stream(size: int, gso: int, v6: bool, seq: int, flags: int) -> None:
    payload = bytes(i * 7 & 0xFF for i in range(size))
    packets = tso.split(tcp_unit(payload, gso, v6=v6, seq=seq, flags=flags), 1280)
    got = b""
    at = 40 if v6 else 20
    for index, packet in enumerate(packets):
        assert len(packet) <= 1280
        check_packet(packet)
        head = tcp.decode(packet[at:])
        assert head.seq == (seq + len(got)) & 0xFFFFFFFF
        assert (head.ack, head.window, head.options) == (5, 100, bytes.fromhex("0101080a0000000300000004"))
        last = index == len(packets) - 1
        expected = flags if last else flags & ~(tcp.FIN | tcp.PSH)
        if index:
            expected &= ~tcp.CWR
        assert head.flags == expected
        got += packet[at + 32 :]
    assert got == payload
    sizes = {len(packet) for packet in packets[:-1]}
    assert len(sizes) <= 1
    assert not sizes or len(packets[-1]) <= sizes.pop()


def test_scapy_agrees_with_a_packet() -> None:
    for packet, layer in ((tso.split(tcp_unit(b"x" * 3000, 1000), 1280)[1], IP),
                          (tso.split(tcp_unit(b"x" * 3000, 1000, v6=True), 1280)[1], IPv6)):  # fmt: skip
        parsed = layer(packet)
        assert parsed[TCP].seq == 1001
        del parsed[TCP].chksum
        if layer is IP:
            assert (parsed.flags, parsed.id, parsed.ttl) == ("DF", 0, 64)
            del parsed.chksum
            del parsed.len
        else:
            del parsed.plen
        assert bytes(parsed) == packet


def test_checksum_that_comes_out_zero_is_zero_for_tcp() -> None:
    # Sweep the window field so that some packet's sum is 0xFFFF; its checksum must be 0x0000, as other stacks send it.
    seen = False
    base = tcp.encode_header(1, 2, 0, 0, tcp.ACK, 0)
    for window in range(0x10000):
        header = base[:14] + window.to_bytes(2, "big") + base[16:]
        ip = ipv4.Ipv4Header(A4, B4, 6, 0, dont_fragment=True).encode()
        packet = split_tcp(ip[:10] + b"\x00\x00" + ip[12:] + header, b"\x00\x00", 2)[0]
        value = packet[36:38]
        assert value != b"\xff\xff"
        if value == b"\x00\x00":
            check_packet(packet)
            seen = True
            break
    assert seen


def test_gso_size_is_lowered_to_the_mtu() -> None:
    packets = tso.split(tcp_unit(b"x" * 5000, 4000), 1280)
    assert max(len(packet) for packet in packets) == 1280
    unit = tcp_unit(b"x" * 5000, 4000)
    unit.mtu = 600
    assert max(len(packet) for packet in tso.split(unit, 1280)) == 600


def test_payload_in_pieces() -> None:
    unit = tcp_unit(b"", 100)
    unit.payload = [b"a" * 70, memoryview(b"b" * 70), bytearray(b"c" * 70)]
    unit.payload_len = 210
    packets = tso.split(unit, 1280)
    assert b"".join(packet[52:] for packet in packets) == b"a" * 70 + b"b" * 70 + b"c" * 70
    assert [len(packet) - 52 for packet in packets] == [100, 100, 10]


def test_pure_ack_is_one_packet() -> None:
    header = tcp.encode_header(1, 2, 3, 4, tcp.ACK, 5)
    packet = tso.split(TxPacket(A4, B4, 6, header, [], 0), 1280)
    assert len(packet) == 1
    assert len(packet[0]) == 40
    check_packet(packet[0])


@pytest.mark.parametrize("v6", [False, True])
def test_udp_datagram(v6: bool) -> None:
    src, dst = (A6, B6) if v6 else (A4, B4)
    body = b"hello"
    tx = TxPacket(src, dst, 17, udp.UdpHeader(7, 9, 13).encode(), [body], 5, ident=0x12345)
    (packet,) = tso.split(tx, 1280)
    check_packet(packet)
    parsed = (IPv6 if v6 else IP)(packet)
    assert (parsed[UDP].sport, parsed[UDP].dport, bytes(parsed[UDP].payload)) == (7, 9, body)


@pytest.mark.checklist(150)
def test_udp_checksum_zero_becomes_ones() -> None:
    word = 0xFFFF - (int.from_bytes(A4, "big") + int.from_bytes(B4, "big") + 17 + 10 + 10 + 1 + 2) % 65535
    tx = TxPacket(A4, B4, 17, udp.UdpHeader(1, 2, 10).encode(), [word.to_bytes(2, "big")], 2)
    assert tso.split(tx, 1280)[0][26:28] == b"\xff\xff"


def test_icmp_has_no_pseudo_header() -> None:
    message = icmpv4.echo(True, 5, 6, b"abc").encode()
    tx = TxPacket(A4, B4, 1, message[:2] + b"\x00\x00" + message[4:8], [message[8:]], 3)
    assert tso.split(tx, 1280)[0][20:] == message


def test_a_message_of_zeros_has_a_checksum_of_ones() -> None:
    # An echo reply with identifier and sequence number 0 and no data: RFC 1071's other zero, and what others verify.
    (packet,) = tso.split(TxPacket(A4, B4, 1, bytes(8), [], 0), 1280)
    assert packet[20:] == icmpv4.echo(False, 0, 0, b"").encode() == bytes.fromhex("0000ffff00000000")


def test_unknown_protocol_is_sent_as_is() -> None:
    (packet,) = tso.split(TxPacket(A4, B4, 99, b"p12345678", [], 0), 1280)
    assert packet[9] == 99
    assert packet[20:] == b"p12345678"


@given(size=st.integers(1300, 20000), mtu=st.integers(576, 1280))
def test_ipv4_fragments_are_what_scapy_puts_together(size: int, mtu: int) -> None:
    body = bytes(i * 13 & 0xFF for i in range(size))
    tx = TxPacket(A4, B4, 17, udp.UdpHeader(7, 9, size + 8).encode(), [body], size, ident=77)
    packets = tso.split(tx, mtu)
    got = bytearray(size + 8)
    for index, raw in enumerate(packets):
        assert len(raw) <= mtu
        assert int.from_bytes(raw[:20], "big") % 65535 == 0
        part = IP(raw)
        assert part.id == 77
        assert bool(part.flags & 1) == (index < len(packets) - 1)
        data = bytes(part.payload)
        got[part.frag * 8 : part.frag * 8 + len(data)] = data
    assert got[8:] == body
    assert udp.encode_datagram(A4, B4, 7, 9, body) == bytes(got)


def test_ipv6_fragments() -> None:
    body = bytes(3000)
    tx = TxPacket(A6, B6, 17, udp.UdpHeader(7, 9, 3008).encode(), [body], 3000, ident=0xABCDEF01)
    packets = tso.split(tx, 1280)
    assert len(packets) == 3
    at = 0
    for index, raw in enumerate(packets):
        head = ipv6.decode(raw)
        part = ipv6.decode_fragment(raw[40:])
        assert head.next_header == ipv6.NEXT_FRAGMENT
        assert (part.next_header, part.offset, part.more, part.ident) == (17, at, index < 2, 0xABCDEF01)
        at += len(raw) - 48
    assert at == 3008


@given(st.integers(1, 40000), st.integers(20, 1208), st.booleans(), st.booleans())
def test_round_trip_through_gro(size: int, gso: int, v6: bool, fin: bool) -> None:
    payload = bytes(i * 31 & 0xFF for i in range(size))
    flags = tcp.ACK | tcp.PSH | (tcp.FIN if fin else 0)
    packets = tso.split(tcp_unit(payload, gso, v6=v6, seq=0xFFFFF000, flags=flags), 1280)
    drops = Drops()
    (unit,) = gro.coalesce([(PEER, packet) for packet in packets], drops)
    assert drops.total == 0
    assert unit.payload == payload
    assert (unit.seq, unit.ack, unit.flags, unit.wnd, unit.packets) == (0xFFFFF000, 5, flags, 100, len(packets))
    assert (unit.src, unit.dst) == ((A6, B6) if v6 else (A4, B4))
    assert (unit.src_port, unit.dst_port, unit.ttl, unit.tos) == (1000, 2000, 64, 0)
