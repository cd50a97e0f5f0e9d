"""The names of a tailnet as one immutable table, and the rules for looking them up.

The table is built from plain data, so that every owner of a netmap can make one with a pure function. Names inside are
lower case without a final dot.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, final

from tsnetpy.base.addr import IpBytes, parse_ip

MAGIC_DNS_NAME: Final = "magicdns.localhost-tailscale-daemon"
MAGIC_DNS_V4: Final[IpBytes] = bytes((100, 100, 100, 100))
"""100.100.100.100, the address of the resolver inside every node."""
MAGIC_DNS_V6: Final[IpBytes] = bytes.fromhex("fd7a115ca1e000000000000000000053")
"""fd7a:115c:a1e0::53, the same over IPv6."""

VIA_PREFIX: Final = bytes.fromhex("fd7a115ca1e00b1a")
"""fd7a:115c:a1e0:b1a::/64, in which 4via6 addresses lie."""
_VIA_SUFFIXES: Final = (".ts.net", ".tailscale.net")

REVERSE_ZONES: Final = (*(f"{n}.100.in-addr.arpa" for n in range(64, 128)), "0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa")
"""The reverse zones of 100.64.0.0/10 and fd7a:115c:a1e0::/48."""


@dataclass(frozen=True, slots=True)
class MagicHost:
    """A node of the tailnet."""

    name: str
    """The full name, ``server.tailnet.example``; a final dot and the case do not matter."""
    addresses: tuple[IpBytes, ...]
    """Its addresses inside the tailnet."""
    subdomains: bool = False
    """True with the node capability ``dns-subdomain-resolve``: every name below answers as well."""


@dataclass(frozen=True, slots=True)
class ExtraRecord:
    """An address record that the coordination server adds to the tailnet's names."""

    name: str
    address: IpBytes


@final
class MagicTable:
    """All names of a tailnet. Immutable; make a new one when the netmap changes.

    Attributes:
        suffix: the MagicDNS suffix in lower case without dots around it, or ``""``.
        search_domains: what a name with too few labels is completed with, in order.
        zones: the zones in which a missing name is NXDOMAIN; longest first.
    """

    __slots__ = (
        "_addresses",
        "_answers",
        "_bare",
        "_bare_answers",
        "_pointers",
        "_wild",
        "search_domains",
        "suffix",
        "zones",
    )

    def __init__(
        self,
        suffix: str = "",
        hosts: Iterable[MagicHost] = (),
        extra_records: Iterable[ExtraRecord] = (),
        *,
        search_domains: Iterable[str] = (),
        authoritative_zones: Iterable[str] = (),
        bare_names: bool = True,
        answer_aaaa: bool = False,
    ) -> None:
        """Build the table.

        Args:
            suffix: the MagicDNS suffix (``tailnet.example``).
            hosts: this node and its peers.
            extra_records: records from the coordination server; they win over hosts of the same name.
            search_domains: domains for completing names, in order.
            authoritative_zones: more zones to answer for, like split routes without a resolver.
            bare_names: answer for ``server`` as for ``server.<suffix>`` (MagicDNS is on for the tailnet).
            answer_aaaa: answer AAAA queries for hosts that have an IPv4 address, too. The official resolver does so
                only with the node capability ``magicdns-aaaa`` or on nodes without IPv4. Dials do not care.
        """
        self.suffix: str = fold_name(suffix)
        self.search_domains: tuple[str, ...] = tuple(fold_name(domain) for domain in search_domains)
        zones = {self.suffix, *REVERSE_ZONES, *(fold_name(zone) for zone in authoritative_zones)} - {""}
        self.zones: tuple[str, ...] = tuple(sorted(zones, key=lambda zone: (-len(zone), zone)))
        addresses: dict[str, tuple[IpBytes, ...]] = {}
        answers: dict[str, tuple[IpBytes, ...]] = {}
        bare: dict[str, tuple[IpBytes, ...]] = {}
        bare_answers: dict[str, tuple[IpBytes, ...]] = {}
        pointers: dict[IpBytes, str] = {MAGIC_DNS_V4: MAGIC_DNS_NAME, MAGIC_DNS_V6: MAGIC_DNS_NAME}
        wild: set[str] = set()
        for host in hosts:
            name = fold_name(host.name)
            known = tuple(sorted(host.addresses, key=len))
            shown = known if answer_aaaa else tuple(ip for ip in known if len(ip) == len(known[0]))
            addresses[name] = known
            answers[name] = shown
            if bare_names and self.suffix and name.endswith("." + self.suffix):
                label = name[: -len(self.suffix) - 1]
                if "." not in label:
                    bare[label] = known
                    bare_answers[label] = shown
            for ip in known:
                pointers[ip] = name
            if host.subdomains:
                wild.add(name)
        extra: dict[str, list[IpBytes]] = {}
        for record in extra_records:
            name = fold_name(record.name)
            extra.setdefault(name, []).append(record.address)
            pointers[record.address] = name
        for name, found in extra.items():
            addresses[name] = answers[name] = tuple(sorted(found, key=len))
        self._addresses: Mapping[str, tuple[IpBytes, ...]] = MappingProxyType(addresses)
        self._answers: Mapping[str, tuple[IpBytes, ...]] = MappingProxyType(answers)
        self._bare: Mapping[str, tuple[IpBytes, ...]] = MappingProxyType(bare)
        self._bare_answers: Mapping[str, tuple[IpBytes, ...]] = MappingProxyType(bare_answers)
        self._pointers: Mapping[IpBytes, str] = MappingProxyType(pointers)
        self._wild: frozenset[str] = frozenset(wild)

    def addresses_of(self, name: str) -> tuple[IpBytes, ...] | None:
        """Return every address of *name* (already folded), IPv4 first, or None when there is no such name."""
        return self._find(name, self._addresses, self._bare)

    def answers_for(self, name: str) -> tuple[IpBytes, ...] | None:
        """Return the addresses of *name* (already folded) that DNS answers show, or None when there is no such name."""
        return self._find(name, self._answers, self._bare_answers)

    def _find(
        self, name: str, full: Mapping[str, tuple[IpBytes, ...]], bare: Mapping[str, tuple[IpBytes, ...]]
    ) -> tuple[IpBytes, ...] | None:
        found = full.get(name)
        if found is None:
            found = bare.get(name)
        if found is None and self._wild:
            parent = name.partition(".")[2]
            while parent:
                if parent in self._wild:
                    return full.get(parent)
                parent = parent.partition(".")[2]
        return found

    def name_of(self, ip: IpBytes) -> str | None:
        """Return the name that a PTR query for *ip* is answered with, or None."""
        return self._pointers.get(ip)

    def zone_of(self, name: str) -> str:
        """Return the authoritative zone that *name* (already folded) lies in, or ``""``."""
        for zone in self.zones:
            if name == zone or name.endswith("." + zone):
                return zone
        return ""


