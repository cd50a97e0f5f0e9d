"""TCP through two stacks: transfers, listeners, ports, resets, limits."""

import sys

import pytest

from tests.ipstack.kit import A4, A6, B4, B6, C4, PEER_A, Dice, Net, drain, feed, make_stack
from tests.nic.kit import tcp_packet
from tsnetpy.base.addr import Endpoint, parse_ip
from tsnetpy.base.instant import MILLISECOND, SECOND
from tsnetpy.ipstack import (
    ACCEPT,
    AddressInUse,
    AddressNotAvailable,
    InvalidAddress,
    InvalidPort,
    NoRoute,
    Stack,
    StackLimits,
    TooManySockets,
)
from tsnetpy.ipstack.addresses import SERVICE_V4, SERVICE_V6
from tsnetpy.nic.taps import FaultTap
from tsnetpy.tcp import State
from tsnetpy.tcp.flags import CLOSED, ERROR, ESTABLISHED
from tsnetpy.wire import tcp

DATA = bytes(range(256)) * 4096  # 1 MiB


@pytest.mark.parametrize("ip", [B4, B6])
def test_transfer_both_ways(ip: bytes) -> None:
    net = Net()
    listener = net.b.tcp_listen(80, 0)
    client, server = net.open(Endpoint(ip, 80), listener)
    assert server.remote == client.local
    assert server.local == client.remote == Endpoint(ip, 80)
    assert net.transfer(client, server, DATA) == DATA
    assert net.transfer(server, client, DATA[::-1]) == DATA[::-1]
    client.close(net.now)
    server.close(net.now)
    net.run(lambda: client.closed and server.closed)
    assert client.connection.error is server.connection.error is None
    assert net.nic_drops.total == net.a.drops.total == net.b.drops.total == 0


@pytest.mark.checklist(53)
@pytest.mark.attack(12)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_transfer_over_a_bad_wire(seed: int) -> None:
    net = Net(seed, delay=10 * MILLISECOND)
    tap = FaultTap(seed, drop=0.02, corrupt=0.005)

    def hook(packet: bytes) -> bytes | None:
        passed = tap.pass_batch([(PEER_A, packet)], 0)
        return bytes(passed[0][1]) if passed else None

    net.hook = hook
    client, server = net.open(Endpoint(B4, 80), net.b.tcp_listen(80, 0))
    assert net.transfer(client, server, DATA) == DATA
    assert tap.dropped
    assert tap.corrupted
    assert net.nic_drops.total


def test_readiness_bits() -> None:
    net = Net()
    listener = net.b.tcp_listen(80, 0)
    client = net.a.tcp_connect(Endpoint(B4, 80), 0)
    net.run(lambda: listener in net.ready)
    assert net.ready[listener] == ACCEPT
    assert net.ready[client] & ESTABLISHED
    server = listener.accept()
    assert server is not None
    net.flush()
    assert net.ready[server] & ESTABLISHED  # held back until the application knows the socket
    assert listener.accept() is None


@pytest.mark.checklist(6)
def test_closed_port_refuses() -> None:
    net = Net()
    client = net.a.tcp_connect(Endpoint(B4, 81), 0)
    net.run(lambda: client.closed)
    assert client.connection.error == "refused"
    assert net.ready[client] & (ERROR | CLOSED) == ERROR | CLOSED
    assert net.now < 10 * MILLISECOND


@pytest.mark.checklist(8)
def test_nobody_home_times_out() -> None:
    net = Net()
    net.hook = lambda packet: None
    client = net.a.tcp_connect(Endpoint(B4, 81), 0)
    net.run(lambda: client.closed)
    assert client.connection.error == "timeout"
    assert net.now > 60 * SECOND


@pytest.mark.checklist(22, 24, 130)
def test_reset_of_a_stray_segment_is_numbered_by_rfc_9293() -> None:
    stack = make_stack()
    (reset,) = feed(stack, tcp_packet(500, b"abc", src=B4, dst=A4, ack=77))
    head = tcp.decode(reset[20:])
    assert (head.src_port, head.dst_port, head.seq, head.flags) == (2000, 1000, 77, tcp.RST)
    (reset,) = feed(stack, tcp_packet(500, src=B4, dst=A4, flags=tcp.SYN, ack=0))
    head = tcp.decode(reset[20:])
    assert (head.seq, head.ack, head.flags) == (0, 501, tcp.RST | tcp.ACK)
    assert feed(stack, tcp_packet(500, src=B4, dst=A4, flags=tcp.RST)) == []


