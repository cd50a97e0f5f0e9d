"""DNS settings that the coordination server hands out."""

import msgspec

from ._struct import Message


class Resolver(Message, frozen=True, kw_only=True):
    """An upstream resolver: ``ip``, ``ip:port``, ``https://…`` (DoH) or ``http://…`` (a peer's DoH over WireGuard)."""

    addr: str = ""
    bootstrap_resolution: tuple[str, ...] = ()
    use_with_exit_node: bool = False


class DNSRecord(Message, frozen=True, kw_only=True):
    """An extra record: *type* is empty, ``A`` or ``AAAA``."""

    name: str = ""
    type: str = ""
    value: str = ""


class DNSConfig(Message, frozen=True, kw_only=True):
    """How names resolve in this tailnet."""

    resolvers: tuple[Resolver, ...] = ()
    """Global resolvers; they override local DNS."""
    routes: dict[str, tuple[Resolver, ...] | None] = msgspec.field(default_factory=dict)
    """Suffix to its resolvers; empty (or the older ``null``) means: answered inside."""
    fallback_resolvers: tuple[Resolver, ...] = ()
    domains: tuple[str, ...] = ()
    """Search list, without trailing dots."""
    proxied: bool = False
    """MagicDNS is on."""
    nameservers: tuple[str, ...] = ()
    cert_domains: tuple[str, ...] = ()
    extra_records: tuple[DNSRecord, ...] = ()
    exit_node_filtered_set: tuple[str, ...] = ()
