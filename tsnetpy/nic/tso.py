"""Transport segmentation offload: one outbound unit of up to 64 KiB becomes complete IP packets with checksums.

TCP is cut at the segment size, with all that is common to the packets computed once, and UDP where the sender asked for
it (UDP segmentation offload). Everything else is sent whole, or as IP fragments where it does not fit (RFC 791 §3.2,
RFC 8200 §4.5).

TCP packets carry DF with identification 0 (RFC 6864 §4.1: an atomic datagram may repeat it). Other IPv4 packets leave
DF clear, so that a router behind a subnet router may still cut them.
"""

import struct
from typing import Final

from tsnetpy.accel import ops
from tsnetpy.accel.segments import raw_sum
from tsnetpy.base.packet import PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, TxPacket
from tsnetpy.wire import ipv4, ipv6
from tsnetpy.wire.checksum import complement

_V4: Final = struct.Struct("!BBHHHBBH4s4s")
_V6: Final = struct.Struct("!IHBB16s16s")
_CHECKSUM_AT: Final = {PROTO_TCP: 16, PROTO_UDP: 6, PROTO_ICMP: 2, PROTO_ICMPV6: 2}


def split(tx: TxPacket, mtu: int) -> list[bytes]:
    """Return the IP packets that carry *tx*, none longer than *mtu* bytes.

    Args:
        tx: the unit; its transport checksum field is zero. Protocols without a known checksum are sent as they are.
        mtu: of the path; ``tx.mtu`` lowers it further. At least 68 (IPv4) or 1280 (IPv6) to make sense.
    """
    if 0 < tx.mtu < mtu:
        mtu = tx.mtu
    v4 = len(tx.src) == 4
    ip_len = 20 if v4 else 40
    header = tx.header
    payload = tx.payload
    if tx.proto == PROTO_TCP and tx.payload_len:
        room = mtu - ip_len - len(header)
        mss = tx.gso_size if 0 < tx.gso_size < room else max(room, 1)
        if tx.payload_len > mss:
            body = payload[0] if len(payload) == 1 else b"".join(payload)
            return ops.split_tcp(_ip_template(tx, v4) + header, bytes(body), mss)

    if tx.proto == PROTO_UDP and tx.gso_size:
        data = b"".join(payload)
        packets: list[bytes] = []
        for start in range(0, tx.payload_len, tx.gso_size):
            piece = data[start : start + tx.gso_size]
            head = header[:4] + (8 + len(piece)).to_bytes(2, "big") + header[6:]
            packets += _whole(tx, v4, head + piece, tx.ident + start // tx.gso_size, mtu)
        return packets
    return _whole(tx, v4, b"".join((header, *payload)), tx.ident, mtu)


def _whole(tx: TxPacket, v4: bool, body: bytes, ident: int, mtu: int) -> list[bytes]:
    """Return the packet with *body*, transport header and payload, or its fragments; the checksum is filled in here."""
    length = len(body)
    at = _CHECKSUM_AT.get(tx.proto, 0)
    if at:
        words = raw_sum(body)
        if tx.proto != PROTO_ICMP:
            words += int.from_bytes(tx.src, "big") + int.from_bytes(tx.dst, "big") + tx.proto + length
        value = complement(words)
        if not value and tx.proto == PROTO_UDP:
            value = 0xFFFF  # RFC 768: 0 would say "no checksum"
        body = b"".join((body[:at], value.to_bytes(2, "big"), body[at + 2 :]))
    if length + (20 if v4 else 40) <= mtu:
        return [_ip_header(tx, v4, length, ident, 0) + body]
    return _fragments(tx, v4, body, ident, mtu)


def _ip_template(tx: TxPacket, v4: bool) -> bytes:
    """Return the IP header of a TCP packet with zero length and checksum."""
    if v4:
        return _V4.pack(0x45, tx.tos, 0, 0, ipv4.FLAG_DF, tx.ttl, PROTO_TCP, 0, tx.src, tx.dst)
    return _V6.pack(6 << 28 | tx.tos << 20, 0, PROTO_TCP, tx.ttl, tx.src, tx.dst)


def _ip_header(tx: TxPacket, v4: bool, length: int, ident: int, frag: int) -> bytes:
    """Return the header for *length* bytes of payload; *ident* and *frag*, flags and offset, are IPv4's."""
    if not v4:
        return _V6.pack(6 << 28 | tx.tos << 20, length, tx.proto, tx.ttl, tx.src, tx.dst)
    ident &= 0xFFFF
    if tx.proto == PROTO_TCP:
        ident = 0
        frag = ipv4.FLAG_DF
    head = _V4.pack(0x45, tx.tos, 20 + length, ident, frag, tx.ttl, tx.proto, 0, tx.src, tx.dst)
    value = -int.from_bytes(head, "big") % 65535
    return head[:10] + value.to_bytes(2, "big") + head[12:]


def _fragments(tx: TxPacket, v4: bool, body: bytes, ident: int, mtu: int) -> list[bytes]:
    """Cut *body* (transport header and payload) into fragments whose lengths are multiples of eight."""
    overhead = 20 if v4 else ipv6.HEADER_LEN + ipv6.FRAGMENT_LEN
    step = max((mtu - overhead) & ~7, 8)
    total = len(body)
    packets: list[bytes] = []
    for at in range(0, total, step):
        piece = body[at : at + step]
        more = at + step < total
        if v4:
            flags = ipv4.FLAG_MF if more else 0
            packets.append(_ip_header(tx, True, len(piece), ident, flags | at >> 3) + piece)
            continue
        head = _V6.pack(
            6 << 28 | tx.tos << 20, ipv6.FRAGMENT_LEN + len(piece), ipv6.NEXT_FRAGMENT, tx.ttl, tx.src, tx.dst
        )
        packets.append(head + ipv6.FragmentHeader(tx.proto, at, more, ident & 0xFFFFFFFF).encode() + piece)
    return packets
