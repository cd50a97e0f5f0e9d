"""Which of our own addresses peers are told about, and in what order (data path reference, section 6)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tsnetpy.base.addr import Endpoint, IpBytes, parse_prefix

from .quality import is_link_local, is_loopback

ENDPOINT_UNKNOWN: Final = 0
ENDPOINT_LOCAL: Final = 1
ENDPOINT_STUN: Final = 2
ENDPOINT_PORTMAPPED: Final = 3
ENDPOINT_STUN4_LOCAL_PORT: Final = 4
ENDPOINT_EXPLICIT: Final = 5

MAX_ENDPOINTS: Final = 32
MAX_IPV6_PER_SUBNET: Final = 2

_TAILSCALE: Final = (parse_prefix("100.64.0.0/10"), parse_prefix("fd7a:115c:a1e0::/48"))
_ULA: Final = parse_prefix("fc00::/7")


@dataclass(frozen=True, slots=True)
class TypedEndpoint:
    """An address of ours and how it was learned (one of the ``ENDPOINT_*`` numbers)."""

    endpoint: Endpoint
    kind: int


def is_tailscale_ip(ip: IpBytes) -> bool:
    """Tell whether *ip* belongs to a tailnet: announcing it as an underlay address would route a tunnel into itself."""
    return any(prefix.contains(ip) for prefix in _TAILSCALE)


def gather(
    stun: Iterable[Endpoint],
    interface_ips: Sequence[IpBytes],
    *,
    port_v4: int,
    port_v6: int,
    varies: bool | None = None,
    fixed_port: int = 0,
) -> list[TypedEndpoint]:
    """Return our endpoints in the order in which control and peers get them, without repetitions.

    Args:
        stun: public addresses that STUN servers saw.
        interface_ips: raw addresses of the interfaces that are up.
        port_v4: local port of the IPv4 socket, 0 if there is none.
        port_v6: local port of the IPv6 socket, 0 if there is none.
        varies: whether the NAT maps differently towards each destination.
        fixed_port: a port that the user configured; behind a hard NAT he may have forwarded just that one.
    """
    found: dict[Endpoint, int] = {}
    stun_list = list(stun)
    for endpoint in stun_list:
        found.setdefault(endpoint, ENDPOINT_STUN)
    if varies and fixed_port:
        for endpoint in stun_list:
            if len(endpoint.ip) == 4:
                found.setdefault(Endpoint(endpoint.ip, fixed_port), ENDPOINT_STUN4_LOCAL_PORT)
    for ip in usable_interface_ips(interface_ips):
        port = port_v4 if len(ip) == 4 else port_v6
        if port:
            found.setdefault(Endpoint(ip, port), ENDPOINT_LOCAL)
    return [TypedEndpoint(endpoint, kind) for endpoint, kind in found.items()][:MAX_ENDPOINTS]


def usable_interface_ips(ips: Sequence[IpBytes]) -> list[IpBytes]:
    """Return the interface addresses worth announcing.

    No tailnet addresses; at most two IPv6 addresses of one /64 (privacy extensions make many); link-local IPv4 and
    unique local IPv6 only if there is nothing else, loopback only if there is nothing at all. IPv6 link-local never:
    it is useless without the interface it belongs to.
    """
    regular: list[IpBytes] = []
    second: list[IpBytes] = []
    loopback: list[IpBytes] = []
    per_subnet: dict[bytes, int] = {}
    for ip in ips:
        if not any(ip) or is_tailscale_ip(ip):
            continue
        if is_loopback(ip):
            loopback.append(ip)
            continue
        if is_link_local(ip):
            if len(ip) == 4:
                second.append(ip)
            continue
        if len(ip) == 16:
            count = per_subnet.get(ip[:8], 0)
            if count >= MAX_IPV6_PER_SUBNET:
                continue
            per_subnet[ip[:8]] = count + 1
            if _ULA.contains(ip):
                second.append(ip)
                continue
        regular.append(ip)
    return regular or second or loopback