def fold_name(name: str) -> str:
    """Return *name* in the form that the table uses: lower case, no dots around it."""
    return name.strip(".").lower()


def resolve_name(table: MagicTable, name: str) -> tuple[IpBytes, ...]:
    """Return the addresses that a dial to *name* may use: IPv4 first, then IPv6; empty when there is no such name.

    Unlike DNS answers this always includes IPv6. A name with a final dot is not completed with the search domains.
    """
    folded = fold_name(name)
    candidates = [folded]
    if not name.endswith("."):
        candidates += [f"{folded}.{domain}" for domain in table.search_domains if domain]
    for candidate in candidates:
        if candidate == MAGIC_DNS_NAME:
            return (MAGIC_DNS_V4, MAGIC_DNS_V6)
        if (via := via_address(candidate)) is not None:
            return (via,)
        found = table.addresses_of(candidate)
        if found:
            return found
    return ()


def via_address(name: str) -> IpBytes | None:
    """Return the IPv6 address of a 4via6 name (already folded) like ``10-1-1-1-via-7``, or None when *name* is no such.

    The site is a number in any base prefix that Go knows (``0x10``, ``0b1``, ``010``), below 2**32.
    """
    for suffix in _VIA_SUFFIXES:
        if name.endswith(suffix):
            name = name.partition(".")[0]
            break
    if "." in name:
        return None
    head, mark, site_text = name.rpartition("-via-")
    if not mark or head.count("-") != 3:
        return None
    site = _go_int(site_text)
    if site is None:
        return None
    try:
        v4 = parse_ip(head.replace("-", "."))
    except ValueError:
        return None
    return VIA_PREFIX + site.to_bytes(4, "big") + v4


def _go_int(text: str) -> int | None:
    """Parse like Go's ``strconv.ParseUint(text, 0, 32)``; None when it would fail."""
    if not text.isascii() or not text[:1].isdigit():
        return None
    if len(text) > 1 and text[0] == "0" and text[1].isdigit():
        text = "0o" + text[1:]
    try:
        value = int(text, 0)
    except ValueError:
        return None
    return value if value < 1 << 32 else None


def reverse_name(ip: IpBytes) -> str:
    """Return the name under which the PTR record of *ip* is asked for (RFC 1035 §3.5, RFC 3596 §2.5)."""
    if len(ip) == 4:
        return ".".join(str(byte) for byte in reversed(ip)) + ".in-addr.arpa"
    return ".".join(reversed(ip.hex())) + ".ip6.arpa"


def address_of_reverse_name(name: str) -> IpBytes | None:
    """Return the address of a complete reverse name (already folded), or None when *name* is none."""
    if name.endswith(".in-addr.arpa"):
        parts = name.removesuffix(".in-addr.arpa").split(".")
        if len(parts) != 4:
            return None
        try:
            return parse_ip(".".join(reversed(parts)))
        except ValueError:
            return None
    if name.endswith(".ip6.arpa"):
        nibbles = name.removesuffix(".ip6.arpa")
        digits = nibbles[::-2]
        if len(nibbles) != 63 or nibbles[1::2] != "." * 31 or not all(digit in "0123456789abcdef" for digit in digits):
            return None
        return bytes.fromhex(digits)
    return None
