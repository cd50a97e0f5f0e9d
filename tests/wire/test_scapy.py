"""Whole packets of every kind that this stack builds or reads, against scapy, in both directions."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import (
    ICMP,
    IP,
    TCP,
    UDP,
    ICMPerror,
    IPerror,
    IPOption,
    IPOption_LSRR,
    IPOption_MTU_Probe,
    IPOption_Router_Alert,
    IPOption_RR,
    IPOption_Security,
    IPOption_SSRR,
    IPOption_Stream_Id,
    IPOption_Timestamp,
    UDPerror,
    defragment,
    fragment,
)
from scapy.layers.inet6 import (
    HBHOptUnknown,
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    Pad1,
    PadN,
    RouterAlert,
    defragment6,
    fragment6,
)
from scapy.packet import Packet, Raw

from tests.ipstack.kit import A4, A6, B4, B6, PEER_B, drain, feed, make_stack
from tsnetpy.base.addr import Endpoint, format_ip
from tsnetpy.base.stats import Drops
from tsnetpy.ipstack import icmp
from tsnetpy.ipstack.fragments import TIMEOUT_V4, TIMEOUT_V6
from tsnetpy.nic import tso
from tsnetpy.nic.parse import parse
from tsnetpy.nic.rx import RxPacket
from tsnetpy.tcp.options import encode_sack, encode_syn, encode_timestamps, parse_segment, parse_syn
from tsnetpy.wire import icmpv4, icmpv6, ipv4, tcp

U8 = st.integers(0, 0xFF)
U16 = st.integers(0, 0xFFFF)
U32 = st.integers(0, 0xFFFFFFFF)
PORT = st.integers(1, 0xFFFF)
BODY = st.binary(max_size=300)
few = settings(max_examples=20, deadline=None)  # scapy takes milliseconds for a packet
OUR4, OUR6, PEER4, PEER6 = (format_ip(ip) for ip in (A4, A6, B4, B6))


cut4: Any = fragment  # scapy has no types here
cut6: Any = fragment6
join4: Any = defragment
join6: Any = defragment6


def to_us(**fields: Any) -> Any:
    """Return scapy's IPv4 header from the peer to us."""
    return IP(src=PEER4, dst=OUR4, **fields)


def to_us6(**fields: Any) -> Any:
    return IPv6(src=PEER6, dst=OUR6, **fields)


def read(packet: Any) -> RxPacket:
    """Let our parser read what scapy built."""
    drops = Drops()
    rx = parse(PEER_B, bytes(packet), drops)
    assert rx is not None, drops.counts
    return rx


def same(raw: bytes) -> Any:
    """Let scapy read what we built, and compute lengths and checksums anew: nothing may change."""
    packet = (IP if raw[0] >> 4 == 4 else IPv6)(raw)
    for layer in (IP, TCP, UDP, ICMP):
        if layer in packet:
            del packet[layer].chksum
    lengths: list[tuple[Any, str]] = [(IP, "len"), (UDP, "len"), (IPv6, "plen")]
    for header, field in lengths:
        if header in packet:
            delattr(packet[header], field)
    part: Any = packet
    while part:
        if type(part).__name__.startswith("ICMPv6"):
            part.cksum = None
            break
        part = part.payload
    assert bytes(packet) == raw
    return (IP if raw[0] >> 4 == 4 else IPv6)(raw)


# -- IPv4 options ----------------------------------------------------------------------------------------------------

PLAIN_OPTIONS = st.lists(
    st.one_of(
        st.just(IPOption(b"\x01")),
        st.builds(lambda hops: IPOption_RR(routers=["1.2.3.4"] * hops), st.integers(1, 2)),
        st.builds(lambda alert: IPOption_Router_Alert(alert=alert), U16),
        st.builds(lambda level: IPOption_Security(security=level), U16),
        st.builds(lambda number: IPOption_Stream_Id(security=number), U16),
        st.builds(lambda mtu: IPOption_MTU_Probe(mtu=mtu), U16),
        st.builds(lambda stamp: IPOption_Timestamp(flg=0, timestamp=stamp), U32),
    ),
    max_size=3,
)


