"""UDP sockets: delivery, fragmentation, limits, errors."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ipstack.kit import A4, A6, B4, B6, C4, Net, drain, feed, make_stack
from tests.nic.kit import udp_packet
from tsnetpy.base.addr import Endpoint
from tsnetpy.base.instant import SECOND
from tsnetpy.ipstack import (
    AddressInUse,
    AddressNotAvailable,
    InvalidAddress,
    InvalidPort,
    MessageTooLong,
    NoRoute,
    NotConnected,
    SocketError,
    StackLimits,
)
from tsnetpy.ipstack.addresses import SERVICE_V4
from tsnetpy.tcp.flags import ERROR, READABLE


@pytest.mark.parametrize(("src", "dst"), [(A4, B4), (A6, B6)])
@pytest.mark.parametrize("size", [0, 1, 1232, 1253, 5000, 60_000])
def test_datagrams_of_any_size(src: bytes, dst: bytes, size: int) -> None:
    net = Net()
    server = net.b.udp_bind(53)
    client = net.a.udp_bind()
    data = bytes(i * 11 & 0xFF for i in range(size))
    client.send_to(data, Endpoint(dst, 53), 0)
    net.run(lambda: net.ready.get(server))
    assert net.ready[server] == READABLE
    assert server.recv_from() == (data, Endpoint(src, client.local.port), dst)
    assert server.recv_from() is None
    server.send_to(data, Endpoint(src, client.local.port), net.now)
    net.run(lambda: net.ready.get(client))
    answer = client.recv_from()
    assert answer is not None
    assert answer[0] == data


@settings(max_examples=30)
@given(st.lists(st.integers(0, 8000), min_size=1, max_size=5), st.booleans(), st.randoms(use_true_random=False))
def test_fragments_in_any_order(sizes: list[int], v6: bool, random: object) -> None:
    net = Net()
    server = net.b.udp_bind(53)
    client = net.a.udp_bind()
    sent = [bytes((index,)) * size for index, size in enumerate(sizes)]
    for data in sent:
        client.send_to(data, Endpoint(B6 if v6 else B4, 53), 0)
    packets = drain(net.a)
    random.shuffle(packets)  # type: ignore[attr-defined]  # hypothesis types the generator as object here
    for packet in packets:
        feed(net.b, packet)
    got = []
    while (item := server.recv_from()) is not None:
        got.append(item[0])
    assert sorted(got) == sorted(sent)
    assert net.b.next_deadline() is None


@pytest.mark.checklist(150)
@pytest.mark.parametrize(("ip", "limit"), [(B4, 65507), (B6, 65527)])
def test_largest_datagram(ip: bytes, limit: int) -> None:
    net = Net()
    server = net.b.udp_bind(53)
    client = net.a.udp_bind()
    client.send_to(bytes(limit), Endpoint(ip, 53), 0)
    net.run(lambda: net.ready.get(server))
    got = server.recv_from()
    assert got is not None
    assert len(got[0]) == limit
    with pytest.raises(MessageTooLong) as info:
        client.send_to(bytes(limit + 1), Endpoint(ip, 53), 0)
    assert info.value.errno == 90


def test_send_refusals() -> None:
    stack = make_stack(addresses=(A4,))
    socket = stack.udp_bind(5000)
    with pytest.raises(InvalidPort):
        socket.send_to(b"", Endpoint(B4, 0), 0)
    with pytest.raises(NoRoute):
        socket.send_to(b"", Endpoint(B6, 1), 0)
    with pytest.raises(InvalidAddress):
        socket.send_to(b"", Endpoint(bytes((224, 0, 0, 1)), 1), 0)
    with pytest.raises(AddressNotAvailable):
        socket.send_to(b"", Endpoint(B4, 1), 0, C4)
    with pytest.raises(NotConnected):
        socket.send(b"", 0)
    socket.close()
    with pytest.raises(NotConnected):
        socket.send_to(b"", Endpoint(B4, 1), 0)
    assert issubclass(NotConnected, SocketError)


def test_binding() -> None:
    stack = make_stack()
    socket = stack.udp_bind(53)
    with pytest.raises(AddressInUse):
        stack.udp_bind(53)
    stack.udp_bind(53, A4)
    stack.udp_bind(53, SERVICE_V4)
    with pytest.raises(AddressNotAvailable):
        stack.udp_bind(53, B4)
    socket.close()
    socket.close()
    stack.udp_bind(53)


def test_port_exhaustion() -> None:
    stack = make_stack(limits=StackLimits(ephemeral_first=50000, ephemeral_last=50003))
    ports = [stack.udp_bind().local.port for _ in range(4)]
    assert sorted(ports) == [50000, 50001, 50002, 50003]
    with pytest.raises(AddressInUse):
        stack.udp_bind()


def test_specific_socket_wins_and_wildcards_skip_service_addresses() -> None:
    stack = make_stack()
    everywhere, here, service = stack.udp_bind(53), stack.udp_bind(53, A4), stack.udp_bind(53, SERVICE_V4)
    client = stack.udp_bind()
    for ip in (A4, A6, SERVICE_V4):
        client.send_to(ip, Endpoint(ip, 53), 0)
    assert stack.egress(0) == []
    for socket, ip in ((here, A4), (everywhere, A6), (service, SERVICE_V4)):
        item = socket.recv_from()
        assert item is not None
        assert item[0] == item[2] == ip
        assert socket.recv_from() is None
    # A question to the service address comes from, and the answer goes to, our own address.
    service.send_to(b"answer", Endpoint(A4, client.local.port), 0)
    stack.egress(0)
    answer = client.recv_from()
    assert answer is not None
    assert answer[1] == Endpoint(SERVICE_V4, 53)


def test_receive_queue_is_bounded_and_drops_the_oldest() -> None:
    stack = make_stack(limits=StackLimits(udp_queue_bytes=10_000))
    socket = stack.udp_bind(2000)
    for index in range(100):
        feed(stack, udp_packet(bytes((index,)) * 1000, src=B4, dst=A4))
    got = []
    while (item := socket.recv_from()) is not None:
        got.append(item[0][0])
    assert got == list(range(100 - len(got), 100))
    assert len(got) == 7
    assert socket.dropped == 93


def test_send_queue_is_bounded() -> None:
    stack = make_stack(limits=StackLimits(queue=10))
    socket = stack.udp_bind()
    for _ in range(25):
        socket.send_to(b"x", Endpoint(B4, 9), 0)
    assert len(drain(stack)) == 10
    assert stack.drops.counts["tx_queue"] == 15


def test_connected_socket_hears_its_peer_only() -> None:
    stack = make_stack()
    socket = stack.udp_bind(2000)
    socket.connect(Endpoint(B4, 1000))
    feed(stack, udp_packet(b"no", src=C4, dst=A4))
    feed(stack, udp_packet(b"no", src=B4, dst=A4, sport=1001))
    feed(stack, udp_packet(b"yes", src=B4, dst=A4))
    item = socket.recv_from()
    assert item is not None
    assert item[0] == b"yes"
    assert socket.recv_from() is None
    socket.send(b"hello", 0)
    assert drain(stack)[-1][-5:] == b"hello"


@pytest.mark.checklist(150)
@pytest.mark.parametrize(("remote", "port"), [(B4, 9), (B6, 9)])
def test_closed_port_reaches_the_connected_socket_as_refused(remote: bytes, port: int) -> None:
    net = Net()
    connected, loose = net.a.udp_bind(), net.a.udp_bind()
    connected.connect(Endpoint(remote, port))
    connected.send(b"anybody?", 0)
    loose.send_to(b"anybody?", Endpoint(remote, port), 0)
    net.run(lambda: net.ready.get(connected))
    assert net.ready[connected] == ERROR
    assert connected.take_error() == "refused"
    assert connected.take_error() is None
    net.run_for(SECOND)
    assert loose.take_error() is None
    assert net.b.drops.counts["no_socket"] == 2


@pytest.mark.attack(26)
def test_echo_of_dropped_datagrams_is_limited() -> None:
    stack = make_stack(limits=StackLimits(icmp_errors_per_second=100, icmp_error_burst=5))
    answers = sum(len(feed(stack, udp_packet(b"x", src=B4, dst=A4))) for _ in range(50))
    assert answers == 5
    assert sum(len(feed(stack, udp_packet(b"x", src=B4, dst=A4), SECOND // 50)) for _ in range(50)) == 2


def test_service_address_stays_silent() -> None:
    stack = make_stack()
    socket = stack.udp_bind()
    socket.connect(Endpoint(SERVICE_V4, 99))
    socket.send(b"x", 0)
    assert stack.egress(0) == []
    assert socket.take_error() is None
