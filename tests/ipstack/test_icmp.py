"""Echo, errors sent, errors received, path MTU."""

import pytest

from tests.ipstack.kit import A4, A6, B4, B6, C4, Net, drain, feed, make_stack
from tests.nic.kit import ip_packet, tcp_packet, udp_packet
from tsnetpy.base.addr import Endpoint
from tsnetpy.base.instant import SECOND
from tsnetpy.ipstack import InvalidAddress, MessageTooLong, NoRoute, NotConnected, Stack, StackLimits, TcpSocket
from tsnetpy.ipstack.addresses import SERVICE_V4
from tsnetpy.tcp.flags import ERROR, READABLE
from tsnetpy.wire import icmpv4, icmpv6, ipv4, ipv6


def icmp4(kind: int, code: int, rest: int, body: bytes, src: bytes = C4) -> bytes:
    return ip_packet(src, A4, 1, icmpv4.Icmpv4Message(kind, code, rest, body).encode())


def icmp6(kind: int, code: int, rest: int, body: bytes, src: bytes = B6) -> bytes:
    return ip_packet(src, A6, 58, icmpv6.Icmpv6Message(kind, code, rest, body).encode(src, A6))


@pytest.mark.attack(25)
@pytest.mark.parametrize("ip", [B4, B6])
@pytest.mark.parametrize("size", [0, 56, 5000])
def test_ping(ip: bytes, size: int) -> None:
    net = Net()
    socket = net.a.icmp_bind()
    socket.send_echo(ip, 7, bytes(size), 0)
    net.run(lambda: net.ready.get(socket))
    assert net.ready[socket] == READABLE
    assert socket.recv() == (ip, 7, bytes(size), 64)
    assert socket.recv() is None


@pytest.mark.checklist(148)
@pytest.mark.parametrize("ttl", [0, 1])
def test_ping_with_a_used_up_hop_limit_is_answered(ttl: int) -> None:
    # RFC 1122 §3.2.1.7: the host that a packet is for does not look at its time to live.
    request = icmpv4.echo(True, 1, 2, b"x").encode()
    (reply,) = feed(make_stack(), ip_packet(B4, A4, 1, request, ttl=ttl))
    assert reply[20:] == icmpv4.echo(False, 1, 2, b"x").encode()
    assert (reply[12:16], reply[16:20], reply[8]) == (A4, B4, 64)


def test_an_echo_has_the_class_of_the_request_but_not_its_marks() -> None:
    request = icmpv4.echo(True, 1, 2, b"x").encode()
    (reply,) = feed(make_stack(), ip_packet(B4, A4, 1, request, tos=0xBB))
    assert reply[1] == 0xB8


def test_own_addresses_answer_without_the_tunnel() -> None:
    stack = make_stack()
    socket = stack.icmp_bind()
    for ip in (A4, A6, SERVICE_V4):
        socket.send_echo(ip, 1, b"x", 0)
        assert stack.egress(0) == []
        reply = socket.recv()
        assert reply is not None
        assert reply[0] == ip


def test_echo_sockets_have_their_own_identifiers() -> None:
    stack = make_stack()
    first, second = stack.icmp_bind(), stack.icmp_bind()
    assert first.ident != second.ident
    second.send_echo(A4, 1, b"x", 0)
    stack.egress(0)
    assert first.recv() is None
    assert second.recv() is not None
    second.close()
    with pytest.raises(NotConnected):
        second.send_echo(A4, 1, b"x", 0)
    assert feed(stack, ip_packet(B4, A4, 1, icmpv4.echo(False, second.ident, 1, b"").encode())) == []
    assert stack.drops.counts["no_socket"] == 1


def test_echo_refusals() -> None:
    socket = make_stack(addresses=(A4,)).icmp_bind()
    with pytest.raises(NoRoute):
        socket.send_echo(B6, 1, b"", 0)
    with pytest.raises(InvalidAddress):
        socket.send_echo(b"\xff" * 4, 1, b"", 0)
    with pytest.raises(MessageTooLong):
        socket.send_echo(B4, 1, bytes(65508), 0)


@pytest.mark.attack(25)
def test_echo_flood_is_limited() -> None:
    stack = make_stack(limits=StackLimits(echo_replies_per_second=10, echo_reply_burst=5))
    request = ip_packet(B4, A4, 1, icmpv4.echo(True, 1, 1, b"").encode())
    assert sum(len(feed(stack, request)) for _ in range(50)) == 5
    assert stack.drops.counts["echo_limit"] == 45


@pytest.mark.checklist(150)
def test_port_unreachable_quotes_the_datagram() -> None:
    stack = make_stack()
    datagram = udp_packet(b"y" * 1000, src=B4, dst=A4)
    (error,) = feed(stack, datagram)
    assert len(error) == 576
    message = icmpv4.decode(error[20:])
    assert (message.type, message.code, message.rest) == (3, 3, 0)
    assert datagram.startswith(message.body)
    datagram = udp_packet(b"y" * 1230, src=B6, dst=A6)
    (error,) = feed(stack, datagram)
    assert len(error) == 1280
    message6 = icmpv6.decode(error[40:])
    assert (message6.type, message6.code) == (1, 4)
    assert datagram.startswith(message6.body)


