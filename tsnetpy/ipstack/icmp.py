"""ICMP: errors that we send, the flows that errors we receive talk about, and what they mean for a connection."""

import struct
from typing import Final, final

from tsnetpy.base.addr import IpBytes
from tsnetpy.base.packet import PROTO_ICMP, PROTO_ICMPV6, TxPacket
from tsnetpy.nic.extensions import walk
from tsnetpy.nic.rx import RxPacket
from tsnetpy.wire import icmpv4, icmpv6, ipv6

from .addresses import is_martian

_HEAD: Final = struct.Struct("!BBHI")


def is_echo_request(rx: RxPacket) -> bool:
    """Tell whether *rx* (ICMP of either family, checked) is an echo request."""
    kind = rx.raw[rx.offset]
    return kind == (icmpv4.ECHO_REQUEST if rx.proto == PROTO_ICMP else icmpv6.ECHO_REQUEST)


def is_echo_reply(rx: RxPacket) -> bool:
    """Tell whether *rx* (ICMP of either family, checked) is an echo reply."""
    kind = rx.raw[rx.offset]
    return kind == (icmpv4.ECHO_REPLY if rx.proto == PROTO_ICMP else icmpv6.ECHO_REPLY)


def is_error(rx: RxPacket) -> bool:
    """Tell whether *rx* (ICMP of either family, checked) reports an error."""
    kind = rx.raw[rx.offset]
    return kind in icmpv4.ERRORS if rx.proto == PROTO_ICMP else icmpv6.is_error(kind)


def echo_packet(
    src: IpBytes, dst: IpBytes, request: bool, rest: int, payload: bytes, ident: int, tos: int = 0
) -> TxPacket:
    """Return an echo request or reply; *rest* is identifier and sequence number, *ident* the IP identification."""
    if len(src) == 4:
        kind, proto = (icmpv4.ECHO_REQUEST if request else icmpv4.ECHO_REPLY), PROTO_ICMP
    else:
        kind, proto = (icmpv6.ECHO_REQUEST if request else icmpv6.ECHO_REPLY), PROTO_ICMPV6
    header = _HEAD.pack(kind, 0, 0, rest)
    return TxPacket(src, dst, proto, header, [payload], len(payload), 0, 64, tos, ident)


def error_packet(rx: RxPacket, kind: int, code: int, rest: int, ident: int) -> TxPacket | None:
    """Return the ICMP error that answers *rx*, or ``None`` if none may be sent.

    None is sent about errors, about fragments other than the first, and to or from addresses that are not unicast
    (RFC 1122 §3.2.2, RFC 4443 §2.4 e). The quote keeps the packet within 576 bytes (IPv4) or the minimum MTU (IPv6).
    """
    if (rx.fragment and rx.frag_offset) or is_martian(rx.src) or is_martian(rx.dst):
        return None
    if rx.proto in (PROTO_ICMP, PROTO_ICMPV6) and is_error(rx):
        return None
    v4 = len(rx.src) == 4
    room = icmpv4.MAX_ERROR_PACKET - 28 if v4 else icmpv6.MAX_ERROR_PACKET - 48
    quote = rx.raw[:room]
    proto = PROTO_ICMP if v4 else PROTO_ICMPV6
    return TxPacket(rx.dst, rx.src, proto, _HEAD.pack(kind, code, 0, rest), [quote], len(quote), 0, 64, 0, ident)


def port_unreachable(rx: RxPacket, ident: int) -> TxPacket | None:
    """Return the error for a datagram to a port where nobody listens."""
    if len(rx.src) == 4:
        return error_packet(rx, icmpv4.UNREACHABLE, icmpv4.CODE_PORT, 0, ident)
    return error_packet(rx, icmpv6.UNREACHABLE, icmpv6.CODE_PORT, 0, ident)


def protocol_unreachable(rx: RxPacket, ident: int) -> TxPacket | None:
    """Return the error for a transport protocol that this stack does not have."""
    if len(rx.src) == 4:
        return error_packet(rx, icmpv4.UNREACHABLE, icmpv4.CODE_PROTOCOL, 0, ident)
    chain = walk(rx.raw, rx.raw[ipv6.NEXT_HEADER_AT], ipv6.HEADER_LEN, ipv6.NEXT_HEADER_AT)
    pointer = chain.next_at
    if chain.proto == ipv6.NEXT_FRAGMENT:
        after = chain.at + ipv6.FRAGMENT_LEN
        pointer = walk(rx.raw, rx.raw[chain.at], after, chain.at).next_at
    return error_packet(rx, icmpv6.PARAMETER_PROBLEM, icmpv6.CODE_UNKNOWN_NEXT_HEADER, pointer, ident)


