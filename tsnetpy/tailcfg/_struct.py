"""The base of all messages: snake_case attributes here, Go's field names on the wire."""

from typing import Final

import msgspec

_WORDS: Final = {
    "acl": "ACL",
    "api": "API",
    "derp": "DERP",
    "dns": "DNS",
    "id": "ID",
    "ids": "IDs",
    "ip": "IP",
    "ips": "IPs",
    "ipn": "IPN",
    "ipv4": "IPv4",
    "ipv6": "IPv6",
    "icmpv4": "ICMPv4",
    "nl": "NL",
    "os": "OS",
    "pcp": "PCP",
    "pmp": "PMP",
    "ssh": "SSH",
    "stun": "STUN",
    "tka": "TKA",
    "udp": "UDP",
    "upnp": "UPnP",
    "url": "URL",
    "v4": "V4",
    "v6": "V6",
    "wg": "WireGuard",
}


def go_name(name: str) -> str:
    """Return Go's spelling of a snake_case attribute: ``home_derp`` is ``HomeDERP``."""
    return "".join(_WORDS.get(word, word.capitalize()) for word in name.split("_"))


def camel_name(name: str) -> str:
    """Return the lower camel case spelling that the SSH messages carry: ``ssh_users`` is ``sshUsers``."""
    first, _, rest = name.partition("_")
    return first + (go_name(rest) if rest else "")


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename=go_name):
    """A control message. Absent, ``null`` and zero mean the same unless a field says otherwise (as in Go)."""


class CamelMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename=camel_name):
    """A message whose Go tags are lower camel case (SSH policy, ``/key``)."""