@pytest.mark.checklist(148)
def test_unknown_protocols() -> None:
    stack = make_stack()
    (error,) = feed(stack, ip_packet(B4, A4, 47, b"gre?"))
    assert error[20:22] == bytes((3, 2))
    (error,) = feed(stack, ip_packet(B6, A6, 47, bytes(8)))
    assert error[40:48] == bytes((4, 1)) + error[42:44] + b"\x00\x00\x00\x06"
    assert feed(stack, ip_packet(B4, A4, 99, b"p12345678")) == []  # TSMP is the data plane's


@pytest.mark.checklist(150)
@pytest.mark.attack(24, 25, 26)
@pytest.mark.parametrize(
    "packet",
    [
        icmp4(3, 3, 0, udp_packet(b"x")[:28]),  # about an error
        icmp4(5, 0, 0, udp_packet(b"x")[:28]),  # redirect
        icmp4(13, 0, 0, bytes(12)),  # timestamp request
        icmp4(17, 0, 0, bytes(4)),  # address mask request
        icmp4(4, 0, 0, udp_packet(b"x")[:28]),  # source quench
        icmp6(134, 0, 0, bytes(16)),  # router advertisement
        icmp6(1, 4, 0, udp_packet(b"x")),
        ip_packet(B4, A4, 17, bytes(16), frag=20),  # a later fragment
        icmp6(135, 0, 0, bytes(16)),  # neighbour solicitation
        icmp6(137, 0, 0, bytes(32)),  # redirect
        udp_packet(b"x", src=B4, dst=bytes((224, 0, 0, 1))),
        udp_packet(b"x", src=B6, dst=b"\xff\x02" + bytes(13) + b"\x01"),
        udp_packet(b"x", src=bytes((224, 0, 0, 1)), dst=A4),
        ip_packet(B4, bytes((224, 0, 0, 1)), 1, icmpv4.echo(True, 1, 2, b"x").encode()),
        ip_packet(B4, b"\xff" * 4, 1, icmpv4.echo(True, 1, 2, b"x").encode()),
    ],
)
def test_no_answer(packet: bytes) -> None:
    assert feed(make_stack(), packet) == []


def connecting(stack: Stack, ip: bytes = B4) -> tuple[TcpSocket, bytes]:
    """Return a connection attempt and its SYN."""
    socket = stack.tcp_connect(Endpoint(ip, 80), 0)
    (syn,) = drain(stack)
    return socket, syn


@pytest.mark.checklist(7)
@pytest.mark.attack(23)
@pytest.mark.parametrize(
    ("kind", "code", "error"),
    [
        (3, 3, "refused"),
        (3, 13, "unreachable"),
        (3, 2, "unreachable"),
        (3, 0, None),
        (3, 1, None),
        (11, 0, None),
        (4, 0, None),
    ],
)
def test_errors_while_connecting(kind: int, code: int, error: str | None) -> None:
    stack = make_stack()
    socket, syn = connecting(stack)
    feed(stack, icmp4(kind, code, 0, syn[:28]))
    assert socket.connection.error == error


@pytest.mark.checklist(7)
@pytest.mark.parametrize(
    ("kind", "code", "error"), [(1, 4, "refused"), (1, 1, "unreachable"), (1, 0, None), (3, 0, None)]
)
def test_ipv6_errors_while_connecting(kind: int, code: int, error: str | None) -> None:
    stack = make_stack()
    socket, syn = connecting(stack, B6)
    feed(stack, icmp6(kind, code, 0, syn))
    assert socket.connection.error == error


@pytest.mark.attack(21)
@pytest.mark.parametrize("cut", [0, 10, 19, 20, 27])
def test_short_quotes_are_ignored(cut: int) -> None:
    stack = make_stack()
    socket, syn = connecting(stack)
    feed(stack, icmp4(3, 3, 0, syn[:cut]))
    assert socket.connection.error is None
    assert stack.drops.counts["icmp_ignored"] == 1


@pytest.mark.attack(21)
def test_quotes_of_other_flows_are_ignored() -> None:
    stack = make_stack()
    socket, syn = connecting(stack)
    wrong_seq = syn[:24] + bytes((syn[24] ^ 0x40,)) + syn[25:28]
    wrong_port = syn[:20] + bytes((syn[20] ^ 1,)) + syn[21:28]
    not_ours = syn[:12] + C4 + syn[16:28]
    late_fragment = syn[:6] + b"\x00\x10" + syn[8:28]
    for quote in (wrong_seq, wrong_port, not_ours, late_fragment, b"\x4f" + syn[1:28], b"\x60" + syn[1:28]):
        feed(stack, icmp4(3, 3, 0, quote))
    assert socket.connection.error is None
    assert stack.drops.counts["icmp_ignored"] == 6


@pytest.mark.attack(23)
def test_established_connections_survive_errors() -> None:
    net = Net()
    client, server = net.open(Endpoint(B4, 80), net.b.tcp_listen(80, 0))
    net.keep_packets = True
    client.send(b"x", net.now)
    net.flush()
    feed(net.a, icmp4(3, 3, 0, net.packets[-1][:28]), net.now)
    assert net.transfer(client, server, b"y") == b"xy"


