"""Packet filter rules as the server sends them, and the address forms in them (reference, section 7)."""

from typing import Final

import msgspec

from tsnetpy.base.addr import IpBytes, parse_ip, parse_prefix

from ._struct import Message

IpRangeBytes = tuple[IpBytes, IpBytes]
"""First and last address of a range, both inside."""

EVERYWHERE: Final[tuple[IpRangeBytes, ...]] = ((bytes(4), b"\xff" * 4), (bytes(16), b"\xff" * 16))
"""What ``*`` stands for: both families."""

CAP_SOURCE_PREFIX: Final = "cap:"
DEFAULT_PROTOS: Final = (6, 17, 1, 58)
"""What an empty *ip_proto* stands for: TCP, UDP, ICMP, ICMPv6."""


class PortRange(Message, frozen=True, kw_only=True):
    """Ports *first* to *last*, both inside."""

    first: int = msgspec.field(default_factory=int)
    last: int = msgspec.field(default_factory=int)


class NetPortRange(Message, frozen=True, kw_only=True):
    """Where a rule lets packets go: addresses and ports."""

    ip: str = ""
    bits: int | None = None
    """Obsolete. If present anywhere, the whole filter is invalid and blocks."""
    ports: PortRange = PortRange()


class CapGrant(Message, frozen=True, kw_only=True):
    """Application capabilities that sources of the rule hold toward *dsts*."""

    dsts: tuple[str, ...] = ()
    caps: tuple[str, ...] = ()
    cap_map: dict[str, list[object] | None] = msgspec.field(default_factory=dict)


class FilterRule(Message, frozen=True, kw_only=True):
    """A rule that accepts packets (*dst_ports*) or grants capabilities (*cap_grant*), never both."""

    src_ips: tuple[str, ...] = msgspec.field(default_factory=tuple)
    """Sources. Headscale sends an empty list for "nobody"."""
    src_bits: tuple[int, ...] | None = None
    """Obsolete; see :attr:`NetPortRange.bits`."""
    dst_ports: tuple[NetPortRange, ...] = ()
    ip_proto: tuple[int, ...] = ()
    cap_grant: tuple[CapGrant, ...] = ()

    @property
    def protos(self) -> frozenset[int]:
        """The IP protocols it is about; numbers outside 0-255 are ignored."""
        return frozenset(p for p in self.ip_proto if 0 <= p <= 255) if self.ip_proto else frozenset(DEFAULT_PROTOS)

    @property
    def is_obsolete_form(self) -> bool:
        """True if a field is present that invalidates the whole filter."""
        return bool(self.src_bits) or any(dst.bits is not None for dst in self.dst_ports)


def ip_ranges(form: str) -> tuple[IpRangeBytes, ...]:
    """Return the ranges that *form* names: ``*``, an address, a CIDR, or ``first-last``.

    Raises:
        ValueError: none of these, host bits set, or the ends of a range are of different families or swapped.
    """
    if form == "*":
        return EVERYWHERE
    if "/" in form:
        prefix = parse_prefix(form)
        width = len(prefix.ip)
        low = int.from_bytes(prefix.ip, "big")
        return ((prefix.ip, (low | ((1 << (width * 8 - prefix.bits)) - 1)).to_bytes(width, "big")),)
    first_text, dash, last_text = form.partition("-")
    first = parse_ip(first_text)
    last = parse_ip(last_text) if dash else first
    if len(first) != len(last) or first > last:
        raise ValueError(f"no address range: {form!r}")
    return ((first, last),)


def matches_any(forms: tuple[str, ...], ip: IpBytes) -> bool:
    """Tell whether *ip* lies in one of the address *forms*; forms that do not parse match nothing."""
    for form in forms:
        try:
            ranges = ip_ranges(form)
        except ValueError:
            continue
        for low, high in ranges:
            if len(low) == len(ip) and low <= ip <= high:
                return True
    return False