@few
@given(PLAIN_OPTIONS, BODY, PORT, PORT)
def test_ipv4_options(options: list[Any], body: bytes, sport: int, dport: int) -> None:
    packet = to_us(options=options) / UDP(sport=sport, dport=dport) / Raw(body)
    raw = bytes(packet)
    head = ipv4.decode(raw)
    words = b"".join(map(bytes, options))
    assert head.options == words + bytes(-len(words) % 4)
    assert head.encode() == raw[: head.header_len]
    rx = read(packet)
    assert (rx.src_port, rx.dst_port, rx.transport()[8:]) == (sport, dport, body)
    ours = ipv4.Ipv4Header(A4, B4, 17, 28 + len(head.options), options=words)
    theirs = IP(ours.encode() + bytes(8))
    assert bytes(theirs)[: ours.header_len] == ours.encode()
    if words:
        assert [type(option) for option in theirs.options][: len(options)] == [type(option) for option in options]


@pytest.mark.parametrize("option", [IPOption_LSRR(routers=[OUR4]), IPOption_SSRR(routers=[OUR4, PEER4])])
def test_source_routes_of_scapy_are_refused(option: Any) -> None:
    drops = Drops()
    assert parse(PEER_B, bytes(to_us(options=[option]) / UDP() / Raw(b"x")), drops) is None
    assert drops.counts == {"ip_options": 1}


# -- fragments -------------------------------------------------------------------------------------------------------


@few
@given(st.integers(1, 9000), st.integers(68, 1400), st.randoms(use_true_random=False), st.booleans())
def test_ipv4_fragments(size: int, most: int, random: Any, with_options: bool) -> None:
    data = bytes(i * 7 & 0xFF for i in range(size))
    options = [IPOption_Router_Alert()] if with_options else []
    whole = to_us(id=77, options=options) / UDP(sport=9, dport=53) / Raw(data)
    pieces = [bytes(piece) for piece in cut4(IP(bytes(whole)), max(most, 90))]
    random.shuffle(pieces)
    stack = make_stack()
    socket = stack.udp_bind(53)
    for piece in pieces:
        feed(stack, piece)
    assert socket.recv_from() == (data, Endpoint(B4, 9), A4)
    # And ours put together by scapy.
    socket.send_to(data, Endpoint(B4, 9), 0)
    (unit,) = stack.egress(0)
    (joined,) = join4([IP(piece) for piece in tso.split(unit, max(most, 68))])
    assert bytes(joined[UDP].payload) == data
    assert (joined[UDP].sport, joined[UDP].dport) == (53, 9)


@few
@given(st.integers(1, 9000), st.integers(1280, 1500), st.randoms(use_true_random=False), st.booleans())
def test_ipv6_fragments(size: int, most: int, random: Any, with_options: bool) -> None:
    data = bytes(i * 7 & 0xFF for i in range(size))
    before = IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0\0")]) / IPv6ExtHdrRouting(segleft=0) if with_options else None
    head = to_us6() / before if before is not None else to_us6()
    whole = head / IPv6ExtHdrFragment(id=99) / UDP(sport=9, dport=53) / Raw(data)
    pieces = [bytes(piece) for piece in cut6(IPv6(bytes(whole)), most)]
    random.shuffle(pieces)
    stack = make_stack()
    socket = stack.udp_bind(53)
    for piece in pieces:
        feed(stack, piece)
    assert socket.recv_from() == (data, Endpoint(B6, 9), A6)
    socket.send_to(data, Endpoint(B6, 9), 0)
    ours = [IPv6(piece) for piece in drain(stack)]
    joined = join6(ours) if len(ours) > 1 else ours[0]
    again = IPv6(bytes(joined))
    assert bytes(again[UDP].payload)[:size] == data
    assert (again[UDP].sport, again[UDP].dport) == (53, 9)


# -- IPv6 extension headers ------------------------------------------------------------------------------------------

