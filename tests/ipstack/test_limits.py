"""What one peer can make this node hold or do: tables, queues, quotas; and what the API refuses."""

import pytest

from tests.dataplane.kit import B4 as PLANE_B4
from tests.dataplane.kit import World, transfer
from tests.ipstack.kit import A4, A6, B4, B6, Net, drain, feed, make_stack
from tests.nic.kit import ip_packet, tcp_packet, udp_packet
from tsnetpy.base.addr import Endpoint
from tsnetpy.base.errors import LocalProtocolError
from tsnetpy.base.instant import MILLISECOND, SECOND
from tsnetpy.dataplane import EndpointSeen
from tsnetpy.ipstack import (
    AddressInUse,
    InvalidAddress,
    InvalidPort,
    MessageTooLong,
    SendAfterShutdown,
    StackLimits,
    TooManySockets,
)
from tsnetpy.tcp import State
from tsnetpy.wire import icmpv4, tcp


def answer(stack_packets: list[bytes]) -> int:
    """Return the initial sequence number in a SYN-ACK."""
    (packet,) = stack_packets
    head = tcp.decode(packet[20:])
    assert head.flags == tcp.SYN | tcp.ACK
    return head.seq


# -- quotas ----------------------------------------------------------------------------------------------------------


@pytest.mark.attack(45)
def test_silent_connections_of_one_peer_are_capped() -> None:
    stack = make_stack(limits=StackLimits(connections=10, connections_per_peer=4))
    stack.tcp_listen(2000, 0)

    def establish(sport: int, peer: bytes) -> bool:
        packets = feed(stack, tcp_packet(1, src=B4, dst=A4, sport=sport, flags=tcp.SYN, ack=0), peer=peer)
        if not packets:
            return False
        feed(stack, tcp_packet(2, src=B4, dst=A4, sport=sport, ack=answer(packets) + 1), peer=peer)
        return True

    assert [establish(port, b"\x01" * 32) for port in range(1, 8)] == [True] * 4 + [False] * 3
    assert [establish(port, b"\x02" * 32) for port in range(101, 108)] == [True] * 4 + [False] * 3
    assert [establish(port, b"\x03" * 32) for port in range(201, 204)] == [True] * 2 + [False]


@pytest.mark.attack(53)
def test_quotas_are_per_peer_whatever_sources_it_claims() -> None:
    # A subnet router may use many inner addresses; they share what one peer may have.
    limits = StackLimits(embryos_per_peer=5, fragment_datagrams_per_peer=3, syn_cookies=False)
    stack = make_stack(limits=limits)
    stack.tcp_listen(2000, 0)
    router = b"\x01" * 32
    sources = [bytes((10, 0, 0, n)) for n in range(1, 30)]
    syns = [tcp_packet(1, src=src, dst=A4, flags=tcp.SYN, ack=0) for src in sources]
    assert sum(len(feed(stack, syn, peer=router)) for syn in syns) == 5
    assert len(feed(stack, syns[-1], peer=b"\x02" * 32)) == 1
    for src in sources:
        feed(stack, ip_packet(src, A4, 17, bytes(80), frag=0x2000), peer=router)
    assert stack.drops.counts["fragment_memory"] == len(sources) - 3


@pytest.mark.checklist(33)
@pytest.mark.attack(29)
def test_a_full_accept_queue_is_silent_until_somebody_accepts() -> None:
    stack = make_stack()
    listener = stack.tcp_listen(2000, 0, backlog=1)
    syns = [tcp_packet(1, src=B4, dst=A4, sport=port, flags=tcp.SYN, ack=0) for port in (1, 2)]
    iss = answer(feed(stack, syns[0]))
    feed(stack, tcp_packet(2, src=B4, dst=A4, sport=1, ack=iss + 1))
    assert feed(stack, syns[1]) == []
    assert stack.drops.counts["syn_refused"] == 1
    assert listener.accept() is not None
    answer(feed(stack, syns[1]))


def test_cookies_show_in_the_counters_of_a_node() -> None:
    world = World()
    world.b.plane.stack._host.limits.embryos = 0
    world.connect(PLANE_B4)
    stats = world.b.plane.stats()
    assert (stats.cookies_sent, stats.cookies_accepted) == (1, 1)


@pytest.mark.checklist(36)
def test_backlog_may_change_while_listening() -> None:
    stack = make_stack()
    listener = stack.tcp_listen(2000, 0, backlog=1)
    for port, fits in ((1, True), (2, False), (3, True)):
        if port == 3:
            listener.set_backlog(2)
        packets = feed(stack, tcp_packet(1, src=B4, dst=A4, sport=port, flags=tcp.SYN, ack=0))
        assert bool(packets) == fits
        if fits:
            feed(stack, tcp_packet(2, src=B4, dst=A4, sport=port, ack=answer(packets) + 1))


