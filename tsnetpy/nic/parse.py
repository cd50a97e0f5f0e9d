"""From the bytes of one IP packet to an :class:`RxPacket`: header checks, checksums, fragment fields.

Total over all inputs: whatever the bytes are, the answer is a packet or a counted drop. Address rules (own, multicast,
unspecified) are the IP stack's; this module judges the packet's form alone. Length rules follow the attack table of
RFC 791, RFC 1858, RFC 3128 and RFC 8200: every bound is checked before the slice that needs it.
"""

import struct
from typing import Final

from tsnetpy.base.packet import PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, Buffer, PeerId
from tsnetpy.base.stats import Drops
from tsnetpy.wire import icmpv6, ipv4, ipv6
from tsnetpy.wire.checksum import raw_sum

from .extensions import NO_PROBLEM, walk
from .rx import RxPacket

_V4: Final = struct.Struct("!BBHHHBBH8s")
_V6: Final = struct.Struct("!IHBB32s")
_TCP: Final = struct.Struct("!IIIHH")
_UDP: Final = struct.Struct("!IHH")

MIN_FRAGMENT_OFFSET: Final = 80
"""A later fragment below this offset could overwrite transport header fields (RFC 1858 §3): refused."""
_MIN_HEADER: Final = {PROTO_TCP: 20, PROTO_UDP: 8, PROTO_ICMP: 8, PROTO_ICMPV6: 8}


def parse(peer: PeerId, data: Buffer, drops: Drops, verify: bool = True) -> RxPacket | None:
    """Parse one IP packet.

    Args:
        peer: the sender, copied into the result.
        data: the packet, possibly with bytes behind its end, which are never read.
        drops: counts why packets were refused.
        verify: check the IPv4 header's and the transport's checksum.

    Returns:
        The packet, or ``None`` if it was dropped.
    """
    size = len(data)
    version = data[0] >> 4 if size else 0
    if version == 4:
        return _parse_v4(peer, data, size, drops, verify)
    if version == 6:
        return _parse_v6(peer, data, size, drops, verify)
    drops.add("ip_version")
    return None


def _parse_v4(peer: PeerId, data: Buffer, size: int, drops: Drops, verify: bool) -> RxPacket | None:
    if size < ipv4.HEADER_LEN:
        drops.add("ip_length")
        return None
    first, tos, total, ident, frag, ttl, proto, _, addrs = _V4.unpack_from(data)
    header_len = (first & 15) * 4
    if header_len < ipv4.HEADER_LEN or total < header_len or total > size:
        drops.add("ip_length")
        return None
    if verify and raw_sum(data[:header_len]) % 65535:
        drops.add("ip_checksum")
        return None
    if header_len > ipv4.HEADER_LEN and ipv4.has_source_route(data[ipv4.HEADER_LEN : header_len]):
        drops.add("ip_options")
        return None
    raw = bytes(data[:total])
    rx = RxPacket(peer, addrs, proto, 0, tos, ttl)
    if frag & (ipv4.FLAG_MF | ipv4.OFFSET_MASK):
        offset = (frag & ipv4.OFFSET_MASK) * 8
        return _fragment(rx, raw, header_len, header_len, ident, offset, bool(frag & ipv4.FLAG_MF), drops)
    if proto == PROTO_ICMPV6:
        drops.add("ip_protocol")
        return None
    return _transport(rx, raw, header_len, drops, verify)


def _parse_v6(peer: PeerId, data: Buffer, size: int, drops: Drops, verify: bool) -> RxPacket | None:
    if size < ipv6.HEADER_LEN:
        drops.add("ip_length")
        return None
    first, length, proto, hops, addrs = _V6.unpack_from(data)
    total = ipv6.HEADER_LEN + length
    if length == 0 or total > size:  # length 0 would be a jumbogram (RFC 2675) or an empty packet
        drops.add("ip_length")
        return None
    raw = bytes(data[:total])
    rx = RxPacket(peer, addrs, proto, 0, first >> 20 & 0xFF, hops)
    chain = walk(raw, proto, ipv6.HEADER_LEN, ipv6.NEXT_HEADER_AT)
    if chain.proto == ipv6.NEXT_FRAGMENT and not chain.drop and chain.problem == NO_PROBLEM:
        start = chain.at + ipv6.FRAGMENT_LEN
        if start > total:
            drops.add("ip_length")
            return None
        field = int.from_bytes(raw[chain.at + 2 : chain.at + 4], "big")
        if field & 0xFFF9:
            return _fragment_v6(rx, raw, chain.at, field, drops)
        # An atomic fragment is handled like any whole packet (RFC 6946).
        chain = walk(raw, raw[chain.at], start, chain.at)
        if chain.proto == ipv6.NEXT_FRAGMENT:
            chain.drop = "ip_options"
    rx.proto = chain.proto
    if chain.drop:
        drops.add(chain.drop)
        return None
    if chain.problem != NO_PROBLEM:
        return _problem(rx, raw, chain.problem)
    if rx.proto == PROTO_ICMP:
        drops.add("ip_protocol")
        return None
    return _transport(rx, raw, chain.at, drops, verify)


