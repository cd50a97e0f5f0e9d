"""Which addresses may appear where."""

from typing import Final

from tsnetpy.base.addr import V4_MAPPED_PREFIX, IpBytes, parse_ip

SERVICE_V4: Final = parse_ip("100.100.100.100")
SERVICE_V6: Final = parse_ip("fd7a:115c:a1e0::53")
SERVICES: Final = frozenset({SERVICE_V4, SERVICE_V6})
"""Tailscale's in-node service addresses: always local, never on the wire."""

LINK_LOCAL_EXEMPT: Final = parse_ip("169.254.169.254")
"""The cloud metadata address, which the packet filter lets pass although it is link-local."""


def is_multicast(ip: IpBytes) -> bool:
    """Tell whether *ip* is a multicast address."""
    return ip[0] == 0xFF if len(ip) == 16 else ip[0] >> 4 == 0xE


def is_link_local(ip: IpBytes) -> bool:
    """Tell whether *ip* is a link-local unicast address."""
    if len(ip) == 16:
        return ip[0] == 0xFE and ip[1] & 0xC0 == 0x80
    return ip[0] == 169 and ip[1] == 254


def is_martian(ip: IpBytes) -> bool:
    """Tell whether *ip* can be no one's unicast address: as a source it is a forgery, as a destination a mistake."""
    if len(ip) == 4:
        # 0/8, 127/8, 224/4 and 240/4 (RFC 1122 §3.2.1.3, RFC 6890)
        return ip[0] == 0 or ip[0] == 127 or ip[0] >= 224
    if ip[0] == 0xFF:
        return True
    if ip[0]:
        return False
    return ip[:12] == V4_MAPPED_PREFIX or not any(ip[:15])  # ::, ::1 and their like (RFC 4291 §2.5)
