"""The decision for one question: which answer the resolver inside every node gives. Pure; no bytes of DNS here.

The order of the rules and what each one says were recorded from the official resolver (1.102.5); see the tests.
"""

from typing import Final

from tsnetpy.base.addr import IpBytes

from .codec import Answer, QType, Rcode
from .magic import (
    MAGIC_DNS_NAME,
    MAGIC_DNS_V4,
    MAGIC_DNS_V6,
    MagicTable,
    address_of_reverse_name,
    via_address,
)

_BROWSE_LABELS: Final = frozenset(("b", "db", "r", "dr", "lb"))  # RFC 6763 §11
_UNIMPLEMENTED: Final = frozenset((int(QType.NS), int(QType.SOA), int(QType.AXFR), int(QType.HINFO)))

# There is no upstream to ask; the official resolver without one says the same, flags included.
_NO_UPSTREAM: Final = Answer(Rcode.SERVFAIL, recursion_available=False)


def decide(name: str, qtype: int, table: MagicTable) -> Answer:
    """Return the answer for *name* (lower case, no final dot) and the query type *qtype*."""
    if name.endswith(".onion"):  # RFC 7686 §2: never let these out
        return Answer(Rcode.NXDOMAIN)
    if qtype == QType.PTR:
        return _decide_pointer(name, table)
    if name == MAGIC_DNS_NAME:
        if qtype == QType.A:
            return Answer(Rcode.NOERROR, (MAGIC_DNS_V4,))
        return Answer(Rcode.NOERROR, (MAGIC_DNS_V6,)) if qtype == QType.AAAA else _NO_UPSTREAM
    if qtype in (QType.A, QType.AAAA, QType.ANY):
        via = via_address(name)
        if via is not None:
            return Answer(Rcode.NOERROR, () if qtype == QType.A else (via,))
    addresses = table.answers_for(name)
    zone = table.zone_of(name)
    if addresses is not None:
        return _decide_known(addresses, qtype, zone)
    return Answer(Rcode.NXDOMAIN, soa_zone=zone) if zone else _NO_UPSTREAM


def _decide_known(addresses: tuple[IpBytes, ...], qtype: int, zone: str) -> Answer:
    """Answer for a name that exists. One address per family is shown although there may be more, as recorded."""
    if qtype == QType.ANY:
        return Answer(Rcode.NOERROR, addresses[:1])
    if qtype in (QType.A, QType.AAAA):
        size = 4 if qtype == QType.A else 16
        matching = tuple(ip for ip in addresses if len(ip) == size)[:1]
        return Answer(Rcode.NOERROR, matching, soa_zone="" if matching else zone)
    return Answer(Rcode.NOTIMP if qtype in _UNIMPLEMENTED else Rcode.NOERROR)


def _decide_pointer(name: str, table: MagicTable) -> Answer:
    label, _, rest = name.partition(".")
    if label in _BROWSE_LABELS and rest.startswith("_dns-sd._udp."):
        return Answer(Rcode.NXDOMAIN, authoritative=False)
    ip = address_of_reverse_name(name)
    if ip is None:
        return _NO_UPSTREAM
    target = table.name_of(ip)
    if target is not None:
        return Answer(Rcode.NOERROR, pointer=target)
    zone = table.zone_of(name)
    return Answer(Rcode.NXDOMAIN, soa_zone=zone) if zone else _NO_UPSTREAM
