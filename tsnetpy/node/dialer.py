"""From what an application dials to an address of the tailnet. A dial never leaves through the host's network."""

import errno
from typing import Final

from tsnetpy.base.addr import IpBytes, format_ip, parse_ip, unmap
from tsnetpy.base.errors import DialError
from tsnetpy.base.lpm import PrefixTable
from tsnetpy.dns import MAGIC_DNS_V4, MAGIC_DNS_V6, MagicTable, resolve_name
from tsnetpy.tailcfg import NetMap

from .derive import magic_table, route_table

_SERVICES: Final = frozenset({MAGIC_DNS_V4, MAGIC_DNS_V6})


class Dialer:
    """Resolves names and checks routes against one network map at a time.

    Args:
        accept_routes: addresses inside peers' subnet routes count as reachable.
    """

    __slots__ = ("_accept_routes", "_netmap", "_routes", "table")

    def __init__(self, *, accept_routes: bool = False) -> None:
        self._accept_routes = accept_routes
        self._netmap: NetMap | None = None
        self._routes: PrefixTable[bytes] = PrefixTable()
        self.table = MagicTable()
        """The names of the tailnet, also for DNS queries."""

    def update(self, netmap: NetMap) -> None:
        """Use *netmap* from now on."""
        self._netmap = netmap
        self._routes = route_table(netmap, accept_routes=self._accept_routes, accept_exit_routes=False)
        self.table = magic_table(netmap)

    def resolve(self, host: str) -> tuple[IpBytes, ...]:
        """Return the addresses of *host* (a name of the tailnet or an address), the preferred one first.

        Raises:
            DialError: the tailnet knows no such name (``EHOSTUNREACH``).
        """
        text = host.strip()
        if text.startswith("[") and text.endswith("]"):
            text = text[1:-1]
        try:
            return (unmap(parse_ip(text)),)
        except ValueError:
            pass
        found = resolve_name(self.table, text) if text else ()
        if not found:
            raise DialError(
                f"{host}: no such name in the tailnet",
                errno=errno.EHOSTUNREACH,
                hint="dials stay inside the tailnet; names are those of nodes, extra records and MagicDNS",
            )
        return found

    def route(self, host: str) -> IpBytes:
        """Return the address to dial for *host*: the first that is reachable with the node's own addresses.

        Raises:
            DialError: no such name (``EHOSTUNREACH``), or no peer has that address (``ENETUNREACH``).
        """
        addresses = self.resolve(host)
        own = self._netmap.addresses if self._netmap is not None else ()
        families = {len(ip) for ip in own}
        for ip in addresses:
            if ip in _SERVICES or ip in own:
                return ip
            if len(ip) in families and self._routes.lookup(ip) is not None:
                return ip
        shown = format_ip(addresses[0])
        where = host if shown == host else f"{host} ({shown})"
        raise DialError(
            f"{where}: not on the tailnet",
            errno=errno.ENETUNREACH,
            hint="no peer that this node may see has that address; for subnet routes set accept_routes=True",
        )
