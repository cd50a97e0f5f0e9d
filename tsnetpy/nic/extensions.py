"""The chain of IPv6 extension headers (RFC 8200 §4): a bounded walk from the fixed header to the transport.

Only what a host needs: options are skipped or refused by their action bits, a routing header passes when it is used
up, and the Fragment header ends the walk, for its caller to look at. Whatever the bytes are, at most
:data:`MAX_HEADERS` headers in :data:`MAX_CHAIN` bytes are looked at.
"""

from typing import Final, final

from tsnetpy.wire import icmpv6, ipv6

MAX_HEADERS: Final = 8
MAX_CHAIN: Final = 1280
"""Bytes of fixed and extension headers together (RFC 7112 §5 lets nobody need more than one MTU)."""

NO_PROBLEM: Final = -1

_PAD1: Final = 0
_PADN: Final = 1
_ROUTING_FIXED: Final = 8


@final
class Chain:
    """Where a walk ended.

    Attributes:
        proto: the transport protocol, or 44 for a Fragment header.
        at: where that header starts.
        next_at: the byte that names *proto*, which an ICMP error points at.
        drop: why the packet is dropped, or ``""``.
        problem: code << 16 | pointer of the ICMPv6 "parameter problem" that the packet deserves, or ``NO_PROBLEM``.
    """

    __slots__ = ("at", "drop", "next_at", "problem", "proto")

    def __init__(self, proto: int, at: int, next_at: int) -> None:
        self.proto = proto
        self.at = at
        self.next_at = next_at
        self.drop = ""
        self.problem = NO_PROBLEM


def walk(raw: bytes, proto: int, at: int, next_at: int) -> Chain:
    """Follow the headers of *raw* from the one at *at*, which the byte at *next_at* says is *proto*."""
    chain = Chain(proto, at, next_at)
    size = len(raw)
    for _ in range(MAX_HEADERS):
        proto = chain.proto
        if proto not in (ipv6.NEXT_HOP_BY_HOP, ipv6.NEXT_ROUTING, ipv6.NEXT_DESTINATION):
            return chain
        at = chain.at
        if proto == ipv6.NEXT_HOP_BY_HOP and chain.next_at != ipv6.NEXT_HEADER_AT:
            # Allowed directly behind the fixed header only (RFC 8200 §4.1).
            chain.problem = icmpv6.CODE_UNKNOWN_NEXT_HEADER << 16 | chain.next_at
            return chain
        if at + 8 > size:
            chain.drop = "ip_length"
            return chain
        end = at + 8 + raw[at + 1] * 8
        if end > size or end > MAX_CHAIN:
            chain.drop = "ip_length"
            return chain
        if proto == ipv6.NEXT_ROUTING:
            # No type is of use to a host. One with segments left, type 0 above all, is refused (RFC 5095 §3).
            if raw[at + 3]:
                chain.problem = icmpv6.CODE_ERRONEOUS_FIELD << 16 | at + 2
                return chain
        elif not _options(raw, at + 2, end, chain):
            return chain
        chain.proto = raw[at]
        chain.next_at = at
        chain.at = end
    chain.drop = "ip_options"
    return chain


def _options(raw: bytes, at: int, end: int, chain: Chain) -> bool:
    """Judge the options in *raw* from *at* to *end*; False, with the reason in *chain*, if the packet ends here."""
    while at < end:
        kind = raw[at]
        if kind == _PAD1:
            at += 1
            continue
        if at + 2 > end or at + 2 + raw[at + 1] > end:
            chain.drop = "ip_options"
            return False
        action = kind >> 6
        if kind != _PADN and action:
            if action == 1:
                chain.drop = "ip_options"
            else:  # 2 and 3 differ for multicast destinations only, and those never come this far
                chain.problem = icmpv6.CODE_UNKNOWN_OPTION << 16 | at
            return False
        at += 2 + raw[at + 1]
    return True