OPTIONS6 = st.lists(
    st.one_of(
        st.just(Pad1()),
        st.builds(lambda n: PadN(optdata=bytes(n)), st.integers(0, 5)),
        st.builds(lambda value: RouterAlert(value=value), U16),
        st.builds(
            lambda kind, data: HBHOptUnknown(otype=kind, optdata=data), st.integers(6, 63), st.binary(max_size=9)
        ),
    ),
    max_size=4,
)  # options of kinds below 64 are to be skipped where they are not known
HEADERS = st.lists(
    st.one_of(
        st.builds(lambda options: IPv6ExtHdrDestOpt(options=options), OPTIONS6),
        st.builds(
            lambda kind, n: IPv6ExtHdrRouting(type=kind, addresses=["fd00::9"] * n, segleft=0), U8, st.integers(0, 2)
        ),
        st.just(IPv6ExtHdrFragment(offset=0, m=0, id=5)),
    ),
    max_size=3,
).filter(lambda headers: sum(isinstance(header, IPv6ExtHdrFragment) for header in headers) <= 1)


@few
@given(st.none() | OPTIONS6, HEADERS, BODY, st.sampled_from(["tcp", "udp", "icmp"]))
def test_extension_headers_lead_to_the_transport(
    first: list[Any] | None, headers: list[Any], body: bytes, kind: str
) -> None:
    packet = to_us6(hlim=9, tc=0x20)
    if first is not None:
        packet = packet / IPv6ExtHdrHopByHop(options=first)
    for header in headers:
        packet = packet / header
    transports: dict[str, Any] = {
        "tcp": TCP(sport=5, dport=6, seq=7, flags="A") / Raw(body),
        "udp": UDP(sport=5, dport=6) / Raw(body),
        "icmp": ICMPv6EchoRequest(id=5, seq=6, data=body),
    }
    rx = read(packet / transports[kind])
    assert (rx.proto, rx.ttl, rx.tos) == ({"tcp": 6, "udp": 17, "icmp": 58}[kind], 9, 0x20)
    assert (rx.problem, rx.fragment) == (-1, False)
    if kind == "tcp":
        assert (rx.src_port, rx.dst_port, rx.seq, rx.payload) == (5, 6, 7, body)
    else:
        assert rx.transport()[8:] == body


@pytest.mark.parametrize(
    ("packet", "code"),
    [
        (IPv6ExtHdrHopByHop(options=[HBHOptUnknown(otype=0x80, optdata=b"x")]), 2),
        (IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=0xC1, optdata=b"x")]), 2),
        (IPv6ExtHdrRouting(type=0, addresses=["fd00::9"], segleft=1), 0),
        (IPv6ExtHdrDestOpt() / IPv6ExtHdrHopByHop(), 1),
    ],
)
def test_problems_are_pointed_at_as_scapy_counts(packet: Any, code: int) -> None:
    whole = to_us6() / packet / UDP(sport=5, dport=6) / Raw(b"x")
    (answer,) = feed(make_stack(), bytes(whole))
    problem = same(answer)[ICMPv6ParamProblem]
    assert problem.code == code
    quoted = bytes(problem.payload)
    assert bytes(whole).startswith(quoted)
    pointed = quoted[problem.ptr]
    assert pointed == {2: (0x80, 0xC1), 0: (0,), 1: (0,)}[code][0] or pointed in (0x80, 0xC1)


# -- TCP options -----------------------------------------------------------------------------------------------------

TCP_OPTIONS = st.lists(
    st.one_of(
        st.just(("NOP", None)),
        st.tuples(st.just("MSS"), U16),
        st.tuples(st.just("WScale"), U8),
        st.just(("SAckOK", b"")),
        st.tuples(st.just("Timestamp"), st.tuples(U32, U32)),
        st.tuples(st.just("SAck"), st.sampled_from([2, 4]).flatmap(lambda n: st.tuples(*[U32] * n))),
        st.tuples(st.just("MD5"), st.binary(min_size=16, max_size=16)),
        st.tuples(st.just("UTO"), U16),
        st.tuples(st.just(253), st.binary(max_size=6)),
        st.just(("EOL", None)),
    ),
    max_size=4,
)


