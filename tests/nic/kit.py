"""Packets for the NIC's tests."""

from tsnetpy.base.packet import PROTO_TCP, TxPacket
from tsnetpy.wire import ipv4, ipv6, tcp, udp
from tsnetpy.wire.checksum import transport_ok

PEER = b"\x01" * 32
A4, B4 = bytes((100, 64, 0, 1)), bytes((100, 64, 0, 2))
A6 = bytes.fromhex("fd7a115ca1e000000000000000000001")
B6 = bytes.fromhex("fd7a115ca1e000000000000000000002")


def timestamps(value: int, echo: int) -> bytes:
    """Return the usual padded timestamp option."""
    return b"\x01\x01\x08\x0a" + value.to_bytes(4, "big") + echo.to_bytes(4, "big")


def ip_packet(src: bytes, dst: bytes, proto: int, body: bytes, *, ttl: int = 64, tos: int = 0, frag: int = 0) -> bytes:
    """Return a whole packet; *frag* is the IPv4 flags and offset field."""
    if len(src) == 16:
        return ipv6.Ipv6Header(src, dst, proto, len(body), ttl, tos).encode() + body
    header = ipv4.Ipv4Header(src, dst, proto, 20 + len(body), ttl, tos)
    header.dont_fragment = bool(frag & ipv4.FLAG_DF)
    header.more_fragments = bool(frag & ipv4.FLAG_MF)
    header.fragment_offset = (frag & ipv4.OFFSET_MASK) * 8
    return header.encode() + body


def tcp_packet(
    seq: int,
    payload: bytes = b"",
    *,
    src: bytes = A4,
    dst: bytes = B4,
    sport: int = 1000,
    dport: int = 2000,
    ack: int = 1,
    flags: int = tcp.ACK,
    wnd: int = 100,
    options: bytes = b"",
    ttl: int = 64,
    tos: int = 0,
) -> bytes:
    """Return one complete TCP packet with right checksums."""
    head = tcp.TcpHeader(sport, dport, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, flags, wnd, 0, 0, options)
    return ip_packet(src, dst, PROTO_TCP, head.encode(src, dst, payload) + payload, ttl=ttl, tos=tos)


def udp_packet(payload: bytes, *, src: bytes = A4, dst: bytes = B4, sport: int = 1000, dport: int = 2000) -> bytes:
    """Return one complete UDP packet with right checksums."""
    return ip_packet(src, dst, 17, udp.encode_datagram(src, dst, sport, dport, payload))


def tcp_unit(payload: bytes, gso: int, *, v6: bool = False, seq: int = 1, flags: int = tcp.ACK) -> TxPacket:
    """Return an outbound super-segment with timestamps."""
    header = tcp.encode_header(1000, 2000, seq, 5, flags, 100, timestamps(3, 4))
    src, dst = (A6, B6) if v6 else (A4, B4)
    return TxPacket(src, dst, PROTO_TCP, header, [payload], len(payload), gso)


def check_packet(packet: bytes) -> None:
    """Assert that lengths and checksums of a complete, unfragmented packet are right."""
    if packet[0] >> 4 == 4:
        assert int.from_bytes(packet[:20], "big") % 65535 == 0
        assert int.from_bytes(packet[2:4], "big") == len(packet)
        src, dst, proto, body = packet[12:16], packet[16:20], packet[9], packet[20:]
    else:
        assert int.from_bytes(packet[4:6], "big") == len(packet) - 40
        src, dst, proto, body = packet[8:24], packet[24:40], packet[6], packet[40:]
    assert transport_ok(src, dst, proto, body)
