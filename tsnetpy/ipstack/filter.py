"""The packet filter: what the tailnet's policy lets in (control protocol reference, section 7).

Outbound, everything to a unicast address may leave, and UDP and SCTP flows are remembered so that answers come back.
Inbound, the destination must be local, and then: TCP passes unless it opens a connection; answers to remembered flows
pass; ICMP replies and errors pass; all else needs a rule. The default is to drop.

Fragments: the filter judges the first fragment, which must hold the whole transport header (:mod:`tsnetpy.nic.parse`
refuses any other), and lets later ones through. Without its first fragment a datagram never becomes whole, so a refused
one dies in the reassembler, within its bounds per peer.

The filter runs on super-segments. TCP segments of existing connections cost two set look-ups; verdicts of rules are
cached by source, destination, protocol and port until the rules change.
"""

from bisect import bisect_right
from collections.abc import Iterable
from typing import Final, NamedTuple, final

from tsnetpy.base.addr import IpBytes, IpPrefix, parse_ip
from tsnetpy.base.lpm import PrefixTable
from tsnetpy.base.packet import PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_TSMP, PROTO_UDP, TxPacket
from tsnetpy.base.stats import Drops
from tsnetpy.nic.rx import RxPacket
from tsnetpy.tcp import rst_for
from tsnetpy.wire import icmpv4, icmpv6
from tsnetpy.wire.tcp import ACK, SYN, encode_header
from tsnetpy.wire.tsmp import REASON_ACL, REASON_SHIELDS_UP, Rejected

from .addresses import LINK_LOCAL_EXEMPT, is_link_local, is_multicast

PROTO_SCTP: Final = 132
DEFAULT_PROTOS: Final = frozenset({PROTO_TCP, PROTO_UDP, PROTO_ICMP, PROTO_ICMPV6})
"""What a rule without protocols is about."""

CONNTRACK_ENTRIES: Final = 512
"""Remembered outbound UDP and SCTP flows; they have no timeout, only the least recently used makes room."""
_CACHE_ENTRIES: Final = 4096
_REJECTS: Final = 128
"""Rejections that wait to be taken; more are not sent."""


class IpRange(NamedTuple):
    """Addresses from *lo* to *hi*, both included, of one family."""

    lo: IpBytes
    hi: IpBytes


class DstRange(NamedTuple):
    """Local addresses and ports, all bounds included."""

    ips: IpRange
    first_port: int
    last_port: int


class FilterRule(NamedTuple):
    """Lets packets from *srcs* to *dsts* in; empty *protos* stands for TCP, UDP and both ICMPs."""

    srcs: tuple[IpRange, ...]
    dsts: tuple[DstRange, ...]
    protos: frozenset[int] = frozenset()


ANY_IP: Final = (IpRange(bytes(4), b"\xff" * 4), IpRange(bytes(16), b"\xff" * 16))
"""What ``*`` means."""


def parse_ip_ranges(text: str) -> tuple[IpRange, ...]:
    """Return the ranges that an entry of SrcIPs or DstPorts names: ``*``, an address, a CIDR prefix, or ``a-b``.

    Raises:
        ValueError: none of these, a prefix with host bits set, or a range that is empty or of two families.
    """
    if text == "*":
        return ANY_IP
    low_text, dash, high_text = text.partition("-")
    if dash:
        lo, hi = parse_ip(low_text), parse_ip(high_text)
        if len(lo) != len(hi) or lo > hi:
            raise ValueError(f"no address range: {text!r}")
        return (IpRange(lo, hi),)
    address, slash, bits_text = text.partition("/")
    lo = parse_ip(address)
    if not slash:
        return (IpRange(lo, lo),)
    width = len(lo) * 8
    if not bits_text.isascii() or not bits_text.isdigit() or int(bits_text) > width:
        raise ValueError(f"no address prefix: {text!r}")
    host = (1 << (width - int(bits_text))) - 1
    number = int.from_bytes(lo, "big")
    if number & host:
        raise ValueError(f"prefix with host bits set: {text!r}")
    return (IpRange(lo, (number | host).to_bytes(len(lo), "big")),)


@final
class _RangeSet:
    """Sorted disjoint ranges of one family; membership by bisection."""

    __slots__ = ("_his", "_los")

    def __init__(self, ranges: Iterable[IpRange]) -> None:
        self._los: list[bytes] = []
        self._his: list[bytes] = []
        for lo, hi in sorted(ranges):
            if self._his and lo <= self._his[-1]:
                self._his[-1] = max(self._his[-1], hi)
            else:
                self._los.append(lo)
                self._his.append(hi)

    def __contains__(self, ip: object) -> bool:
        assert isinstance(ip, bytes)
        at = bisect_right(self._los, ip) - 1
        return at >= 0 and ip <= self._his[at]


