"""Addresses for nodes: sequential, and never given out twice, not even after a node is gone.

Reuse would let a new node inherit what peers, firewalls and caches still hold against the old one, and 100.64.0.0/10
has room for four million nodes. Ranges: datapath reference, section 10.
"""

from typing import Final

from tsnetpy.base.addr import IpBytes, IpPrefix, parse_prefix
from tsnetpy.base.errors import ConfigError

V4_RANGE: Final = parse_prefix("100.64.0.0/10")
V6_RANGE: Final = parse_prefix("fd7a:115c:a1e0::/48")

RESERVED: Final = (
    parse_prefix("100.100.100.0/24"),  # the service address 100.100.100.100 and its neighbours
    parse_prefix("100.115.92.0/23"),  # ChromeOS's own network; clients do not take it for a Tailscale address
    parse_prefix("fd7a:115c:a1e0::53/128"),  # the service address
)
"""Parts of the default ranges that no node may get."""


class AddressesExhausted(ConfigError):
    """The address range has no address left."""


class AddressPool:
    """Hands out the addresses of one prefix in order.

    Args:
        prefix: where the addresses come from; its first address (and IPv4's last) stays unused.
        next_offset: the offset into *prefix* at which to go on, as kept in the state file.
    """

    __slots__ = ("next_offset", "prefix")

    def __init__(self, prefix: IpPrefix, next_offset: int = 1) -> None:
        self.prefix = prefix
        self.next_offset = max(next_offset, 1)

    def allocate(self) -> IpBytes:
        """Return the next address (raw bytes).

        Raises:
            AddressesExhausted: there is none.
        """
        width = len(self.prefix.ip)
        base = int.from_bytes(self.prefix.ip, "big")
        size = 1 << (width * 8 - self.prefix.bits)
        end = size - 1 if width == 4 else size
        while self.next_offset < end:
            ip = (base + self.next_offset).to_bytes(width, "big")
            skip = next((reserved for reserved in RESERVED if reserved.contains(ip)), None)
            if skip is None:
                self.next_offset += 1
                return ip
            skip_size = 1 << (width * 8 - skip.bits)
            self.next_offset = int.from_bytes(skip.ip, "big") + skip_size - base
        raise AddressesExhausted(f"no address left in {self.prefix}")
