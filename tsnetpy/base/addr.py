"""Addresses. On the packet path an IP address is its raw 4 or 16 bytes, and its length tells the family."""

import ipaddress
from typing import Final, NamedTuple, TypeAlias

IpBytes: TypeAlias = bytes
"""A raw IPv4 (4 bytes) or IPv6 (16 bytes) address."""

V4_MAPPED_PREFIX: Final = bytes(10) + b"\xff\xff"


class Endpoint(NamedTuple):
    """An IP address (raw bytes) and a port."""

    ip: IpBytes
    port: int

    def __str__(self) -> str:
        text = format_ip(self.ip)
        return f"[{text}]:{self.port}" if len(self.ip) == 16 else f"{text}:{self.port}"


class IpPrefix(NamedTuple):
    """A CIDR prefix: raw address bytes (host bits clear) and the length in bits."""

    ip: IpBytes
    bits: int

    def __str__(self) -> str:
        return f"{format_ip(self.ip)}/{self.bits}"

    def contains(self, ip: IpBytes) -> bool:
        """Tell whether *ip* (raw bytes; a different family never matches) lies inside."""
        if len(ip) != len(self.ip):
            return False
        shift = len(ip) * 8 - self.bits
        return int.from_bytes(ip, "big") >> shift == int.from_bytes(self.ip, "big") >> shift

    @property
    def is_single_ip(self) -> bool:
        """True for a /32 or a /128."""
        return self.bits == len(self.ip) * 8


def parse_ip(text: str) -> IpBytes:
    """Return the raw bytes of an IPv4 or IPv6 address in text form.

    Raises:
        ValueError: *text* is no address (zone indices are refused).
    """
    if "%" in text:
        raise ValueError(f"address with a zone: {text!r}")
    return ipaddress.ip_address(text).packed


def format_ip(ip: IpBytes) -> str:
    """Return the canonical text form (RFC 5952 for IPv6) of a raw address."""
    if len(ip) == 4:
        return f"{ip[0]}.{ip[1]}.{ip[2]}.{ip[3]}"
    return str(ipaddress.IPv6Address(ip))


def parse_prefix(text: str) -> IpPrefix:
    """Return the prefix that *text* (``address/bits`` or a bare address) names.

    Raises:
        ValueError: no prefix, or host bits are set.
    """
    network = ipaddress.ip_network(text, strict=True)
    return IpPrefix(network.network_address.packed, network.prefixlen)


def parse_endpoint(text: str) -> Endpoint:
    """Return the endpoint in ``1.2.3.4:5`` or ``[::1]:5``.

    Raises:
        ValueError: not of that form, or the port is outside 0-65535.
    """
    host, colon, port_text = text.rpartition(":")
    if not colon or not port_text.isascii() or not port_text.isdigit():
        raise ValueError(f"no endpoint: {text!r}")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    ip = parse_ip(host)
    port = int(port_text)
    if port > 65535 or (len(ip) == 16) != bracketed:
        raise ValueError(f"no endpoint: {text!r}")
    return Endpoint(ip, port)


def unmap(ip: IpBytes) -> IpBytes:
    """Return the IPv4 address inside ``::ffff:a.b.c.d``, or *ip* unchanged."""
    if len(ip) == 16 and ip[:12] == V4_MAPPED_PREFIX:
        return ip[12:]
    return ip


def to_ip16(ip: IpBytes) -> bytes:
    """Return the 16-byte form that disco and STUN carry (IPv4 as ``::ffff:a.b.c.d``)."""
    return V4_MAPPED_PREFIX + ip if len(ip) == 4 else ip