@pytest.mark.attack(46)
def test_the_oldest_time_wait_gives_way_when_there_is_no_room() -> None:
    net = Net(limits=StackLimits(connections=4, connections_per_peer=3))
    listener = net.b.tcp_listen(80, 0)
    servers = []
    for _ in range(3):
        client, server = net.open(Endpoint(B4, 80), listener)
        server.close(net.now)
        net.run(lambda s=server: s.connection.state is State.FIN_WAIT_2)  # type: ignore[misc]  # binds the variable
        client.close(net.now)
        net.run(lambda s=server: s.connection.state is State.TIME_WAIT)  # type: ignore[misc]  # binds the variable
        servers.append(server)
    client, server = net.open(Endpoint(B4, 80), listener)
    net.flush()
    assert [server.key in net.b._tcp._resting for server in servers] == [False, True, True]
    assert net.transfer(client, server, b"in a place that was taken") == b"in a place that was taken"
    # Connections in use do not give way.
    more = [net.b.tcp_connect(Endpoint(A4, 9), net.now) for _ in range(3)]
    assert len(more) == 3
    with pytest.raises(TooManySockets):
        net.b.tcp_connect(Endpoint(A4, 9), net.now)


@pytest.mark.checklist(145)
def test_time_wait_ends_and_leaves_nothing() -> None:
    net = Net()
    listener = net.b.tcp_listen(80, 0)
    client, server = net.open(Endpoint(B4, 80), listener)
    local = client.local
    client.close(net.now)
    server.close(net.now)
    net.run(lambda: client.closed and server.closed)
    net.run_for(120 * SECOND)
    assert net.a.next_deadline() is None
    again = net.a.tcp_connect(Endpoint(B4, 80), net.now, local)
    net.run(lambda: listener.accept())
    assert again.connection.state is State.ESTABLISHED


@pytest.mark.checklist(38)
def test_an_icmp_error_removes_an_embryo() -> None:
    stack = make_stack(limits=StackLimits(embryos=1, syn_cookies=False))
    stack.tcp_listen(2000, 0)
    (syn_ack,) = feed(stack, tcp_packet(1, src=B4, dst=A4, flags=tcp.SYN, ack=0))
    other = tcp_packet(1, src=B4, dst=A4, sport=999, flags=tcp.SYN, ack=0)
    assert feed(stack, other) == []
    feed(stack, ip_packet(B4, A4, 1, icmpv4.Icmpv4Message(3, 3, 0, syn_ack[:28]).encode()))
    answer(feed(stack, other))


@pytest.mark.attack(5, 6)
@pytest.mark.parametrize(
    "src", [A6, bytes(16), bytes(15) + b"\x01", b"\xff\x02" + bytes(13) + b"\x01", bytes(10) + b"\xff\xff" + B4]
)
def test_impossible_ipv6_sources_get_no_answer(src: bytes) -> None:
    stack = make_stack()
    stack.tcp_listen(2000, 0)
    assert feed(stack, tcp_packet(500, src=src, dst=A6, sport=2000, flags=tcp.SYN)) == []
    assert stack.drops.counts["martian"] == 1


@pytest.mark.checklist(40)
def test_what_a_listener_covers() -> None:
    # On all addresses: both families, not the service addresses. On one address: that one only.
    stack = make_stack()
    stack.tcp_listen(80, 0)
    stack.tcp_listen(81, 0, A6)
    for port, src, dst, open_ in ((80, B4, A4, True), (80, B6, A6, True), (81, B4, A4, False), (81, B6, A6, True)):
        (packet,) = feed(stack, tcp_packet(1, src=src, dst=dst, dport=port, flags=tcp.SYN, ack=0))
        flags = tcp.decode(packet[20 if len(dst) == 4 else 40 :]).flags
        assert flags == (tcp.SYN | tcp.ACK if open_ else tcp.RST | tcp.ACK)


@pytest.mark.checklist(86)
def test_datagrams_that_may_be_cut_have_their_own_identification() -> None:
    stack = make_stack()
    socket = stack.udp_bind()
    for size in (10, 3000, 10):
        socket.send_to(bytes(size), Endpoint(B4, 9), 0)
    packets = drain(stack)
    idents = [packet[4:6] for packet in packets]
    assert len(set(idents)) == 3  # the three fragments share theirs
    assert all(not packet[6] & 0x40 for packet in packets)
    stack.tcp_connect(Endpoint(B4, 80), 0)
    for packet in drain(stack):
        assert (packet[4:6], packet[6]) == (b"\0\0", 0x40)  # atomic: RFC 6864 asks for nothing


# -- the tunnel below ------------------------------------------------------------------------------------------------


@pytest.mark.attack(50)
def test_a_connection_survives_its_path() -> None:
    world = World(delay_ns=5 * MILLISECOND)
    client, server = world.connect(PLANE_B4)
    paths = [(world.a.path, 5, 0), (("udp", b"\xc0\x00\x02\x99", 7), 120, 40), (("udp", b"\xc0\x00\x02\x98", 7), 2, 0)]
    for path, delay, jitter in paths:  # direct, by a relay far away, and direct again
        world.a.path = path
        world.delay_ns, world.jitter_ns = delay * MILLISECOND, jitter * MILLISECOND
        data = world.random.randbytes(200_000)
        sent, got = 0, b""
        for _ in range(600):
            sent += client.send(data[sent:], world.now) if sent < len(data) else 0
            world.run(20 * MILLISECOND)
            got += server.read(1 << 20, world.now)
            if len(got) == len(data):
                break
        assert got == data
    world.run(SECOND)
    client.send(b"last", world.now)
    world.run(SECOND)
    # Packets that were under way by the old path arrive after those by the new one, so there may be more than 3 moves.
    seen = [event.path for event in world.b.events if isinstance(event, EndpointSeen)]
    assert {("udp", path) for path, _, _ in paths} == set(seen)
    assert seen[-1] == ("udp", paths[-1][0])
    assert client.connection.error is server.connection.error is None


