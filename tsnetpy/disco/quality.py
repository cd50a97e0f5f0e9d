"""Which of two UDP paths to a peer is the better one (data path reference, section 2.2, ``betterAddr``)."""

from dataclasses import dataclass
from typing import Final, final

from tsnetpy.base.addr import Endpoint, IpBytes, parse_prefix
from tsnetpy.base.instant import Duration

LOOPBACK_POINTS: Final = 50
LINK_LOCAL_POINTS: Final = 30
PRIVATE_POINTS: Final = 20
IPV6_POINTS: Final = 10

_LOOPBACK: Final = (parse_prefix("127.0.0.0/8"), parse_prefix("::1/128"))
_LINK_LOCAL: Final = (parse_prefix("169.254.0.0/16"), parse_prefix("fe80::/10"))
_PRIVATE: Final = tuple(map(parse_prefix, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")))


@final
@dataclass(slots=True)
class AddrQuality:
    """A proven address and the round trip measured to it."""

    endpoint: Endpoint
    latency_ns: Duration


def is_loopback(ip: IpBytes) -> bool:
    """Tell whether *ip* is in 127.0.0.0/8 or is ::1."""
    return any(prefix.contains(ip) for prefix in _LOOPBACK)


def is_link_local(ip: IpBytes) -> bool:
    """Tell whether *ip* is in 169.254.0.0/16 or fe80::/10."""
    return any(prefix.contains(ip) for prefix in _LINK_LOCAL)


def is_private(ip: IpBytes) -> bool:
    """Tell whether *ip* is an RFC 1918 or an IPv6 unique local address."""
    return any(prefix.contains(ip) for prefix in _PRIVATE)


def better_addr(a: AddrQuality, b: AddrQuality | None) -> bool:
    """Tell whether *a* should replace *b* as the best address.

    Each gets the percentage by which it is faster than the slower one, plus a bonus for nearness (loopback, link-local,
    private) and for IPv6. A gain of one percent or less is no reason to move: two equal paths would flap.
    """
    if b is None:
        return True
    if a.endpoint == b.endpoint:
        return False
    a_points = b_points = 0
    if a.latency_ns > b.latency_ns:
        b_points = 100 - b.latency_ns * 100 // a.latency_ns
    elif b.latency_ns > 0:
        a_points = 100 - a.latency_ns * 100 // b.latency_ns
    a_points += _bonus(a.endpoint.ip)
    b_points += _bonus(b.endpoint.ip)
    if a_points <= 1 and b_points == 0:
        return False
    return a_points > b_points


def _bonus(ip: IpBytes) -> int:
    points = IPV6_POINTS if len(ip) == 16 else 0
    if is_loopback(ip):
        points += LOOPBACK_POINTS
    elif is_link_local(ip):
        points += LINK_LOCAL_POINTS
    elif is_private(ip):
        points += PRIVATE_POINTS
    return points