@pytest.mark.checklist(89, 147)
def test_too_big_shrinks_the_segments_of_a_connection() -> None:
    net = Net()
    client, server = net.open(Endpoint(B4, 80), net.b.tcp_listen(80, 0))
    net.run_for(SECOND)

    def narrow(packet: bytes) -> bytes | None:
        """Play a router behind a subnet router, with an MTU of 800."""
        if len(packet) <= 800:
            return packet
        assert packet[6] & 0x40, "only packets with DF cause the report"
        reports.append(packet[:28])
        return None

    reports: list[bytes] = []
    net.hook = narrow
    data = bytes(50_000)
    client.send(data, net.now)
    net.flush()
    assert reports
    feed(net.a, icmp4(3, 4, 800, reports[0]), net.now)
    reports.clear()
    client.shutdown(net.now)
    got = b""
    while not server.connection.eof_received:
        assert net.step()
        got += server.read(1 << 20, net.now)
    assert got == data
    assert reports == []
    # The next connection to the same place starts small.
    again = net.a.tcp_connect(Endpoint(B4, 80), net.now)
    net.run_for(SECOND)
    assert again.connection.info().mss <= 760


@pytest.mark.checklist(147)
@pytest.mark.attack(22)
@pytest.mark.parametrize(("claimed", "expected"), [(0, 576), (40, 576), (575, 576), (576, 576), (900, 900)])
def test_too_big_floor(claimed: int, expected: int) -> None:
    stack = make_stack()
    socket = stack.udp_bind()
    socket.send_to(bytes(1000), Endpoint(B4, 9), 0)
    (datagram,) = drain(stack)
    feed(stack, icmp4(3, 4, claimed, datagram[:28]))
    socket.send_to(bytes(1000), Endpoint(B4, 9), 0)
    sizes = [len(packet) for packet in drain(stack)]
    assert len(sizes) == 2
    assert expected - 8 < max(sizes) <= expected
    # It is believed for ten minutes.
    socket.send_to(bytes(1000), Endpoint(B4, 9), 601 * SECOND)
    assert [len(packet) for packet in drain(stack, 601 * SECOND)] == [1028]


@pytest.mark.checklist(147)
@pytest.mark.attack(22)
@pytest.mark.parametrize("claimed", [1280, 1500, 65535])
def test_too_big_never_grows(claimed: int) -> None:
    stack = make_stack()
    socket, syn = connecting(stack)
    before = socket.connection.info().mss
    feed(stack, icmp4(3, 4, claimed, syn[:28]))
    assert socket.connection.info().mss == before


@pytest.mark.checklist(147)
@pytest.mark.attack(22)
def test_ipv6_too_big_below_the_minimum_is_a_lie() -> None:
    stack = make_stack(mtu=1400)
    socket = stack.udp_bind()
    for claimed, largest in ((1279, 1348), (1300, 1300)):
        socket.send_to(bytes(1300), Endpoint(B6, 9), 0)
        (first, *_) = drain(stack)
        feed(stack, icmp6(2, 0, claimed, first))
        socket.send_to(bytes(1300), Endpoint(B6, 9), 0)
        units = stack.egress(0)
        assert len(units) == 1
        assert (units[0].mtu or 1348) == largest


def test_error_about_our_echo() -> None:
    stack = make_stack()
    socket = stack.icmp_bind()
    socket.send_echo(B4, 1, b"x", 0)
    (request,) = drain(stack)
    feed(stack, icmp4(3, 1, 0, request))
    assert stack.take_ready() == [(socket, ERROR)]
    assert socket.take_error() == "unreachable"


def test_quoted_fragments_of_ipv6() -> None:
    stack = make_stack()
    socket = stack.udp_bind()
    socket.connect(Endpoint(B6, 9))
    socket.send(bytes(3000), 0)
    first, second, *_ = drain(stack)
    feed(stack, icmp6(1, 4, 0, second))
    assert socket.take_error() is None
    feed(stack, icmp6(1, 4, 0, first))
    assert socket.take_error() == "refused"


@pytest.mark.attack(21)
def test_extension_header_quotes_are_ignored() -> None:
    stack = make_stack()
    quote = ipv6.Ipv6Header(A6, B6, 44, 4).encode() + bytes(8)
    feed(stack, icmp6(1, 4, 0, quote))
    assert stack.drops.counts["icmp_ignored"] == 1


@pytest.mark.attack(21)
def test_ipv4_options_in_the_quote() -> None:
    stack = make_stack()
    socket, syn = connecting(stack)
    head = ipv4.Ipv4Header(A4, B4, 6, 64, options=b"\x01\x01\x01\x01").encode()
    feed(stack, icmp4(3, 3, 0, head + syn[20:28]))
    assert socket.connection.error == "refused"


def test_tcp_segment_of_nobody_is_not_an_icmp_matter() -> None:
    (answer,) = feed(make_stack(), tcp_packet(1, src=B4, dst=A4))
    assert answer[9] == 6