def test_resets_are_limited() -> None:
    stack = make_stack(limits=StackLimits(resets_per_second=10, reset_burst=5))
    packet = tcp_packet(500, b"abc", src=B4, dst=A4)
    assert sum(len(feed(stack, packet)) for _ in range(50)) == 5
    assert sum(len(feed(stack, packet, SECOND)) for _ in range(50)) == 5


@pytest.mark.attack(10)
@pytest.mark.parametrize("flags", [0, tcp.SYN | tcp.FIN, tcp.SYN | tcp.RST, tcp.FIN | tcp.RST, tcp.PSH & 0])
def test_impossible_flags_are_dropped(flags: int) -> None:
    stack = make_stack()
    stack.tcp_listen(2000, 0)
    assert feed(stack, tcp_packet(500, src=B4, dst=A4, flags=flags)) == []
    assert stack.drops.counts["tcp_flags"] == 1


@pytest.mark.checklist(25)
@pytest.mark.attack(5)
@pytest.mark.parametrize(
    "src", [A4, bytes(4), bytes((127, 0, 0, 1)), bytes((224, 0, 0, 1)), b"\xff" * 4, SERVICE_V4, bytes((0, 1, 2, 3))]
)
def test_impossible_sources_get_no_answer(src: bytes) -> None:
    stack = make_stack()
    stack.tcp_listen(2000, 0)
    assert feed(stack, tcp_packet(500, src=src, dst=A4, flags=tcp.SYN)) == []
    assert stack.drops.counts["martian"] == 1


@pytest.mark.checklist(43)
@pytest.mark.attack(52)
@pytest.mark.parametrize("dst", [C4, SERVICE_V4, bytes((224, 0, 0, 1)), b"\xff" * 4])
def test_foreign_destinations_get_no_answer(dst: bytes) -> None:
    stack = make_stack()
    stack.tcp_listen(2000, 0)
    assert feed(stack, tcp_packet(500, src=B4, dst=dst, flags=tcp.SYN)) == []
    assert stack.drops.counts["not_local"] == 1


@pytest.mark.attack(6)
def test_land_attack() -> None:
    stack = make_stack()
    stack.tcp_listen(2000, 0)
    assert feed(stack, tcp_packet(500, src=A4, dst=A4, sport=2000, flags=tcp.SYN)) == []


def test_listener_addresses_and_ports() -> None:
    stack = make_stack()
    stack.tcp_listen(80, 0)
    stack.tcp_listen(80, 0, A4)  # the more specific one goes first; both may exist
    with pytest.raises(AddressInUse):
        stack.tcp_listen(80, 0)
    with pytest.raises(AddressInUse):
        stack.tcp_listen(80, 0, A4)
    with pytest.raises(AddressNotAvailable):
        stack.tcp_listen(80, 0, B4)
    for port in (-1, 65536):
        with pytest.raises(InvalidPort):
            stack.tcp_listen(port, 0)
    picked = stack.tcp_listen(0, 0)
    assert 32768 <= picked.local.port <= 65535


@pytest.mark.checklist(40)
def test_specific_listener_wins() -> None:
    net = Net()
    everywhere = net.b.tcp_listen(80, 0)
    on_v4 = net.b.tcp_listen(80, 0, B4)
    net.a.tcp_connect(Endpoint(B4, 80), 0)
    net.a.tcp_connect(Endpoint(B6, 80), 0)
    net.run(lambda: net.ready.get(everywhere) and net.ready.get(on_v4))
    first, second = on_v4.accept(), everywhere.accept()
    assert first is not None
    assert second is not None
    assert (first.local.ip, second.local.ip) == (B4, B6)


@pytest.mark.checklist(11)
def test_connect_refuses_nonsense() -> None:
    stack = make_stack(addresses=(A4,))
    with pytest.raises(InvalidPort):
        stack.tcp_connect(Endpoint(B4, 0), 0)
    for ip in (bytes(4), bytes((224, 0, 0, 1)), bytes((127, 0, 0, 1)), b"\xff" * 4, bytes(16), bytes(5)):
        with pytest.raises(InvalidAddress):
            stack.tcp_connect(Endpoint(ip, 80), 0)
    with pytest.raises(NoRoute):
        stack.tcp_connect(Endpoint(B6, 80), 0)
    with pytest.raises(AddressNotAvailable):
        stack.tcp_connect(Endpoint(B4, 80), 0, Endpoint(C4, 0))
    with pytest.raises(InvalidAddress):
        stack.tcp_connect(Endpoint(B4, 80), 0, Endpoint(A6, 0))
    chosen = stack.tcp_connect(Endpoint(B4, 80), 0, Endpoint(A4, 5000))
    assert chosen.local == Endpoint(A4, 5000)
    with pytest.raises(AddressInUse):
        stack.tcp_connect(Endpoint(B4, 80), 0, Endpoint(A4, 5000))


