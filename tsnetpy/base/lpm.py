"""Longest-prefix match over IPv4 and IPv6, shared by routes and WireGuard's allowed-IPs.

A table of a tailnet is almost all /32 and /128, so the host entries are one dict lookup, and each other prefix length
in use costs one more. A lookup therefore takes at most 1 + (number of distinct prefix lengths) dict probes.
"""

from typing import Generic, TypeVar

from .addr import IpBytes, IpPrefix

T = TypeVar("T")


class PrefixTable(Generic[T]):
    """Maps prefixes to values; :meth:`lookup` returns the value of the longest prefix that contains an address."""

    __slots__ = ("_hosts", "_lengths", "_nets")

    def __init__(self) -> None:
        self._hosts: dict[bytes, T] = {}
        # family (4 or 16) -> prefix length -> network number -> value
        self._nets: dict[int, dict[int, dict[int, T]]] = {4: {}, 16: {}}
        self._lengths: dict[int, list[int]] = {4: [], 16: []}

    def __len__(self) -> int:
        return len(self._hosts) + sum(len(net) for nets in self._nets.values() for net in nets.values())

    def insert(self, prefix: IpPrefix, value: T) -> T | None:
        """Map *prefix* to *value*; return the value that it had before, if any."""
        family = len(prefix.ip)
        width = family * 8
        if prefix.bits == width:
            old = self._hosts.get(prefix.ip)
            self._hosts[prefix.ip] = value
            return old
        nets = self._nets[family]
        if prefix.bits not in nets:
            nets[prefix.bits] = {}
            self._lengths[family] = sorted(nets, reverse=True)
        number = int.from_bytes(prefix.ip, "big") >> (width - prefix.bits)
        before = nets[prefix.bits].get(number)
        nets[prefix.bits][number] = value
        return before

    def remove(self, prefix: IpPrefix) -> T | None:
        """Forget *prefix*; return the value that it had, if any."""
        family = len(prefix.ip)
        width = family * 8
        if prefix.bits == width:
            return self._hosts.pop(prefix.ip, None)
        nets = self._nets[family]
        table = nets.get(prefix.bits)
        if table is None:
            return None
        old = table.pop(int.from_bytes(prefix.ip, "big") >> (width - prefix.bits), None)
        if not table:
            del nets[prefix.bits]
            self._lengths[family] = sorted(nets, reverse=True)
        return old

    def lookup(self, ip: IpBytes) -> T | None:
        """Return the value of the longest prefix that contains *ip* (raw ``bytes``), or ``None``."""
        value = self._hosts.get(ip)
        if value is not None:
            return value
        family = len(ip)
        lengths = self._lengths.get(family)
        if not lengths:
            return None
        number = int.from_bytes(ip, "big")
        nets = self._nets[family]
        for bits in lengths:
            value = nets[bits].get(number >> (family * 8 - bits))
            if value is not None:
                return value
        return None
