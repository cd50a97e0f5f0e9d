"""From the network map to what each part of the node needs: pure functions, one per consumer.

The map is the only source of truth; nothing here keeps state, so applying the same map twice changes nothing.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from tsnetpy.base.addr import IpBytes, IpPrefix, parse_ip
from tsnetpy.base.lpm import PrefixTable
from tsnetpy.dataplane import DataPlaneConfig, PeerSpec
from tsnetpy.derp.regions import DEFAULT_DERP_PORT, DEFAULT_STUN_PORT, DerpMap, DerpNode, DerpRegion
from tsnetpy.dns import ExtraRecord, MagicHost, MagicTable
from tsnetpy.ipstack.filter import DstRange, FilterRule, IpRange
from tsnetpy.runtime.underlay import UnderlayConfig, UnderlayPeer
from tsnetpy.tailcfg import DERPMap, NetMap, Node
from tsnetpy.tailcfg import FilterRule as WireRule
from tsnetpy.tailcfg.filter import CAP_SOURCE_PREFIX, IpRangeBytes, ip_ranges
from tsnetpy.tailcfg.times import is_zero, to_wall_ns

TAILNET_MTU: Final = 1280
"""MTU inside the tunnel, as every Tailscale node has it."""

_CAP_AAAA: Final = "magicdns-aaaa"
_CAP_SUBDOMAINS: Final = "dns-subdomain-resolve"


def usable_peers(netmap: NetMap, wall_ns: int) -> list[Node]:
    """Return the peers to talk to: not expired, with a key, and signed where tailnet lock asks for it."""
    own = netmap.self_node.key
    locked = bool(netmap.tailnet_lock_head)
    return [
        node
        for node in netmap.peers.values()
        if not node.key.is_zero
        and node.key != own
        and not node.is_expired(wall_ns)
        and (not locked or node.key_signature or node.unsigned_peer_api_only)
    ]


def next_expiry(netmap: NetMap, wall_ns: int) -> int | None:
    """Return the earliest key expiry of a peer after *wall_ns* (Unix nanoseconds): when to derive again."""
    times = [
        to_wall_ns(node.key_expiry)
        for node in netmap.peers.values()
        if node.key_expiry is not None and not is_zero(node.key_expiry)
    ]
    return min((time for time in times if time > wall_ns), default=None)


def dataplane_config(
    netmap: NetMap, node_private: bytes, wall_ns: int, *, accept_routes: bool = False, shields_up: bool = False
) -> DataPlaneConfig:
    """Return WireGuard peers, addresses and packet filter."""
    peers = tuple(
        PeerSpec(
            public_key=node.key.raw,
            allowed_ips=tuple(_allowed(node, accept_routes=accept_routes, accept_exit_routes=False)),
        )
        for node in usable_peers(netmap, wall_ns)
    )
    return DataPlaneConfig(
        private_key=node_private,
        addresses=netmap.addresses,
        peers=peers,
        filter_rules=filter_rules(netmap),
        mtu=TAILNET_MTU,
        shields_up=shields_up,
    )


def underlay_config(netmap: NetMap, node_private: bytes, wall_ns: int) -> UnderlayConfig:
    """Return how peers may be reached below the tunnel."""
    peers = tuple(
        UnderlayPeer(
            node_key=node.key.raw,
            disco_key=None if node.is_wireguard_only or node.disco_key is None else node.disco_key.raw,
            endpoints=node.endpoint_addresses,
            home_derp=node.home_derp,
        )
        for node in usable_peers(netmap, wall_ns)
    )
    return UnderlayConfig(node_private=node_private, peers=peers, derp_map=derp_map(netmap.derp_map))


def derp_map(source: DERPMap | None) -> DerpMap:
    """Return the data path's form of the relay map."""
    if source is None:
        return DerpMap()
    regions = {
        number: DerpRegion(
            region_id=number,
            code=region.region_code,
            name=region.region_name,
            no_measure_no_home=region.no_measure_no_home or region.avoid,
            nodes=tuple(
                DerpNode(
                    name=node.name,
                    region_id=number,
                    host_name=node.host_name,
                    cert_name=node.cert_name,
                    ipv4=node.ipv4,
                    ipv6=node.ipv6,
                    stun_port=node.stun_port or DEFAULT_STUN_PORT,
                    stun_only=node.stun_only,
                    derp_port=node.derp_port or DEFAULT_DERP_PORT,
                    insecure_for_tests=node.insecure_for_tests,
                )
                for node in region.nodes
            ),
        )
        for number, region in source.known_regions.items()
    }
    scores = (source.home_params.region_score or {}) if source.home_params is not None else {}
    return DerpMap(regions=regions, region_scores=scores)