@few
@given(TCP_OPTIONS, BODY, U32, U32, U8, U16)
def test_tcp_options_of_scapy(options: list[Any], body: bytes, seq: int, ack: int, flags: int, window: int) -> None:
    raw = bytes(to_us() / TCP(sport=5, dport=6, seq=seq, ack=ack, flags=flags, window=window, options=options))
    if len(raw) > 80:
        return  # more options than a header has room for
    packet = to_us() / TCP(sport=5, dport=6, seq=seq, ack=ack, flags=flags, window=window, options=options) / Raw(body)
    rx = read(packet)
    assert (rx.seq, rx.ack, rx.flags, rx.wnd, rx.payload) == (seq, ack, flags, window, body)
    seen = options[: options.index(("EOL", None))] if ("EOL", None) in options else options
    last = dict(seen)
    offer = parse_syn(rx.options)
    assert offer is not None
    assert offer.mss == last.get("MSS", 0)
    assert offer.wscale == (min(last["WScale"], 14) if "WScale" in last else -1)
    assert offer.sack_permitted == ("SAckOK" in last)
    assert (offer.ts_val, offer.ts_ecr) == last.get("Timestamp", (0, 0))
    extra = parse_segment(rx.options)
    assert extra.has_ts == offer.has_ts == ("Timestamp" in last)
    edges = [edge for name, value in seen if name == "SAck" for edge in value]
    assert [edge for block in extra.sacks for edge in block] == edges


@few
@given(U16, st.integers(-1, 14), st.booleans(), st.booleans(), U32, U32, st.lists(st.tuples(U32, U32), max_size=3))
def test_our_tcp_options_are_read_by_scapy(
    mss: int, wscale: int, sack: bool, stamps: bool, value: int, echo: int, blocks: list[tuple[int, int]]
) -> None:
    head = tcp.encode_header(5, 6, 7, 8, tcp.SYN, 9, encode_syn(mss, wscale, sack, stamps, value, echo))
    options = dict(TCP(head).options)
    assert options["MSS"] == mss
    assert options.get("WScale", -1) == wscale
    assert ("SAckOK" in options) == sack
    assert options.get("Timestamp") == ((value, echo) if stamps else None)
    words = encode_timestamps(value, echo) + (encode_sack(blocks) if blocks else b"")
    options = dict(TCP(tcp.encode_header(5, 6, 7, 8, tcp.ACK, 9, words)).options)
    assert options["Timestamp"] == (value, echo)
    assert options.get("SAck", ()) == tuple(edge for block in blocks for edge in block)


# -- what a whole stack sends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ip", [B4, B6])
def test_every_segment_of_a_connection_is_what_scapy_would_have_built(ip: bytes) -> None:
    stack = make_stack()
    socket = stack.tcp_connect(Endpoint(ip, 80), 0)
    socket.traffic_class, socket.hop_limit = 0x48, 31
    (raw,) = drain(stack)
    syn = same(raw)
    source, target = (OUR4, PEER4) if len(ip) == 4 else (OUR6, PEER6)
    back: Any = IP(src=target, dst=source) if len(ip) == 4 else IPv6(src=target, dst=source)
    seq = syn[TCP].seq
    answer = TCP(
        sport=80, dport=syn[TCP].sport, seq=99, ack=seq + 1, flags="SA", window=5000,
        options=[("MSS", 1200), ("SAckOK", b""), ("Timestamp", (1, 0)), ("WScale", 7)],
    )  # fmt: skip
    (raw,) = feed(stack, bytes(back / answer))
    same(raw)
    socket.send(bytes(5000), 0)
    for raw in drain(stack):
        packet = same(raw)
        assert packet[TCP].ack == 100
        assert len(packet[TCP].payload) <= 1188
    gap = TCP(sport=80, dport=syn[TCP].sport, seq=200, ack=seq + 1, flags="A", options=[("Timestamp", (2, 0))])
    (raw,) = feed(stack, bytes(back / gap / Raw(b"beyond a gap")))
    assert dict(same(raw)[TCP].options)["SAck"] == (200, 212)
    socket.abort(0)
    (raw,) = drain(stack)
    assert same(raw)[TCP].flags == "RA"