@pytest.mark.checklist(20)
def test_ephemeral_ports_run_out_per_destination() -> None:
    stack = make_stack(limits=StackLimits(ephemeral_first=40000, ephemeral_last=40009))
    ports = {stack.tcp_connect(Endpoint(B4, 80), 0).local.port for _ in range(10)}
    assert ports == set(range(40000, 40010))
    with pytest.raises(AddressInUse):
        stack.tcp_connect(Endpoint(B4, 80), 0)
    stack.tcp_connect(Endpoint(B4, 81), 0)  # another destination, the same ports


@pytest.mark.checklist(20)
def test_ephemeral_ports_come_back() -> None:
    net = Net(limits=StackLimits(ephemeral_first=40000, ephemeral_last=40000))
    for _ in range(3):
        client = net.a.tcp_connect(Endpoint(B4, 80), net.now)
        net.run(lambda c=client: c.closed)  # type: ignore[misc]  # the default argument binds the loop variable


def test_connection_limit() -> None:
    stack = make_stack(limits=StackLimits(connections=3))
    for _ in range(3):
        stack.tcp_connect(Endpoint(B4, 80), 0)
    with pytest.raises(TooManySockets):
        stack.tcp_connect(Endpoint(B4, 80), 0)


@pytest.mark.checklist(32, 34)
@pytest.mark.attack(27)
def test_syn_flood_is_bounded_per_peer() -> None:
    stack = make_stack(limits=StackLimits(embryos_per_peer=5, embryos=8, syn_cookies=False))
    stack.tcp_listen(2000, 0)
    for peer, expected in ((b"\x01" * 32, 5), (b"\x02" * 32, 3)):
        answers = sum(
            len(feed(stack, tcp_packet(1, src=B4, dst=A4, sport=1000 + n + peer[0] * 100, flags=tcp.SYN), peer=peer))
            for n in range(20)
        )
        assert answers == expected
    assert stack.drops.counts["syn_limit"] == 32
    # Embryos that nobody completes go away, and the room comes back.
    while (deadline := stack.next_deadline()) is not None:
        stack.handle_deadline(deadline)
        drain(stack, deadline)
    assert len(feed(stack, tcp_packet(1, src=B4, dst=A4, flags=tcp.SYN), 10**12)) == 1


@pytest.mark.attack(28)
def test_syn_retransmission_is_one_embryo() -> None:
    stack = make_stack()
    stack.tcp_listen(2000, 0)
    syn = tcp_packet(1, src=B4, dst=A4, flags=tcp.SYN)
    first = feed(stack, syn)
    again = feed(stack, syn, MILLISECOND)
    assert len(first) == 1
    assert {packet[24:28] for packet in first + again} == {first[0][24:28]}  # the same initial sequence number


@pytest.mark.checklist(37)
def test_closing_a_listener_resets_who_waits() -> None:
    net = Net()
    listener = net.b.tcp_listen(80, 0)
    client = net.a.tcp_connect(Endpoint(B4, 80), 0)
    net.run(lambda: net.ready.get(listener))
    listener.close(net.now)
    net.run(lambda: client.closed)
    assert client.connection.error == "reset"
    late = net.a.tcp_connect(Endpoint(B4, 80), net.now)
    net.run(lambda: late.closed)
    assert late.connection.error == "refused"
    net.b.tcp_listen(80, net.now)


@pytest.mark.checklist(144)
def test_time_wait_gives_way_to_a_new_syn() -> None:
    net = Net()
    listener = net.b.tcp_listen(80, 0)
    local = Endpoint(A4, 5000)
    sockets = []
    for _ in range(2):
        client = net.a.tcp_connect(Endpoint(B4, 80), net.now, local)
        net.run(lambda: net.ready.get(listener))
        net.ready.clear()
        server = listener.accept()
        assert server is not None
        sockets.append((client, server))
        if len(sockets) == 1:
            server.close(net.now)  # the listening side closes first, so TIME-WAIT is there
            net.run(lambda s=server: s.connection.state is State.FIN_WAIT_2)  # type: ignore[misc]  # binds the variable
            client.close(net.now)
            net.run(lambda c=client: c.closed)  # type: ignore[misc]  # binds the loop variable
            net.run(lambda s=server: s.connection.state is State.TIME_WAIT)  # type: ignore[misc]  # binds the variable
            net.run_for(2 * SECOND)
    assert sockets[1][0].connection.state is State.ESTABLISHED
    assert sockets[0][1].closed


