"""Who is behind an address: a pure function of the network map."""

from tsnetpy.base.addr import IpBytes, parse_endpoint, parse_ip, unmap
from tsnetpy.netstack.attributes import WhoIs
from tsnetpy.tailcfg import NetMap, Node

from .derive import route_table

__all__ = ["WhoIs", "whois_address", "whois_ip"]


def whois_address(netmap: NetMap | None, address: str) -> WhoIs | None:
    """Return the identity behind *address*, or ``None`` if it belongs to nobody.

    Args:
        netmap: the present network map.
        address: an IP address, or ``ip:port`` / ``[ip]:port`` as remote addresses are printed.
    """
    if netmap is None:
        return None
    try:
        ip = parse_ip(address)
    except ValueError:
        try:
            ip = parse_endpoint(address).ip
        except ValueError:
            return None
    return whois_ip(netmap, ip)


def whois_ip(netmap: NetMap | None, ip: IpBytes) -> WhoIs | None:
    """Return the identity behind the raw address *ip*.

    A node's own addresses come first; an address inside a subnet route is the routing node's, because that node's
    WireGuard key is what authenticates it. Default routes identify nobody.
    """
    if netmap is None:
        return None
    ip = unmap(ip)
    node = netmap.peer_by_ip(ip)
    if node is None:
        node = _router_for(netmap, ip)
    if node is None:
        return None
    return WhoIs(node, netmap.user_of(node), netmap.peer_capabilities(ip))


def _router_for(netmap: NetMap, ip: IpBytes) -> Node | None:
    key = route_table(netmap, accept_routes=True, accept_exit_routes=False).lookup(ip)
    return netmap.peer_by_key(key) if key is not None else None
