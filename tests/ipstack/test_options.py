"""What an application may choose per socket: IP header fields, segments of datagrams, cork and the like."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ipstack.kit import A4, A6, B4, B6, Net, drain, feed, make_stack
from tests.nic.kit import check_packet, tcp_packet
from tsnetpy.base.addr import Endpoint
from tsnetpy.base.instant import MILLISECOND, SECOND
from tsnetpy.ipstack import InvalidOption, MessageTooLong, NotConnected, StackLimits
from tsnetpy.nic import tso
from tsnetpy.wire import tcp


def fields(packet: bytes) -> tuple[int, int]:
    """Return hop limit and traffic class of a packet."""
    if packet[0] >> 4 == 4:
        return packet[8], packet[1]
    return packet[7], (packet[0] << 8 | packet[1]) >> 4 & 0xFF


@pytest.mark.checklist(84)
@pytest.mark.parametrize("ip", [B4, B6])
def test_tcp_packets_carry_what_was_chosen_and_no_ecn_bits(ip: bytes) -> None:
    net = Net()
    net.keep_packets = True
    listener = net.b.tcp_listen(80, 0)
    listener.hop_limit, listener.traffic_class = 33, 0xFF
    client = net.a.tcp_connect(Endpoint(ip, 80), 0)
    client.hop_limit, client.traffic_class = 7, 0xB8 | 3
    assert (client.hop_limit, client.traffic_class) == (7, 0xB8)
    net.run(lambda: net.ready.get(listener))
    server = listener.accept()
    assert server is not None
    assert (server.hop_limit, server.traffic_class) == (33, 0xFC)
    assert net.transfer(client, server, bytes(5000)) == bytes(5000)
    ours = {fields(packet) for packet in net.packets if packet[12:16] == A4 or packet[8:24] == A6}
    theirs = {fields(packet) for packet in net.packets} - ours
    assert (ours, theirs) == ({(7, 0xB8)}, {(33, 0xFC)})
    server.traffic_class = 0
    net.packets.clear()
    server.send(b"x", net.now)
    net.flush()
    assert fields(net.packets[0]) == (33, 0)


@pytest.mark.checklist(84)
def test_a_cookie_carries_what_the_listener_chose() -> None:
    stack = make_stack(limits=StackLimits(embryos=0))
    listener = stack.tcp_listen(2000, 0)
    listener.hop_limit, listener.traffic_class = 20, 0x40
    (cookie,) = feed(stack, tcp_packet(1, src=B4, dst=A4, flags=tcp.SYN, ack=0))
    assert fields(cookie) == (20, 0x40)
    seq = int.from_bytes(cookie[24:28], "big")
    feed(stack, tcp_packet(2, src=B4, dst=A4, ack=seq + 1))
    server = listener.accept()
    assert server is not None
    assert (server.hop_limit, server.traffic_class) == (20, 0x40)


@pytest.mark.checklist(84)
@pytest.mark.parametrize("ip", [B4, B6])
@pytest.mark.parametrize("size", [10, 3000])
def test_datagrams_carry_what_was_chosen(ip: bytes, size: int) -> None:
    stack = make_stack()
    socket = stack.udp_bind()
    socket.hop_limit, socket.traffic_class = 255, 0x2F
    socket.send_to(bytes(size), Endpoint(ip, 9), 0)
    assert {fields(packet) for packet in drain(stack)} == {(255, 0x2C)}


@pytest.mark.checklist(84)
def test_values_that_do_not_exist_are_refused() -> None:
    stack = make_stack()
    for socket in (stack.udp_bind(), stack.tcp_listen(80, 0), stack.tcp_connect(Endpoint(B4, 80), 0)):
        for bad in (-1, 0, 256):
            with pytest.raises(InvalidOption) as info:
                socket.hop_limit = bad
            assert info.value.errno == 22
        for bad in (-1, 256):
            with pytest.raises(InvalidOption):
                socket.traffic_class = bad
        assert (socket.hop_limit, socket.traffic_class) == (64, 0)


@pytest.mark.checklist(81)
def test_a_corked_socket_sends_when_it_is_uncorked_or_after_200_ms() -> None:
    net = Net()
    client, server = net.open(Endpoint(B4, 80), net.b.tcp_listen(80, 0))
    client.set_cork(True)
    client.send(b"GET / HTTP/1.1\r\n", net.now)
    net.run_for(100 * MILLISECOND)
    assert server.read(100, net.now) == b""
    client.send(b"\r\n", net.now)
    client.set_cork(False)
    net.run_for(2 * MILLISECOND)
    assert server.read(100, net.now) == b"GET / HTTP/1.1\r\n\r\n"
    client.set_cork(True)
    client.send(b"forgotten", net.now)
    net.run_for(199 * MILLISECOND)
    assert server.read(100, net.now) == b""
    net.run_for(2 * MILLISECOND)
    assert server.read(100, net.now) == b"forgotten"


def test_keepalive_of_a_socket_notices_a_peer_that_vanished() -> None:
    net = Net()
    client, _ = net.open(Endpoint(B4, 80), net.b.tcp_listen(80, 0))
    net.run_for(SECOND)
    client.set_keepalive(10 * SECOND, SECOND, 3, net.now)
    net.hook = lambda packet: None
    net.run_for(14 * SECOND)
    assert client.connection.error == "timeout"
    client.set_keepalive(10 * SECOND, SECOND, 3, net.now)  # too late, and no harm
    net.run_for(60 * SECOND)
    for idle, interval, probes in ((-1, 1, 1), (1, 0, 1), (1, 1, 0)):
        with pytest.raises(InvalidOption):
            client.set_keepalive(idle, interval, probes, net.now)
    with pytest.raises(InvalidOption):
        client.set_user_timeout(-1)


# -- UDP segmentation offload ----------------------------------------------------------------------------------------


@given(st.integers(0, 20_000), st.integers(1, 1232), st.booleans())
def test_segments_of_datagrams_arrive_one_by_one(size: int, segment: int, v6: bool) -> None:
    if segment < size / 300:
        segment += size // 300
    net = Net()
    server = net.b.udp_bind(53)
    client = net.a.udp_bind()
    data = bytes(i * 11 & 0xFF for i in range(size))
    client.send_to(data, Endpoint(B6 if v6 else B4, 53), 0, segment=segment)
    units = net.a.egress(0)
    assert len(units) == 1
    net.keep_packets = True
    net.send(net.a, units)
    for packet in net.packets:
        check_packet(packet)
    net.run(lambda: net.ready.get(server))
    got = []
    while (item := server.recv_from()) is not None:
        got.append(item[0])
        assert item[1:] == (Endpoint(A6 if v6 else A4, client.local.port), B6 if v6 else B4)
    assert got == [data[at : at + segment] for at in range(0, size, segment)] if size else [b""]


@pytest.mark.checklist(86)
def test_segments_have_identifications_of_their_own() -> None:
    stack = make_stack()
    socket = stack.udp_bind()
    for _ in range(3):
        socket.send_to(bytes(1000), Endpoint(B4, 9), 0, segment=100)
    idents = [packet[4:6] for packet in drain(stack)]
    assert len(idents) == len(set(idents)) == 30


def test_segments_to_ourselves() -> None:
    stack = make_stack()
    server, client = stack.udp_bind(53), stack.udp_bind()
    client.connect(Endpoint(A4, 53))
    client.send(b"aabbc", 0, segment=2)
    assert stack.egress(0) == []
    assert [server.recv_from(), server.recv_from(), server.recv_from()] == [
        (data, Endpoint(A4, client.local.port), A4) for data in (b"aa", b"bb", b"c")
    ]


def test_segments_over_a_narrow_path_are_fragmented() -> None:
    stack = make_stack()
    socket = stack.udp_bind()
    socket.send_to(bytes(2400), Endpoint(B4, 9), 0, segment=1200)
    (unit,) = stack.egress(0)
    unit.mtu = 700
    packets = tso.split(unit, 1280)
    assert len(packets) == 4
    assert len({packet[4:6] for packet in packets}) == 2
    server = make_stack(addresses=(B4,))
    sink = server.udp_bind(9)
    for packet in packets:
        feed(server, packet)
    for _ in range(2):
        item = sink.recv_from()
        assert item is not None
        assert item[0] == bytes(1200)


def test_segment_sizes_that_cannot_be() -> None:
    stack = make_stack()
    socket = stack.udp_bind()
    with pytest.raises(InvalidOption):
        socket.send_to(b"xx", Endpoint(B4, 9), 0, segment=-1)
    for ip, most in ((B4, 1252), (B6, 1232)):
        with pytest.raises(MessageTooLong):
            socket.send_to(bytes(5000), Endpoint(ip, 9), 0, segment=most + 1)
        socket.send_to(bytes(5000), Endpoint(ip, 9), 0, segment=most)
    assert all(len(packet) <= 1280 for packet in drain(stack))


def test_a_closed_udp_socket_cannot_be_connected() -> None:
    socket = make_stack().udp_bind()
    socket.close()
    with pytest.raises(NotConnected):
        socket.connect(Endpoint(B4, 9))


def test_segments_to_ourselves_stay_within_the_queue() -> None:
    stack = make_stack(limits=StackLimits(queue=8))
    server = stack.udp_bind(53)
    client = stack.udp_bind()
    client.send_to(bytes(20), Endpoint(A4, 53), 0, segment=1)
    client.send_to(b"too late", Endpoint(A4, 53), 0)
    assert drain(stack) == []
    got = [server.recv_from() for _ in range(9)]
    assert [item is not None for item in got] == [True] * 8 + [False]
    assert stack.drops.counts["loop_queue"] == 12 + 1