@few
@given(BODY, PORT, PORT, st.booleans())
def test_udp_datagrams(body: bytes, sport: int, dport: int, v6: bool) -> None:
    packet = (to_us6() if v6 else to_us()) / UDP(sport=sport, dport=dport) / Raw(body)
    rx = read(packet)
    assert (rx.src_port, rx.dst_port, rx.transport()[8:]) == (sport, dport, body)
    stack = make_stack()
    socket = stack.udp_bind(sport)
    socket.send_to(body, Endpoint(B6 if v6 else B4, dport), 0)
    theirs = same(drain(stack)[0])
    assert (theirs[UDP].sport, theirs[UDP].dport) == (sport, dport)
    assert bytes(theirs[UDP].payload) == body


# -- ICMP ------------------------------------------------------------------------------------------------------------


def test_errors_that_we_send() -> None:
    question4 = to_us(id=5) / UDP(sport=9, dport=53) / Raw(b"anybody?")
    question6 = to_us6() / UDP(sport=9, dport=53) / Raw(b"anybody?")
    (raw,) = feed(make_stack(), bytes(question4))
    error = same(raw)
    assert (error[ICMP].type, error[ICMP].code, error[IPerror].id) == (3, 3, 5)
    assert (error[UDPerror].sport, error[UDPerror].dport) == (9, 53)
    (raw,) = feed(make_stack(), bytes(question6))
    assert same(raw)[ICMPv6DestUnreach].code == 4
    (raw,) = feed(make_stack(), bytes(to_us(proto=47) / Raw(b"12345678")))
    assert (same(raw)[ICMP].type, same(raw)[ICMP].code) == (3, 2)
    (raw,) = feed(make_stack(), bytes(to_us6(nh=47) / Raw(b"12345678")))
    problem = same(raw)[ICMPv6ParamProblem]
    assert (problem.code, problem.ptr) == (1, 6)


@pytest.mark.checklist(149)
@pytest.mark.parametrize("v6", [False, True])
def test_time_exceeded_for_a_datagram_that_never_became_whole(v6: bool) -> None:
    data = Raw(bytes(3000))
    if v6:
        pieces = cut6(IPv6(bytes(to_us6() / IPv6ExtHdrFragment(id=9) / UDP(sport=9, dport=53) / data)), 1280)
    else:
        pieces = cut4(IP(bytes(to_us(id=9) / UDP(sport=9, dport=53) / data)), 1200)
    stack = make_stack()
    feed(stack, bytes(pieces[0]))
    limit = TIMEOUT_V6 if v6 else TIMEOUT_V4
    assert stack.next_deadline() == limit
    stack.handle_deadline(limit)
    (raw,) = drain(stack, limit)
    error = same(raw)
    if v6:
        assert error[ICMPv6TimeExceeded].code == 1
        assert bytes(pieces[0]).startswith(bytes(error[ICMPv6TimeExceeded].payload))
    else:
        assert (error[ICMP].type, error[ICMP].code) == (11, 1)
    # Without its first fragment there is nobody to tell (RFC 792, RFC 8200 §4.5).
    feed(stack, bytes(pieces[1]), limit)
    stack.handle_deadline(2 * limit)
    assert drain(stack, 2 * limit) == []


@few
@given(U16, U16, BODY, st.booleans())
def test_echo_requests_are_answered(ident: int, seq: int, body: bytes, v6: bool) -> None:
    request = (
        to_us6() / ICMPv6EchoRequest(id=ident, seq=seq, data=body)
        if v6
        else to_us() / ICMP(id=ident, seq=seq) / Raw(body)
    )
    (raw,) = feed(make_stack(), bytes(request))
    answer = same(raw)
    if v6:
        reply = answer[ICMPv6EchoReply]
        assert (reply.id, reply.seq, bytes(reply.data)) == (ident, seq, body)
    else:
        assert (answer[ICMP].type, answer[ICMP].id, answer[ICMP].seq) == (0, ident, seq)
        assert bytes(answer[ICMP].payload) == body