@pytest.mark.attack(51)
def test_old_ciphertexts_never_reach_tcp() -> None:
    world = World(duplicate=1.0)
    client, server = world.connect(PLANE_B4)
    data = world.random.randbytes(100_000)
    assert transfer(world, client, server, data) == data
    drops = world.b.plane.stats().drops
    assert drops["wg.replay"] > 50
    assert server.connection.info().dsacks == client.connection.info().dsacks == 0


# -- bad calls -------------------------------------------------------------------------------------------------------


def test_bind_twice() -> None:
    stack = make_stack()
    stack.tcp_listen(80, 0)
    stack.udp_bind(53)
    with pytest.raises(AddressInUse) as info:
        stack.tcp_listen(80, 0)
    assert info.value.errno == 98
    with pytest.raises(AddressInUse):
        stack.udp_bind(53)


@pytest.mark.checklist(11)
def test_port_zero_and_no_port_at_all() -> None:
    stack = make_stack()
    udp = stack.udp_bind()
    for port in (0, -1, 65536):
        with pytest.raises(InvalidPort):
            stack.tcp_connect(Endpoint(B4, port), 0)
        with pytest.raises(InvalidPort):
            udp.connect(Endpoint(B4, port))
        with pytest.raises(InvalidPort):
            udp.send_to(b"", Endpoint(B4, port), 0)
    for ip in (bytes(4), b"\xff" * 4, b"", bytes(5)):
        with pytest.raises(InvalidAddress):
            udp.connect(Endpoint(ip, 1))
    with pytest.raises(InvalidAddress):
        stack.udp_bind(7, A4).connect(Endpoint(B6, 1))
    assert udp.remote is None


@pytest.mark.checklist(19)
@pytest.mark.parametrize("ip", [A4, A6])
def test_a_connection_to_itself_works_for_who_asks_for_it(ip: bytes) -> None:
    stack = make_stack()
    socket = stack.tcp_connect(Endpoint(ip, 80), 0, Endpoint(ip, 80))
    assert stack.egress(0) == []
    assert socket.connection.state is State.ESTABLISHED
    data = bytes(range(256)) * 400
    sent, got = 0, b""
    while len(got) < len(data):
        sent += socket.send(data[sent:], 0)
        assert stack.egress(0) == []
        got += socket.read(1 << 20, 0)
    assert got == data
    socket.close(0)
    now = 0
    while (deadline := stack.next_deadline()) is not None:
        now = deadline
        stack.handle_deadline(now)
        assert stack.egress(now) == []
    assert socket.closed
    assert now < 30 * SECOND
    assert stack.tcp_connections == 0


@pytest.mark.checklist(19, 20)
def test_a_free_port_is_never_the_one_that_is_dialled() -> None:
    stack = make_stack(limits=StackLimits(ephemeral_first=50000, ephemeral_last=50001))
    assert stack.tcp_connect(Endpoint(A4, 50000), 0).local.port == 50001
    with pytest.raises(AddressInUse):
        stack.tcp_connect(Endpoint(A4, 50000), 0)


def test_send_after_shutdown() -> None:
    net = Net()
    client, server = net.open(Endpoint(B4, 80), net.b.tcp_listen(80, 0))
    client.shutdown(net.now)
    with pytest.raises(SendAfterShutdown) as info:
        client.send(b"x", net.now)
    assert info.value.errno == 32
    server.abort(net.now)
    net.run(lambda: client.closed)
    for socket in (client, server):
        with pytest.raises(LocalProtocolError):
            socket.send(b"x", net.now)


@pytest.mark.checklist(150)
@pytest.mark.parametrize(("remote", "limit"), [(B4, 65507), (B6, 65527)])
def test_oversize_datagram(remote: bytes, limit: int) -> None:
    stack = make_stack()
    socket = stack.udp_bind()
    socket.connect(Endpoint(remote, 9))
    with pytest.raises(MessageTooLong) as info:
        socket.send(bytes(limit + 1), 0)
    assert info.value.errno == 90
    with pytest.raises(MessageTooLong):
        stack.icmp_bind().send_echo(remote, 1, bytes(limit + 1), 0)
    assert drain(stack) == []


def test_closed_udp_port_is_free_and_hears_nothing() -> None:
    stack = make_stack()
    socket = stack.udp_bind(2000)
    socket.close()
    (error,) = feed(stack, udp_packet(b"x", src=B4, dst=A4))
    assert error[20:22] == b"\x03\x03"
    stack.udp_bind(2000)
