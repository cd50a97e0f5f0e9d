"""Ten thousand connections that do nothing cost memory only, and little of that."""

import gc
import time
import tracemalloc

import pytest

from tests.ipstack.kit import A4, B4, PEER_B, Dice, Net
from tests.nic.kit import timestamps
from tsnetpy.base.addr import Endpoint
from tsnetpy.base.instant import MILLISECOND, SECOND
from tsnetpy.ipstack import Stack, StackLimits, TcpListenerSocket, TcpSocket
from tsnetpy.nic.rx import RxPacket
from tsnetpy.tcp.flags import ACK, PSH, RST, SYN

MANY = 10_000
TRACED = 2_000
_SYN_OPTIONS = b"\x02\x04\x04\xd8\x01\x03\x03\x08\x04\x02\x08\x0a" + bytes(8)
_LIMITS = StackLimits(
    connections=20_000, connections_per_peer=20_000, embryos=20_000, embryos_per_peer=20_000, queue=20_000
)


class Server:
    """A stack with a listener, and clients that are no more than the segments they send."""

    def __init__(self) -> None:
        self.stack = Stack(Dice(1), 1280, None, _LIMITS)
        self.stack.set_addresses([A4])
        self.listener: TcpListenerSocket = self.stack.tcp_listen(80, 0, backlog=20_000)
        self.sockets: list[TcpSocket] = []
        self.now = SECOND
        self.client_iss = 5000

    def segment(self, n: int, seq: int, ack: int, flags: int, payload: bytes = b"") -> RxPacket:
        source = (100 << 24 | 64 << 16 | 1 << 8 | n >> 12).to_bytes(4, "big")
        rx = RxPacket(PEER_B, source + A4, 6, (1024 + (n & 0xFFF)) << 16 | 80, 0, 64)
        rx.seq, rx.ack, rx.flags, rx.wnd, rx.payload = seq, ack, flags, 1000, payload
        rx.options = _SYN_OPTIONS if flags & SYN else timestamps(self.now // MILLISECOND, 0)
        return rx

    def fill(self, count: int) -> None:
        """Establish connections until there are *count*."""
        while len(self.sockets) < count:
            first = len(self.sockets)
            batch = range(first, min(first + 100, count))
            self.stack.ingress([self.segment(n, self.client_iss, 0, SYN) for n in batch], self.now)
            answers = []
            while units := self.stack.egress(self.now):
                answers += units
            by_port = {(unit.dst, unit.header[2:4]): int.from_bytes(unit.header[4:8], "big") for unit in answers}
            finals = []
            for n in batch:
                rx = self.segment(n, self.client_iss + 1, 0, ACK)
                rx.ack = by_port[rx.src, rx.src_port.to_bytes(2, "big")] + 1
                finals.append(rx)
            self.stack.ingress(finals, self.now)
            self.settle()
            while (socket := self.listener.accept()) is not None:
                self.sockets.append(socket)
            self.settle()

    def settle(self) -> None:
        while self.stack.egress(self.now):
            pass
        self.stack.take_ready()

    def turns(self, n: int, count: int) -> float:
        """Return the least time of a turn: a segment arrives on connection *n*, is read, and is answered."""
        socket = self.sockets[n]
        best = float("inf")
        stack = self.stack
        for _ in range(count):
            tcb = socket.connection.tcb
            self.now += MILLISECOND
            rx = self.segment(n, tcb.rcv_nxt & 0xFFFFFFFF, tcb.snd_nxt & 0xFFFFFFFF, ACK | PSH, b"x" * 100)
            began = time.perf_counter()
            stack.ingress([rx], self.now)
            stack.take_ready()
            socket.read(1000, self.now)
            socket.send(b"y" * 100, self.now)
            while stack.egress(self.now):
                pass
            deadline = stack.next_deadline()
            if deadline is not None and deadline <= self.now:
                stack.handle_deadline(self.now)
            best = min(best, time.perf_counter() - began)
        return best


@pytest.mark.attack(45)
def test_ten_thousand_idle_connections() -> None:
    few, many = Server(), Server()
    few.fill(10)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    many.fill(TRACED)  # tracing all would take long; the tables' growth is the same for every thousand
    many.now += SECOND
    many.settle()
    gc.collect()
    each = (tracemalloc.get_traced_memory()[0] - before) / TRACED
    tracemalloc.stop()
    many.fill(MANY)
    assert each <= 6 * 1024, f"{each:.0f} bytes per connection"
    gc.disable()
    try:
        # The least of many turns is what the work costs; the machine's other business only ever adds to it.
        ratio = min(many.turns(4321, 300) / few.turns(4, 300) for _ in range(5))
    finally:
        gc.enable()
    assert ratio <= 1.3, f"a turn costs {ratio:.2f} times as much with {MANY} connections"


def test_a_timer_far_ahead_keeps_no_connection_that_ended() -> None:
    net = Net()
    listener = net.b.tcp_listen(80, 0)
    first, _ = net.open(Endpoint(B4, 80), listener)  # it lives on, and its entry stays before all others
    first.set_keepalive(7200 * SECOND, SECOND, 3, net.now)
    gc.collect()
    before = sum(type(thing) is TcpSocket for thing in gc.get_objects())
    for _ in range(200):
        client, server = net.open(Endpoint(B4, 80), listener)
        client.set_keepalive(7200 * SECOND, SECOND, 3, net.now)
        net.run_for(2 * SECOND)  # nothing but the keep-alive is left to wait for
        client.abort(net.now)
        net.run_for(10 * MILLISECOND)
        assert server.closed
        net.ready.clear()
    del client, server
    gc.collect()
    assert sum(type(thing) is TcpSocket for thing in gc.get_objects()) - before < 100


def test_a_busy_connection_with_a_timer_far_ahead_leaves_no_trail_of_deadlines() -> None:
    net = Net()
    client, server = net.open(Endpoint(B4, 80), net.b.tcp_listen(80, 0))
    client.set_keepalive(7200 * SECOND, SECOND, 3, net.now)
    for _ in range(200):
        client.send(b"x", net.now)
        net.run_for(SECOND // 2)
        assert server.read(10, net.now) == b"x"
    assert len(net.a._tcp._heap) < 100


def test_embryos_that_end_leave_no_work_to_the_garbage_collector() -> None:
    server = Server()
    gc.collect()
    gc.disable()
    try:
        before = sum(type(thing) is TcpSocket for thing in gc.get_objects())
        for n in range(200):
            for seq, flags in ((1, SYN), (2, RST)):
                server.stack.ingress([server.segment(n, seq, 0, flags)], server.now)
                server.stack.egress(server.now)
        after = sum(type(thing) is TcpSocket for thing in gc.get_objects())
    finally:
        gc.enable()
    assert server.stack.tcp_connections == 0
    assert after - before < 100