def magic_table(netmap: NetMap) -> MagicTable:
    """Return the names of the tailnet by the rules of MagicDNS."""
    dns = netmap.dns_config
    self_node = netmap.self_node
    nodes = [self_node, *sorted(netmap.peers.values(), key=lambda node: node.id)]
    hosts = [
        MagicHost(node.fqdn, node.address_bytes, subdomains=node.has_cap(_CAP_SUBDOMAINS))
        for node in nodes
        if node.name
    ]
    extra = []
    zones = []
    for record in dns.extra_records if dns is not None else ():
        try:
            ip = parse_ip(record.value)
        except ValueError:
            continue
        if record.type in ("", "A" if len(ip) == 4 else "AAAA"):
            extra.append(ExtraRecord(record.name, ip))
    if dns is not None:
        zones = [suffix for suffix, resolvers in dns.routes.items() if not resolvers]
    only_v6 = all(len(ip) == 16 for ip in self_node.address_bytes)
    return MagicTable(
        netmap.magic_dns_suffix,
        hosts,
        extra,
        search_domains=dns.domains if dns is not None else (),
        authoritative_zones=zones,
        bare_names=dns.proxied if dns is not None else False,
        answer_aaaa=only_v6 or self_node.has_cap(_CAP_AAAA),
    )


def route_table(netmap: NetMap, *, accept_routes: bool, accept_exit_routes: bool) -> PrefixTable[bytes]:
    """Return which peer (by raw node key) an address is sent to."""
    table: PrefixTable[bytes] = PrefixTable()
    for node in netmap.peers.values():
        for prefix in _allowed(node, accept_routes=accept_routes, accept_exit_routes=accept_exit_routes):
            table.insert(prefix, node.key.raw)
    return table


def filter_rules(netmap: NetMap) -> tuple[FilterRule, ...]:
    """Return the packet filter in the stack's form. An empty result lets nothing in (control-protocol.md section 7)."""
    rules = netmap.packet_filter
    if any(rule.is_obsolete_form for rule in rules):
        return ()
    jailed = [ip for node in netmap.peers.values() if node.is_jailed for ip in node.address_bytes]
    unsigned = [ip for node in netmap.peers.values() if node.unsigned_peer_api_only for ip in node.address_bytes]
    out = []
    for rule in rules:
        if not rule.dst_ports:
            continue
        sources = _sources(rule, netmap)
        if any(low <= ip <= high for ip in unsigned for low, high in sources if len(low) == len(ip)):
            # A peer that is exempt from tailnet lock must never pass the filter: the official client then trusts none
            # of it, because a server that sends this is either broken or hostile.
            return ()
        sources = _without(sources, jailed)
        destinations = _destinations(rule)
        if sources and destinations:
            out.append(
                FilterRule(
                    srcs=tuple(IpRange(low, high) for low, high in sources), dsts=destinations, protos=rule.protos
                )
            )
    return tuple(out)


def _allowed(node: Node, *, accept_routes: bool, accept_exit_routes: bool) -> Iterable[IpPrefix]:
    own = set(node.address_bytes)
    for prefix in node.allowed_prefixes:
        if prefix.is_single_ip and prefix.ip in own:
            yield prefix
        elif prefix.bits == 0:
            if accept_exit_routes:
                yield prefix
        elif accept_routes and not node.unsigned_peer_api_only:
            yield prefix


def _sources(rule: WireRule, netmap: NetMap) -> list[IpRangeBytes]:
    sources: list[IpRangeBytes] = []
    for form in rule.src_ips:
        if form.startswith(CAP_SOURCE_PREFIX):
            capability = form.removeprefix(CAP_SOURCE_PREFIX)
            for node in (netmap.self_node, *netmap.peers.values()):
                if capability in node.cap_map:
                    sources.extend((ip, ip) for ip in node.address_bytes)
            continue
        try:
            sources.extend(ip_ranges(form))
        except ValueError:
            continue
    return sources


def _destinations(rule: WireRule) -> tuple[DstRange, ...]:
    out: list[DstRange] = []
    for destination in rule.dst_ports:
        try:
            ranges = ip_ranges(destination.ip)
        except ValueError:
            continue
        ports = destination.ports
        out.extend(DstRange(IpRange(low, high), ports.first, ports.last) for low, high in ranges)
    return tuple(out)


def _without(ranges: Sequence[IpRangeBytes], holes: Sequence[IpBytes]) -> list[IpRangeBytes]:
    """Return *ranges* with the single addresses *holes* cut out."""
    out = list(ranges)
    for hole in holes:
        cut: list[IpRangeBytes] = []
        for low, high in out:
            if len(low) != len(hole) or not low <= hole <= high:
                cut.append((low, high))
                continue
            number = int.from_bytes(hole, "big")
            if low < hole:
                cut.append((low, (number - 1).to_bytes(len(hole), "big")))
            if hole < high:
                cut.append(((number + 1).to_bytes(len(hole), "big"), high))
        out = cut
    return out