@final
class _Rule:
    """A rule reduced to one address family."""

    __slots__ = ("dsts", "protos", "srcs")

    def __init__(self, rule: FilterRule, family: int) -> None:
        self.srcs = _RangeSet(r for r in rule.srcs if len(r.lo) == family)
        self.dsts = [d for d in rule.dsts if len(d.ips.lo) == family]
        self.protos = rule.protos or DEFAULT_PROTOS

    def covers_address(self, ip: IpBytes) -> bool:
        return any(ips.lo <= ip <= ips.hi for ips, _, _ in self.dsts)

    def covers(self, ip: IpBytes, port: int) -> bool:
        return any(first <= port <= last and ips.lo <= ip <= ips.hi for ips, first, last in self.dsts)

    def covers_all_ports(self, ip: IpBytes) -> bool:
        return any(first == 0 and last == 65535 and ips.lo <= ip <= ips.hi for ips, first, last in self.dsts)


@final
class PacketFilter:
    """Default deny with a memory for outbound flows.

    Attributes:
        drops: refused packets by reason.
        accepted: packets let in (before merging, each counts).
        exempt_tcp_ports: local TCP ports that anybody in the tailnet may open although no rule says so: the PeerAPI's,
            which authorises per request.
    """

    __slots__ = (
        "_cache",
        "_flows",
        "_last_flow",
        "_local",
        "_local_nets",
        "_rejects",
        "_rules4",
        "_rules6",
        "_shields_up",
        "accepted",
        "drops",
        "exempt_tcp_ports",
    )

    def __init__(self) -> None:
        self.drops = Drops()
        self.accepted = 0
        self.exempt_tcp_ports: frozenset[int] = frozenset()
        self._rules4: list[_Rule] = []
        self._rules6: list[_Rule] = []
        self._shields_up = False
        self._local: frozenset[IpBytes] = frozenset()
        self._local_nets: PrefixTable[bool] = PrefixTable()
        self._cache: dict[tuple[bytes, int, int], bool] = {}
        self._flows: dict[tuple[bytes, int, int], None] = {}
        self._last_flow: tuple[bytes, int, int] | None = None
        self._rejects: list[TxPacket] = []

    def configure(
        self, rules: Iterable[FilterRule], local: Iterable[IpPrefix | IpBytes], shields_up: bool = False
    ) -> None:
        """Replace rules and local destinations. Remembered flows stay, unless shields go up.

        Args:
            rules: what may come in; none means nothing may.
            local: own addresses, service addresses and advertised routes.
            shields_up: ignore the rules: only answers come in.
        """
        rules = [] if shields_up else list(rules)
        self._rules4 = [rule for rule in (_Rule(r, 4) for r in rules) if rule.dsts]
        self._rules6 = [rule for rule in (_Rule(r, 16) for r in rules) if rule.dsts]
        if shields_up and not self._shields_up:
            self._flows.clear()
            self._last_flow = None
        self._shields_up = shields_up
        hosts: set[IpBytes] = set()
        nets: PrefixTable[bool] = PrefixTable()
        for entry in local:
            if isinstance(entry, bytes):
                hosts.add(entry)
            elif entry.is_single_ip:
                hosts.add(entry.ip)
            else:
                nets.insert(entry, True)
        self._local = frozenset(hosts)
        self._local_nets = nets
        self._cache.clear()

    # -- outbound ----------------------------------------------------------------------------------------------------

    def note_outbound(self, tx: TxPacket) -> bool:
        """Remember the flow of *tx*; return whether it may leave at all."""
        dst = tx.dst
        if is_multicast(dst):
            self.drops.add("out_multicast")
            return False
        if is_link_local(dst) and dst != LINK_LOCAL_EXEMPT:
            self.drops.add("out_link_local")
            return False
        proto = tx.proto
        if proto in (PROTO_UDP, PROTO_SCTP):
            ports = int.from_bytes(tx.header[2:4] + tx.header[:2], "big")
            self._remember((dst + tx.src, ports, proto))
        return True

    def _remember(self, flow: tuple[bytes, int, int]) -> None:
        if flow == self._last_flow:
            return
        flows = self._flows
        if flow in flows:
            del flows[flow]  # to be inserted again at the young end
        elif len(flows) >= CONNTRACK_ENTRIES:
            del flows[next(iter(flows))]
        flows[flow] = None
        self._last_flow = flow

    # -- inbound -----------------------------------------------------------------------------------------------------

    def filter_inbound(self, packets: list[RxPacket]) -> list[RxPacket]:
        """Return the packets that may come in, in order."""
        return [rx for rx in packets if self.check_inbound(rx)]

    def check_inbound(self, rx: RxPacket) -> bool:
        """Tell whether *rx* may come in; a refused one is counted, and may leave a rejection (:meth:`take_rejects`)."""
        if self._judge(rx):
            self.accepted += rx.packets
            return True
        return False

    def take_rejects(self) -> list[TxPacket]:
        """Return the rejections and resets of TCP SYNs refused since the last call, to be sent to their sources."""
        rejects = self._rejects
        if rejects:
            self._rejects = []
        return rejects

    def _judge(self, rx: RxPacket) -> bool:
        proto = rx.proto
        dst = rx.dst
        if proto == 0:
            return self._drop("protocol", rx)
        if is_multicast(dst):
            return self._drop("multicast", rx)
        if is_link_local(dst) and dst != LINK_LOCAL_EXEMPT:
            return self._drop("link_local", rx)
        if rx.fragment and rx.frag_offset:
            return True
        if dst not in self._local and self._local_nets.lookup(dst) is None:
            return self._drop("not_local", rx)
        if proto == PROTO_TCP:
            if rx.flags & (SYN | ACK) != SYN or self._allowed(rx):
                return True
            if rx.ports & 0xFFFF in self.exempt_tcp_ports:
                return True
            self._reject(rx)
            return self._drop("rule", rx)
        if proto in (PROTO_UDP, PROTO_SCTP):
            flow = (rx.addrs, self._ports_of(rx), proto)
            if flow in self._flows:
                # The newest use goes to the young end; re-inserting the same flow for each packet would be waste.
                self._remember(flow)
                return True
            return self._allowed(rx) or self._drop("rule", rx)
        if proto in (PROTO_ICMP, PROTO_ICMPV6):
            return self._icmp_passes(rx) or self._allowed(rx) or self._drop("rule", rx)
        if proto == PROTO_TSMP:
            return True
        return self._allowed(rx) or self._drop("rule", rx)

    def _drop(self, reason: str, rx: RxPacket) -> bool:
        self.drops.add(reason, rx.packets)
        return False

    @staticmethod
    def _ports_of(rx: RxPacket) -> int:
        if rx.proto == PROTO_SCTP:
            return int.from_bytes(rx.raw[rx.offset : rx.offset + 4], "big") if rx.end - rx.offset >= 12 else 0
        return rx.ports

    @staticmethod
    def _icmp_passes(rx: RxPacket) -> bool:
        """Replies and errors answer something that we sent."""
        kind = rx.raw[rx.offset]
        if rx.proto == PROTO_ICMP:
            return kind == icmpv4.ECHO_REPLY or kind in icmpv4.ERRORS
        return kind == icmpv6.ECHO_REPLY or icmpv6.is_error(kind)

    def _allowed(self, rx: RxPacket) -> bool:
        """Ask the rules, through the cache."""
        port = self._ports_of(rx) & 0xFFFF
        key = (rx.addrs, port, rx.proto)
        verdict = self._cache.get(key)
        if verdict is None:
            verdict = self._ask(rx, port)
            if len(self._cache) >= _CACHE_ENTRIES:
                self._cache.clear()
            self._cache[key] = verdict
        return verdict

    def _ask(self, rx: RxPacket, port: int) -> bool:
        proto = rx.proto
        src = rx.src
        dst = rx.dst
        for rule in self._rules4 if len(src) == 4 else self._rules6:
            if src not in rule.srcs:
                continue
            if proto in (PROTO_ICMP, PROTO_ICMPV6):  # neither ports nor the rule's protocols count
                if rule.covers_address(dst):
                    return True
            elif proto in rule.protos:
                if proto in (PROTO_TCP, PROTO_UDP, PROTO_SCTP):
                    if rule.covers(dst, port):
                        return True
                elif rule.covers_all_ports(dst):
                    return True
        return False

    def _reject(self, rx: RxPacket) -> None:
        """Queue the answers to a refused SYN: Tailscale's TSMP rejection (IPv4 only, as there), and a reset.

        Official nodes send no reset, so a dial that a policy forbids hangs until it times out. A closed port answers
        the same way, so the reset tells nobody more than the policy's author would.
        """
        if rx.fragment or len(self._rejects) >= _REJECTS:
            return
        if len(rx.src) == 4:
            reason = REASON_SHIELDS_UP if self._shields_up else REASON_ACL
            body = Rejected(PROTO_TCP, reason, rx.src_port, rx.dst_port).encode()
            self._rejects.append(TxPacket(rx.dst, rx.src, PROTO_TSMP, body, [], 0))
        seq, ack, flags = rst_for(rx.seq, rx.ack, rx.flags, len(rx.payload))
        header = encode_header(rx.dst_port, rx.src_port, seq, ack, flags, 0)
        self._rejects.append(TxPacket(rx.dst, rx.src, PROTO_TCP, header, [], 0))
