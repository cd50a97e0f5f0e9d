"""One line of text per packet, in the manner of packet tracers; for logs, tests and ``debug`` commands."""

from typing import Final

from tsnetpy.base.addr import format_ip
from tsnetpy.base.errors import DecodeError
from tsnetpy.base.packet import PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_TSMP, PROTO_UDP, Buffer

from . import icmpv4, icmpv6, ipv4, ipv6, tcp, udp

_FLAG_LETTERS: Final = "FSRPAUEC"


def tcp_flags(flags: int) -> str:
    """Return flag letters, lowest bit first (``S``, ``SA``, ``FA`` …), or ``-`` for none."""
    return "".join(letter for bit, letter in enumerate(_FLAG_LETTERS) if flags >> bit & 1) or "-"


def packet(data: Buffer) -> str:
    """Describe one IP packet; never raises, whatever the bytes are."""
    try:
        return _packet(data)
    except DecodeError as error:
        return f"malformed ({error}), {len(data)} bytes"


def _packet(data: Buffer) -> str:
    if not data:
        return "empty"
    if data[0] >> 4 == 4:
        head = ipv4.decode(data)
        offset, proto, end = head.header_len, head.proto, head.total_length
        src, dst, hops = head.src, head.dst, head.ttl
        fragment = (head.ident, head.fragment_offset, head.more_fragments)
        name = "IP"
    elif data[0] >> 4 == 6:
        head6 = ipv6.decode(data)
        offset, proto, end = ipv6.HEADER_LEN, head6.next_header, ipv6.HEADER_LEN + head6.payload_length
        src, dst, hops = head6.src, head6.dst, head6.hop_limit
        fragment = (0, 0, False)
        name = "IP6"
        if proto == ipv6.NEXT_FRAGMENT:
            part = ipv6.decode_fragment(data[offset:end])
            proto = part.next_header
            offset += ipv6.FRAGMENT_LEN
            fragment = (part.ident, part.offset, part.more)
    else:
        return f"unknown version {data[0] >> 4}, {len(data)} bytes"
    text = f"{name} {format_ip(src)} > {format_ip(dst)} ttl {hops}"
    if fragment[1] or fragment[2]:
        text += f" frag {fragment[0]:#x}:{fragment[1]}{'+' if fragment[2] else ''}"
    if fragment[1]:
        return f"{text} proto {proto} len {end - offset}"
    return f"{text} {_transport(proto, data[offset:end], bool(fragment[2]))}"


def _transport(proto: int, data: Buffer, cut: bool) -> str:
    if proto == PROTO_TCP:
        seg = tcp.decode(data)
        length = len(data) - tcp.HEADER_LEN - len(seg.options)
        flags = tcp_flags(seg.flags)
        line = f"TCP {seg.src_port} > {seg.dst_port} [{flags}] seq {seg.seq} ack {seg.ack} win {seg.window}"
        return f"{line} len {length}"
    if proto == PROTO_UDP:
        if cut and len(data) >= udp.HEADER_LEN:
            ports = int.from_bytes(data[:2], "big"), int.from_bytes(data[2:4], "big")
            return f"UDP {ports[0]} > {ports[1]} first fragment len {len(data) - udp.HEADER_LEN}"
        gram = udp.decode(data)
        return f"UDP {gram.src_port} > {gram.dst_port} len {gram.length - udp.HEADER_LEN}"
    if proto in (PROTO_ICMP, PROTO_ICMPV6):
        name = "ICMP" if proto == PROTO_ICMP else "ICMP6"
        message = icmpv4.decode(data) if proto == PROTO_ICMP else icmpv6.decode(data)
        echoes = (icmpv4.ECHO_REQUEST, icmpv4.ECHO_REPLY, icmpv6.ECHO_REQUEST, icmpv6.ECHO_REPLY)
        if message.type in echoes:
            word = "request" if message.type in (icmpv4.ECHO_REQUEST, icmpv6.ECHO_REQUEST) else "reply"
            return f"{name} echo {word} id {message.ident} seq {message.seq} len {len(message.body)}"
        return f"{name} type {message.type} code {message.code} len {len(message.body)}"
    if proto == PROTO_TSMP:
        return f"TSMP type {data[0]:#04x} len {len(data)}" if data else "TSMP empty"
    return f"proto {proto} len {len(data)}"
