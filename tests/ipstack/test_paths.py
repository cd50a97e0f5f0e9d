"""Ways to peers: bursts, narrow ones, back-pressure, and what routers say about them."""

import itertools
from collections import Counter

import pytest

from tests.dataplane.kit import B4 as PLANE_B4
from tests.dataplane.kit import End, World
from tests.ipstack.kit import A4, B4, B6, C4, PEER_A, PEER_B, Net, drain, feed, make_stack
from tests.ipstack.test_icmp import icmp4, icmp6
from tsnetpy.base.addr import Endpoint, IpBytes
from tsnetpy.base.instant import MILLISECOND, SECOND
from tsnetpy.base.packet import PeerId
from tsnetpy.ipstack import Stack, StackLimits, TcpSocket

BURST = 16
DATA = bytes(i * 7 & 0xFF for i in range(400_000))


def to_b(ip: IpBytes) -> PeerId | None:
    return PEER_B if ip in (B4, B6) else None


def watched(net: Net) -> Counter[int]:
    """Count the packets that A sends, by instant."""
    seen: Counter[int] = Counter()

    def look(packet: bytes) -> bytes:
        if packet[12:16] == A4:
            seen[net.now] += 1
        return packet

    net.hook = look
    return seen


def is_pending(stack: Stack) -> bool:
    """Look anew: a type checker remembers what an attribute was."""
    return stack.pending


def error_of(socket: TcpSocket) -> str | None:
    """Look anew."""
    return socket.connection.error


def opened(delay: int = 2 * MILLISECOND, burst: int = 0) -> tuple[Net, TcpSocket, TcpSocket]:
    net = Net(delay=delay)
    net.a.paths.route = to_b
    net.a.set_path(PEER_B, 0, burst)
    return net, *net.open(Endpoint(B4, 80), net.b.tcp_listen(80, 0))


def test_a_path_with_a_burst_cap_gets_no_more_at_once() -> None:
    net, client, server = opened(burst=BURST)
    seen = watched(net)
    assert net.transfer(client, server, DATA) == DATA
    assert max(seen.values()) < 2 * BURST  # the last super-segment of a burst may overdraw it
    big = sorted(now for now, count in seen.items() if count >= BURST)
    assert len(big) > 5
    assert all(later - earlier >= MILLISECOND for earlier, later in itertools.pairwise(big))
    # On an ordinary path the same transfer sends more at once.
    net, client, server = opened()
    seen = watched(net)
    assert net.transfer(client, server, DATA) == DATA
    assert max(seen.values()) > 2 * BURST


def test_a_path_may_change_in_mid_flow() -> None:
    net, client, server = opened()
    got = b""
    for burst in (0, BURST, 0, BURST):
        net.a.set_path(PEER_B, 0, burst)
        seen = watched(net)
        sent, target = 0, len(got) + len(DATA)
        while len(got) < target:
            sent += client.send(DATA[sent:], net.now)
            assert net.step()
            got += server.read(1 << 20, net.now)
        assert (max(seen.values()) < 2 * BURST) == bool(burst)
    assert got == DATA * 4


def test_connections_share_the_burst_of_their_path() -> None:
    net, *first = opened(burst=BURST)
    listener = net.b.tcp_listen(81, 0)
    pairs = [tuple(first)] + [net.open(Endpoint(B4, 81), listener) for _ in range(9)]
    net.run_for(SECOND)
    seen = watched(net)
    for client, _ in pairs:
        client.send(DATA[:12_000], net.now)
    net.run_for(SECOND)
    assert max(seen.values()) < 2 * BURST
    assert all(server.read(1 << 20, net.now) == DATA[:12_000] for _, server in pairs)


def test_who_had_a_part_of_one_burst_lets_the_others_go_first_in_the_next() -> None:
    net, *first = opened(delay=25 * MILLISECOND, burst=BURST)
    listener = net.b.tcp_listen(81, 0)
    pairs = [tuple(first)] + [net.open(Endpoint(B4, 81), listener) for _ in range(2)]
    got = [0] * len(pairs)
    end = net.now + SECOND
    while net.now < end:
        for client, _ in pairs:
            client.send(DATA, net.now)
        assert net.step()
        for at, (_, server) in enumerate(pairs):
            got[at] += len(server.read(1 << 22, net.now))
    assert sum(got) > 5_000_000  # the path is full, so that what one gets another one lacks
    assert max(got) < 2 * min(got)


def test_other_peers_are_not_held_up() -> None:
    stack = make_stack()
    stack.paths.route = lambda ip: PEER_B if ip == B4 else PEER_A
    stack.set_path(PEER_B, 0, 1)
    slow = [stack.tcp_connect(Endpoint(B4, 80), 0) for _ in range(3)]
    for _ in range(3):
        stack.tcp_connect(Endpoint(C4, 80), 0)
    assert sorted(packet[16:20] for packet in drain(stack)) == [B4, C4, C4, C4]
    assert stack.next_deadline() == MILLISECOND
    when = [0]
    while sum(1 for socket in slow if socket.connection.tcb.stats.segments_out) < 3:
        deadline = stack.next_deadline()
        assert deadline is not None
        when.append(deadline)
        stack.handle_deadline(deadline)
        assert [packet[16:20] for packet in drain(stack, deadline)] == [B4]
    assert when == [0, MILLISECOND, 2 * MILLISECOND]