@few
@given(st.sampled_from([0, 1, 2, 3, 4, 9, 10, 13]), U16, PORT, PORT)
def test_unreachable_of_scapy(code: int, mtu: int, sport: int, dport: int) -> None:
    quoted = IP(src=OUR4, dst=PEER4) / UDP(sport=sport, dport=dport) / Raw(b"x")
    error = icmp.parse_error(read(to_us() / ICMP(type=3, code=code, nexthopmtu=mtu) / quoted))
    assert error is not None
    assert (error.src, error.dst, error.proto, error.ports) == (A4, B4, 17, sport << 16 | dport)
    assert error.hard == (code in (2, 3, 9, 10, 13))
    assert error.reason == {3: "refused", 4: "too big"}.get(code, "unreachable")
    if code == 4:
        assert error.mtu == mtu


@pytest.mark.parametrize(
    ("message", "useful"),
    [(ICMP(type=11, code=0), True), (ICMP(type=11, code=1), True), (ICMP(type=12), False), (ICMP(type=4), False),
     (ICMP(type=5), False)],
)  # fmt: skip
def test_other_errors_of_scapy(message: Any, useful: bool) -> None:
    quoted = IP(src=OUR4, dst=PEER4) / TCP(sport=5, dport=6, seq=77)
    rx = read(to_us() / message / quoted)
    assert icmp.is_error(rx)
    error = icmp.parse_error(rx)
    assert (error is not None) == useful
    if error is not None:
        assert (error.seq, error.hard, error.reason) == (77, False, "unreachable")


@pytest.mark.parametrize(
    ("message", "hard", "reason", "mtu"),
    [(ICMPv6DestUnreach(code=0), False, "unreachable", 0), (ICMPv6DestUnreach(code=1), True, "unreachable", 0),
     (ICMPv6DestUnreach(code=3), False, "unreachable", 0), (ICMPv6DestUnreach(code=4), True, "refused", 0),
     (ICMPv6PacketTooBig(mtu=1300), False, "too big", 1300), (ICMPv6TimeExceeded(code=0), False, "unreachable", 0),
     (ICMPv6ParamProblem(code=1, ptr=6), True, "unreachable", 0),
     (ICMPv6ParamProblem(code=0, ptr=4), False, "unreachable", 0)],
)  # fmt: skip
@pytest.mark.parametrize("cut", [False, True])
def test_ipv6_errors_of_scapy(message: Any, hard: bool, reason: str, mtu: int, cut: bool) -> None:
    head: Packet = IPv6(src=OUR6, dst=PEER6)
    if cut:
        head = head / IPv6ExtHdrFragment(id=4, offset=0, m=1)
    rx = read(to_us6() / message / head / TCP(sport=5, dport=6, seq=77))
    error = icmp.parse_error(rx)
    assert error is not None
    assert (error.src, error.dst, error.proto, error.ports, error.seq) == (A6, B6, 6, 5 << 16 | 6, 77)
    assert (error.hard, error.reason, error.mtu) == (hard, reason, mtu)


@few
@given(U8, U8, U32, BODY, U8, U8)
def test_icmp_messages_of_any_type(kind: int, code: int, rest: int, body: bytes, kind6: int, code6: int) -> None:
    ours = icmpv4.Icmpv4Message(kind, code, rest, body).encode()
    raw = bytes(to_us(proto=1) / Raw(ours))
    rx = read(raw)
    assert icmpv4.decode(rx.transport()) == icmpv4.Icmpv4Message(kind, code, rest, body)
    ours = icmpv6.Icmpv6Message(kind6, code6, rest, body).encode(B6, A6)
    rx = read(bytes(to_us6(nh=58) / Raw(ours)))
    assert icmpv6.decode(rx.transport()) == icmpv6.Icmpv6Message(kind6, code6, rest, body)


def test_a_quoted_ping_of_scapy_reaches_the_socket_that_sent_it() -> None:
    stack = make_stack()
    socket = stack.icmp_bind()
    socket.send_echo(B4, 3, b"x", 0)
    (raw,) = drain(stack)
    quoted = same(raw)
    error = to_us() / ICMP(type=3, code=1) / quoted
    assert ICMPerror in IP(bytes(error))
    feed(stack, bytes(error))
    assert socket.take_error() == "unreachable"