def test_initial_sequence_numbers_differ_by_tuple_and_advance_with_time() -> None:
    def isn(port: int, now: int) -> int:
        stack = make_stack(7)
        stack.tcp_connect(Endpoint(B4, 80), now, Endpoint(A4, port))
        return int.from_bytes(drain(stack, now)[0][24:28], "big")

    assert isn(5000, 0) != isn(5001, 0)
    # RFC 6528: one tick of the clock in it is 4 microseconds.
    assert (isn(5000, SECOND) - isn(5000, 0)) & 0xFFFFFFFF == 250_000


@pytest.mark.checklist(136)
def test_address_removal_ends_connections_silently() -> None:
    net = Net()
    client, _ = net.open(Endpoint(B4, 80), net.b.tcp_listen(80, 0))
    net.flush()
    net.a.set_addresses([A6])
    assert drain(net.a, net.now) == []
    assert client.closed
    assert client.connection.error == "unreachable"
    assert (client, CLOSED | ERROR) in net.a.take_ready()


@pytest.mark.parametrize("ip", [A4, A6, SERVICE_V4, SERVICE_V6])
def test_loopback(ip: bytes) -> None:
    stack = make_stack()
    listener = stack.tcp_listen(53, 0, ip if ip in (SERVICE_V4, SERVICE_V6) else None)
    client = stack.tcp_connect(Endpoint(ip, 53), 0)
    assert stack.egress(0) == []
    server = listener.accept()
    assert server is not None
    assert server.remote == client.local
    data = DATA[:100_000]
    sent, got = 0, b""
    while len(got) < len(data):
        sent += client.send(data[sent:], 0)
        assert stack.egress(0) == []
        got += server.read(1 << 20, 0)
    assert got == data


def test_wildcards_do_not_cover_the_service_addresses() -> None:
    stack = make_stack()
    stack.tcp_listen(53, 0)
    client = stack.tcp_connect(Endpoint(SERVICE_V4, 53), 0)
    assert stack.egress(0) == []
    assert client.connection.error == "refused"


def test_service_address_without_own_addresses() -> None:
    stack = make_stack(addresses=())
    listener = stack.tcp_listen(53, 0, SERVICE_V4)
    client = stack.tcp_connect(Endpoint(SERVICE_V4, 53), 0)
    stack.egress(0)
    assert client.connection.state is State.ESTABLISHED
    assert listener.accept() is not None


def test_tsmp_rejection_ends_a_handshake_only() -> None:
    net = Net()
    listener = net.b.tcp_listen(80, 0)
    client, server = net.open(Endpoint(B4, 80), listener)
    net.flush()
    net.a.flow_rejected(client.local, client.remote, net.now)
    net.a.flow_rejected(Endpoint(A4, 1), Endpoint(B4, 1), net.now)
    assert net.transfer(client, server, b"still here") == b"still here"
    other = net.a.tcp_connect(Endpoint(B4, 81), net.now)
    net.a.flow_rejected(other.local, other.remote, net.now)
    net.a.egress(net.now)
    assert other.connection.error == "refused"


def test_idle_connections_cost_nothing_per_poll() -> None:
    net = Net(limits=StackLimits(embryos_per_peer=4000, embryos=4000))
    listener = net.b.tcp_listen(80, 0, backlog=4000)
    for _ in range(300):
        net.a.tcp_connect(Endpoint(B4, 80), 0)
    net.run_for(SECOND)
    while listener.accept():
        pass
    net.flush()
    calls = 0

    def count(frame: object, event: str, arg: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        net.b.next_deadline()
        net.b.egress(net.now)
        net.b.take_ready()
    finally:
        sys.setprofile(None)
    assert calls < 20


def test_stack_without_addresses() -> None:
    stack = Stack(Dice(1))
    with pytest.raises(NoRoute):
        stack.tcp_connect(Endpoint(parse_ip("100.64.0.9"), 80), 0)
    assert stack.next_deadline() is None
    assert stack.next_event() is None