def test_back_pressure_keeps_tcp_where_it_is() -> None:
    net, client, server = opened()
    udp, echo = net.a.udp_bind(), net.a.tcp_listen(90, 0)
    net.a.set_blocked(True)
    client.send(b"later", net.now)
    own = net.a.tcp_connect(Endpoint(A4, 90), net.now)
    udp.send_to(b"now", Endpoint(B4, 9), net.now)
    sent = net.a.egress(net.now)
    assert [tx.proto for tx in sent] == [17]  # datagrams have a queue with an end of their own
    assert is_pending(net.a) is False
    assert echo.accept() is not None  # what we send to ourselves does not leave
    assert own.connection.state.value == "ESTABLISHED"
    net.run_for(20 * MILLISECOND)
    assert server.read(10, net.now) == b""
    client.send(b" and more", net.now)
    net.a.set_blocked(False)
    assert is_pending(net.a)
    net.run_for(20 * MILLISECOND)
    assert server.read(100, net.now) == b"later and more"


def test_a_connection_ends_properly_while_nothing_can_leave() -> None:
    net, client, server = opened()
    net.a.set_blocked(True)
    client.abort(net.now)
    net.flush()
    net.run_for(SECOND)
    assert client.closed
    net.a.set_blocked(False)
    net.run_for(SECOND)
    assert server.connection.error == "reset"


def test_a_narrow_path_narrows_segments_and_datagrams_and_widens_again() -> None:
    net = Net()
    for stack in (net.a, net.b):
        stack.set_mtu(1400)
    net.a.paths.route = to_b
    listener = net.b.tcp_listen(80, 0)
    client, server = net.open(Endpoint(B4, 80), listener)
    udp = net.a.udp_bind()
    net.keep_packets = True
    for mtu, most in ((0, 1400), (1300, 1300), (0, 1400)):
        net.a.set_path(PEER_B, mtu, 0)
        net.packets.clear()
        client.send(bytes(5000), net.now)
        udp.send_to(bytes(5000), Endpoint(B4, 9), net.now)
        net.run_for(SECOND)
        assert len(server.read(1 << 20, net.now)) == 5000
        sizes = {protocol: max(len(p) for p in net.packets if p[9] == protocol) for protocol in (6, 17)}
        assert sizes[6] == most
        assert most - 8 < sizes[17] <= most
    net.a.set_path(PEER_B, 1300, 0)
    again, _ = net.open(Endpoint(B4, 80), listener)
    net.run_for(SECOND)
    assert again.connection.info().mss == 1300 - 52


def test_a_peer_that_leaves_takes_its_path_along() -> None:
    world = World()
    plane, other = world.a.plane, world.b
    plane.set_path(other.public, burst=BURST)
    plane.set_path(b"?" * 32, burst=BURST)  # nobody we know
    path = plane.stack.paths.lookup(PLANE_B4)
    assert path is not None
    assert path.burst == BURST
    world.a.configure(world.a, world.now)
    assert plane.stack.paths.lookup(PLANE_B4) is None


def test_bursts_and_back_pressure_through_the_tunnel() -> None:
    world = World()
    plane = world.a.plane
    client, server = world.connect(PLANE_B4)
    plane.set_path(world.b.public, burst=BURST)
    seen: Counter[int] = Counter()
    put = world._put

    def count(source: End, target: End, datagram: bytes) -> None:
        seen[world.now] += source is world.a
        put(source, target, datagram)

    world._put = count  # type: ignore[method-assign]  # the kit's class, to look at its wire
    sent = got = 0
    while got < len(DATA):
        sent += client.send(DATA[sent:], world.now)
        world.run(MILLISECOND)
        got += len(server.read(1 << 20, world.now))
    assert BURST <= max(seen.values()) < 2 * BURST
    plane.set_blocked(True)
    client.send(b"x", world.now)
    assert plane.to_underlay(world.now) == []
    plane.set_blocked(False)
    world.run(SECOND)
    assert server.read(10, world.now) == b"x"


# -- what routers say ------------------------------------------------------------------------------------------------


def narrowed() -> tuple[Net, TcpSocket, TcpSocket, list[bytes]]:
    """Return two ends with data under way that a router has no room for, and the packets it refused."""
    net = Net()
    client, server = net.open(Endpoint(B4, 80), net.b.tcp_listen(80, 0))
    net.run_for(SECOND)
    refused: list[bytes] = []

    def router(packet: bytes) -> bytes | None:
        if len(packet) <= 800 or packet[12:16] != A4:
            return packet
        refused.append(packet)
        return None

    net.hook = router
    client.send(bytes(30_000), net.now)
    net.flush()
    return net, client, server, refused