def parameter_problem(rx: RxPacket, ident: int) -> TxPacket | None:
    """Return the error for an IPv6 packet whose headers cannot be obeyed (``rx.problem`` says which)."""
    return error_packet(rx, icmpv6.PARAMETER_PROBLEM, rx.problem >> 16, rx.problem & 0xFFFF, ident)


def reassembly_timeout(rx: RxPacket, ident: int) -> TxPacket | None:
    """Return the error for a datagram whose first fragment is *rx* and whose rest never came."""
    if len(rx.src) == 4:
        return error_packet(rx, icmpv4.TIME_EXCEEDED, icmpv4.CODE_REASSEMBLY, 0, ident)
    return error_packet(rx, icmpv6.TIME_EXCEEDED, icmpv6.CODE_REASSEMBLY, 0, ident)


@final
class IcmpError:
    """A received error, with the flow that it quotes.

    Attributes:
        src, dst, proto: of the quoted packet: *src* is ours.
        ports: the quoted source port in the high 16 bits, destination port in the low ones. For an echo, its
            identifier and sequence number.
        seq: quoted TCP sequence number.
        hard: no use in trying again (RFC 1122 §4.2.3.9); soft errors are hints.
        reason: ``"refused"``, ``"unreachable"`` or ``"too big"``.
        mtu: for "too big", the MTU of the next hop as the router states it (0: it does not say).
    """

    __slots__ = ("dst", "hard", "mtu", "ports", "proto", "reason", "seq", "src")

    def __init__(self, src: IpBytes, dst: IpBytes, proto: int, ports: int, seq: int) -> None:
        self.src = src
        self.dst = dst
        self.proto = proto
        self.ports = ports
        self.seq = seq
        self.hard = False
        self.reason = "unreachable"
        self.mtu = 0


def parse_error(rx: RxPacket) -> IcmpError | None:
    """Return what the ICMP error *rx* says, or ``None`` if it quotes too little or is of no use to a host."""
    message = rx.raw[rx.offset : rx.end]
    if len(message) < 8:
        return None
    kind, code, _, rest = _HEAD.unpack_from(message)
    quote = message[8:]
    if rx.proto == PROTO_ICMP:
        if len(quote) < 28 or quote[0] >> 4 != 4 or int.from_bytes(quote[6:8], "big") & 0x1FFF:
            return None
        at = (quote[0] & 15) * 4
        if at < 20 or at + 8 > len(quote):
            return None
        error = _quoted(quote, quote[12:16], quote[16:20], quote[9], at)
        if kind == icmpv4.UNREACHABLE:
            if code == icmpv4.CODE_FRAGMENTATION_NEEDED:
                error.reason = "too big"
                error.mtu = rest & 0xFFFF
            else:
                error.hard = code in (icmpv4.CODE_PROTOCOL, icmpv4.CODE_PORT, 9, 10, icmpv4.CODE_ADMIN_PROHIBITED)
                if code == icmpv4.CODE_PORT:
                    error.reason = "refused"
            return error
        return error if kind == icmpv4.TIME_EXCEEDED else None
    if len(quote) < 48 or quote[0] >> 4 != 6:
        return None
    proto, at = quote[6], 40
    if proto == ipv6.NEXT_FRAGMENT:
        if len(quote) < 56 or int.from_bytes(quote[42:44], "big") & 0xFFF8:
            return None
        proto, at = quote[40], 48
    error = _quoted(quote, quote[8:24], quote[24:40], proto, at)
    if kind == icmpv6.UNREACHABLE:
        error.hard = code in (icmpv6.CODE_ADMIN_PROHIBITED, icmpv6.CODE_PORT, 5, 6)
        if code == icmpv6.CODE_PORT:
            error.reason = "refused"
        return error
    if kind == icmpv6.PACKET_TOO_BIG:
        error.reason = "too big"
        error.mtu = rest
        return error
    if kind == icmpv6.PARAMETER_PROBLEM:
        error.hard = code == icmpv6.CODE_UNKNOWN_NEXT_HEADER
        return error
    return error if kind == icmpv6.TIME_EXCEEDED else None


def _quoted(quote: bytes, src: IpBytes, dst: IpBytes, proto: int, at: int) -> IcmpError:
    if proto in (PROTO_ICMP, PROTO_ICMPV6):
        return IcmpError(src, dst, proto, int.from_bytes(quote[at + 4 : at + 8], "big"), 0)
    ports = int.from_bytes(quote[at : at + 4], "big")
    return IcmpError(src, dst, proto, ports, int.from_bytes(quote[at + 4 : at + 8], "big"))