def _problem(rx: RxPacket, raw: bytes, problem: int) -> RxPacket:
    """Return *rx* as a packet that is good only for a "parameter problem"."""
    if rx.proto == PROTO_TCP or rx.proto == PROTO_UDP:
        rx.proto = ipv6.NEXT_FRAGMENT  # nobody may take it for a segment
    rx.raw = raw
    rx.offset = ipv6.HEADER_LEN
    rx.end = len(raw)
    rx.problem = problem
    return rx


def _fragment_v6(rx: RxPacket, raw: bytes, at: int, field: int, drops: Drops) -> RxPacket | None:
    """Check a fragment whose Fragment header stands at *at*, with *field* its offset and flags."""
    start = at + ipv6.FRAGMENT_LEN
    offset = field & 0xFFF8
    more = bool(field & 1)
    size = len(raw) - start
    if more and size % 8:  # RFC 8200 §4.5: point at the payload length
        return _problem(rx, raw, icmpv6.CODE_ERRONEOUS_FIELD << 16 | 4)
    if offset + size > 0xFFFF:
        return _problem(rx, raw, icmpv6.CODE_ERRONEOUS_FIELD << 16 | at + 2)
    rx.proto = raw[at]
    header_at = start
    if not offset:
        # The first fragment must hold the whole chain, or nobody could filter it (RFC 7112 §5).
        chain = walk(raw, rx.proto, start, at)
        if chain.problem != NO_PROBLEM:
            return _problem(rx, raw, chain.problem)
        if chain.drop or chain.proto == ipv6.NEXT_FRAGMENT:
            drops.add("tiny_fragment")
            return None
        rx.proto = chain.proto
        header_at = chain.at
    return _fragment(rx, raw, start, header_at, int.from_bytes(raw[at + 4 : at + 8], "big"), offset, more, drops)


def _fragment(
    rx: RxPacket, raw: bytes, start: int, header_at: int, ident: int, offset: int, more: bool, drops: Drops
) -> RxPacket | None:
    """Check the rules for one fragment: its data starts at *start*, a transport header in it at *header_at*."""
    size = len(raw) - start
    if size <= 0 or (more and size % 8) or offset + size > 0xFFFF:
        drops.add("fragment_length")
        return None
    if 0 < offset < MIN_FRAGMENT_OFFSET or (offset == 0 and len(raw) - header_at < _MIN_HEADER.get(rx.proto, 0)):
        drops.add("tiny_fragment")
        return None
    rx.raw = raw
    rx.offset = start
    rx.end = len(raw)
    rx.fragment = True
    rx.frag_id = ident
    rx.frag_offset = offset
    rx.frag_more = more
    if offset == 0 and (rx.proto == PROTO_TCP or rx.proto == PROTO_UDP):
        rx.ports = int.from_bytes(raw[header_at : header_at + 4], "big")
        if rx.proto == PROTO_TCP:
            rx.flags = raw[header_at + 13]
    return rx


def _transport(rx: RxPacket, raw: bytes, at: int, drops: Drops, verify: bool) -> RxPacket | None:
    """Check the transport header at *at* and fill in the fields that depend on it."""
    proto = rx.proto
    size = len(raw) - at
    if size < _MIN_HEADER.get(proto, 0):
        drops.add("transport_length")
        return None
    if proto == PROTO_TCP:
        ports, rx.seq, rx.ack, offset_flags, rx.wnd = _TCP.unpack_from(raw, at)
        header_end = at + (offset_flags >> 12) * 4
        if header_end < at + 20 or header_end > len(raw):
            drops.add("transport_length")
            return None
        if verify and _bad_sum(rx, raw, at, size):
            drops.add("tcp_checksum")
            return None
        rx.flags = offset_flags & 0xFF
        rx.options = raw[at + 20 : header_end]
        rx.payload = raw[header_end:]
    elif proto == PROTO_UDP:
        ports, length, value = _UDP.unpack_from(raw, at)
        if length < 8 or length > size:
            drops.add("transport_length")
            return None
        if value == 0:
            if len(rx.src) == 16:  # RFC 8200 §8.1: not allowed over IPv6
                drops.add("udp_checksum")
                return None
        elif verify and _bad_sum(rx, raw, at, length):
            drops.add("udp_checksum")
            return None
        rx.raw = raw
        rx.offset = at
        rx.end = at + length
    else:
        if verify and (
            (proto == PROTO_ICMP and raw_sum(raw[at:]) % 65535)
            or (proto == PROTO_ICMPV6 and _bad_sum(rx, raw, at, size))
        ):
            drops.add("icmp_checksum")
            return None
        rx.raw = raw
        rx.offset = at
        rx.end = len(raw)
        return rx
    if ports < 0x10000 or not ports & 0xFFFF:
        drops.add("port_zero")
        return None
    rx.ports = ports
    return rx


def _bad_sum(rx: RxPacket, raw: bytes, at: int, length: int) -> bool:
    total = int.from_bytes(rx.addrs, "big") + rx.proto + length + raw_sum(raw[at : at + length])
    return total % 65535 != 0
