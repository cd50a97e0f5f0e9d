"""Two stacks on a wire in memory with a virtual clock, and single stacks fed by hand."""

from collections.abc import Callable

from tsnetpy.base.addr import Endpoint, parse_ip
from tsnetpy.base.instant import MILLISECOND, Instant
from tsnetpy.base.packet import Buffer, PeerId, TxPacket
from tsnetpy.base.stats import Drops
from tsnetpy.ipstack import Socket, Stack, StackLimits, TcpListenerSocket, TcpSocket
from tsnetpy.nic import gro, tso
from tsnetpy.tcp import TcpConfig

A4, B4, C4 = (parse_ip(f"100.64.0.{n}") for n in (1, 2, 3))
A6, B6 = parse_ip("fd7a:115c:a1e0::1"), parse_ip("fd7a:115c:a1e0::2")
PEER_A, PEER_B = b"\x0a" * 32, b"\x0b" * 32


class Dice:
    """Repeatable entropy: a 64-bit linear congruential generator."""

    def __init__(self, seed: int) -> None:
        self._state = seed

    def u32(self) -> int:
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        return self._state >> 32

    def bytes(self, n: int) -> bytes:
        return b"".join(self.u32().to_bytes(4, "big") for _ in range(n // 4 + 1))[:n]


def make_stack(
    seed: int = 1, limits: StackLimits | None = None, addresses: tuple[bytes, ...] = (A4, A6), mtu: int = 1280
) -> Stack:
    """Return a stack with node A's addresses unless told otherwise."""
    stack = Stack(Dice(seed), mtu, TcpConfig(), limits)
    stack.set_addresses(addresses)
    return stack


def feed(stack: Stack, packet: bytes, now: Instant = 0, peer: PeerId = PEER_B) -> list[bytes]:
    """Put one packet in; return the complete packets that come out."""
    stack.ingress(gro.coalesce([(peer, packet)], Drops()), now)
    return drain(stack, now)


def drain(stack: Stack, now: Instant = 0) -> list[bytes]:
    """Return all packets that *stack* wants to send."""
    out: list[bytes] = []
    while units := stack.egress(now):
        for unit in units:
            out += tso.split(unit, stack.mtu)
    return out


class Net:
    """Stacks A and B, joined by a wire with a delay each way and an optional hook that sees every packet."""

    def __init__(self, seed: int = 1, delay: Instant = MILLISECOND, limits: StackLimits | None = None) -> None:
        self.a = make_stack(seed, limits, (A4, A6))
        self.b = make_stack(seed + 1, limits, (B4, B6))
        self.delay = delay
        self.now: Instant = 0
        self.nic_drops = Drops()
        self.hook: Callable[[bytes], bytes | None] = lambda packet: packet
        self.packets: list[bytes] = []
        self.keep_packets = False
        self.ready: dict[Socket, int] = {}
        self._wire: list[tuple[Instant, int, Stack, list[tuple[PeerId, Buffer]]]] = []
        self._serial = 0

    def send(self, stack: Stack, units: list[TxPacket]) -> None:
        peer, other = (PEER_A, self.b) if stack is self.a else (PEER_B, self.a)
        batch: list[tuple[PeerId, Buffer]] = []
        for unit in units:
            for packet in tso.split(unit, stack.mtu):
                if self.keep_packets:
                    self.packets.append(packet)
                passed = self.hook(packet)
                if passed is not None:
                    batch.append((peer, passed))
        if batch:
            self._serial += 1
            self._wire.append((self.now + self.delay, self._serial, other, batch))

    def flush(self) -> None:
        """Send what both stacks have pending now, and note who is ready."""
        for stack in (self.a, self.b):
            while units := stack.egress(self.now):
                self.send(stack, units)
            for socket, bits in stack.take_ready():
                self.ready[socket] = self.ready.get(socket, 0) | bits

    def step(self) -> bool:
        """Advance to the next thing that happens; return False if nothing ever will."""
        self.flush()
        times = [item[0] for item in self._wire]
        for stack in (self.a, self.b):
            deadline = stack.next_deadline()
            if deadline is not None:
                times.append(deadline)
        if not times:
            return False
        self.now = max(self.now, min(times))
        due = [item for item in self._wire if item[0] <= self.now]
        self._wire = [item for item in self._wire if item[0] > self.now]
        for _, _, stack, batch in due:
            stack.ingress(gro.coalesce(batch, self.nic_drops), self.now)
        for stack in (self.a, self.b):
            deadline = stack.next_deadline()
            if deadline is not None and deadline <= self.now:
                stack.handle_deadline(self.now)
        self.flush()
        return True

    def run(self, until: Callable[[], object], limit: int = 200_000) -> None:
        """Step until *until* is true."""
        for _ in range(limit):
            if until():
                return
            if not self.step():
                break
        assert until(), "nothing more happens, and the condition does not hold"

    def run_for(self, span: Instant) -> None:
        """Let *span* pass."""
        end = self.now + span
        while True:
            self.flush()
            times = [item[0] for item in self._wire]
            times += [d for s in (self.a, self.b) if (d := s.next_deadline()) is not None]
            if not times or min(times) > end:
                break
            self.step()
        self.now = end

    def open(self, remote: Endpoint, listener: TcpListenerSocket) -> tuple[TcpSocket, TcpSocket]:
        """Connect from A to *remote* on B; return both ends."""
        client = self.a.tcp_connect(remote, self.now)
        accepted: list[TcpSocket] = []

        def done() -> bool:
            socket = listener.accept()
            if socket is not None:
                accepted.append(socket)
            return bool(accepted)

        self.run(done)
        return client, accepted[0]

    def transfer(self, source: TcpSocket, sink: TcpSocket, data: bytes) -> bytes:
        """Send *data* from one end, close that direction, and return what the other end reads until EOF."""
        sent = 0
        got: list[bytes] = []
        view = memoryview(data)
        while True:
            if sent < len(data):
                sent += source.send(view[sent:], self.now)
                if sent == len(data):
                    source.shutdown(self.now)
            while chunk := sink.read(1 << 20, self.now):
                got.append(chunk)
            if sink.connection.eof_received and not sink.readable_bytes:
                return b"".join(got)
            assert sink.connection.error is None, sink.connection.error
            assert self.step(), "the transfer stalled"