@pytest.mark.checklist(147)
@pytest.mark.attack(22)
def test_after_ten_minutes_open_connections_try_the_whole_mtu_again() -> None:
    net, client, server, refused = narrowed()
    feed(net.a, icmp4(3, 4, 800, refused[0][:28]), net.now)
    net.run_for(10 * SECOND)
    assert len(server.read(1 << 20, net.now)) == 30_000
    assert client.connection.info().mss == 748
    net.hook = lambda packet: packet
    net.run_for(589 * SECOND)
    assert client.connection.info().mss == 748
    net.run_for(2 * SECOND)
    assert client.connection.info().mss == 1228
    net.keep_packets = True
    client.send(bytes(3000), net.now)
    net.run_for(SECOND)
    assert max(map(len, net.packets)) == 1280


@pytest.mark.checklist(147)
def test_all_connections_by_that_path_hear_of_it() -> None:
    net, _, _, refused = narrowed()
    others = [net.a.tcp_connect(Endpoint(B4, 80), net.now) for _ in range(2)]
    net.run_for(SECOND)
    feed(net.a, icmp4(3, 4, 800, refused[0][:28]), net.now)
    assert [socket.connection.info().mss for socket in others] == [748, 748]
    assert [socket.connection.info().retransmits for socket in others] == [0, 0]


@pytest.mark.attack(21, 22, 23)
def test_errors_count_only_from_the_peer_that_the_flow_goes_by() -> None:
    stack = make_stack()
    stack.paths.route = lambda ip: PEER_B if ip == B4 else PEER_A
    socket = stack.tcp_connect(Endpoint(B4, 80), 0)
    (syn,) = drain(stack)
    feed(stack, icmp4(3, 3, 0, syn[:28]), peer=PEER_A)  # another peer guessed right
    assert error_of(socket) is None
    assert stack.drops.counts["icmp_ignored"] == 1
    feed(stack, icmp4(3, 3, 0, syn[:28]), peer=PEER_B)
    assert error_of(socket) == "refused"
    udp = stack.udp_bind()
    udp.connect(Endpoint(A4, 9))  # a word from ourselves always counts
    udp.send(b"x", 0)
    assert stack.egress(0) == []
    assert udp.take_error() == "refused"


@pytest.mark.attack(22)
def test_a_word_about_datagrams_needs_a_datagram_that_large() -> None:
    stack = make_stack()
    udp = stack.udp_bind(5000)
    udp.send_to(bytes(100), Endpoint(B4, 9), 0)
    (small,) = drain(stack)
    feed(stack, icmp4(3, 4, 600, small[:28]))  # no router has trouble with 128 bytes

    def largest() -> int:
        udp.send_to(bytes(1200), Endpoint(B4, 9), 0)
        return max(map(len, drain(stack)))

    assert stack.drops.counts["icmp_ignored"] == 1
    assert largest() == 1228
    feed(stack, icmp4(3, 4, 1250, small[:28]))  # none that large was sent
    assert stack.drops.counts["icmp_ignored"] == 2
    feed(stack, icmp4(3, 4, 600, small[:28]))
    assert largest() <= 600


@pytest.mark.attack(22)
def test_a_word_about_datagrams_does_not_move_tcp() -> None:
    net = Net()
    client, server = net.open(Endpoint(B4, 80), net.b.tcp_listen(80, 0))
    udp = net.a.udp_bind(5000)
    udp.send_to(bytes(1200), Endpoint(B4, 9), net.now)
    quotes = [packet for packet in drain(net.a, net.now) if packet[9] == 17]
    feed(net.a, icmp4(3, 4, 600, quotes[0][:28]), net.now)
    again, _ = net.open(Endpoint(B4, 81), net.b.tcp_listen(81, 0))
    assert again.connection.info().mss == client.connection.info().mss == 1228
    assert net.transfer(client, server, bytes(5000)) == bytes(5000)


@pytest.mark.attack(18, 22)
def test_what_is_remembered_of_paths_is_bounded() -> None:
    stack = make_stack(mtu=1400, limits=StackLimits(queue=5000))
    udp = stack.udp_bind(5000)
    for n in range(1000, 2000):
        remote = B6[:14] + n.to_bytes(2, "big")
        udp.send_to(bytes(1340), Endpoint(remote, 9), 0)
        (packet,) = drain(stack)
        feed(stack, icmp6(2, 0, 1300, packet))
    host = stack._host
    assert len(host._large) <= 256
    assert len(host.datagram_mtus._table) <= 256


def test_word_of_too_big_for_an_echo() -> None:
    stack: Stack = make_stack()
    echo = stack.icmp_bind()
    echo.send_echo(B4, 1, bytes(1200), 0)
    (request,) = drain(stack)
    feed(stack, icmp4(3, 4, 700, request[:28]))
    echo.send_echo(B4, 2, bytes(1200), 0)
    assert max(map(len, drain(stack))) <= 700
