"""A synchronous simulator: real engines, a virtual clock in nanoseconds, a heap of events. No event loop, no sockets.

::

    sim = Simulator(seed=1)
    a, b = sim.stack("100.64.0.1"), sim.stack("100.64.0.2")
    sim.connect(a, b, LinkConfig(rate=50_000_000, delay=ms(10), loss=0.01))
    transfer = Transfer(sim, a, b, 1 << 20)
    sim.run(lambda: transfer.done)

Hosts are whole IP stacks (:meth:`Simulator.stack`) or whole data planes with WireGuard (:meth:`Simulator.plane`). After
every event of a host the simulator does what the pump does: drain readiness, send what is pending, re-arm the timer.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random
from typing import Final, TypeAlias, final

from tsnetpy.base.addr import Endpoint, IpBytes, IpPrefix, parse_ip
from tsnetpy.base.instant import SECOND, Duration, Instant
from tsnetpy.base.packet import Buffer, PeerId
from tsnetpy.base.stats import Drops
from tsnetpy.crypto import dh
from tsnetpy.dataplane import DataPlane, DataPlaneConfig, PeerSpec
from tsnetpy.ipstack import Socket, Stack, StackLimits, TcpSocket
from tsnetpy.ipstack.filter import ANY_IP, DstRange, FilterRule
from tsnetpy.nic import gro, tso
from tsnetpy.tcp import TcpConfig

from .entropy import SeededEntropy
from .links import LinkConfig, Wire

START: Final[Instant] = 1000 * SECOND
"""Where the clock starts: not at 0, where mistakes with unset instants would hide."""
_WALL: Final = 1_760_000_000 * SECOND
_UDP_OVERHEAD: Final = 28
_BLOCK: Final = 1_000_003
_ALLOW_ALL: Final = (FilterRule(ANY_IP, tuple(DstRange(ips, 0, 65535) for ips in ANY_IP)),)

Observer: TypeAlias = Callable[[Instant, "SimHost", "SimHost", Buffer], None]
"""Sees each packet as it leaves: (now, sender, receiver, packet), before the link decides its fate."""


class SimHost(ABC):
    """One end of links.

    Attributes:
        name: for people.
        ready: readiness bits that came up and that nobody took, by socket.
    """

    overhead: int = 0

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready: dict[Socket, int] = {}
        self.armed: Instant | None = None

    @property
    @abstractmethod
    def stack(self) -> Stack:
        """The IP stack, for sockets."""

    @abstractmethod
    def give(self, batch: Sequence[tuple["SimHost", Buffer]], now: Instant) -> None:
        """Take packets that arrived together."""

    @abstractmethod
    def take(self, now: Instant) -> list[tuple["SimHost | None", list[Buffer]]]:
        """Return packets to send, by receiver; empty when nothing more is pending."""

    @abstractmethod
    def next_deadline(self) -> Instant | None:
        """Return when :meth:`handle_deadline` is due."""

    @abstractmethod
    def handle_deadline(self, now: Instant) -> None:
        """Run timers."""

    def collect_ready(self) -> None:
        """Add the stack's readiness to :attr:`ready`."""
        for socket, bits in self.stack.take_ready():
            self.ready[socket] = self.ready.get(socket, 0) | bits

    def __repr__(self) -> str:
        return f"<SimHost {self.name}>"


@final
class StackHost(SimHost):
    """An IP stack with TSO and GRO, and plain IP packets on its links."""

    def __init__(self, sim: "Simulator", stack: Stack, name: str, verify: bool) -> None:
        super().__init__(name)
        self._sim = sim
        self._stack = stack
        self._verify = verify
        self._peers: dict[SimHost, PeerId] = {}
        self.drops = Drops()

    @property
    def stack(self) -> Stack:
        """See :class:`SimHost`."""
        return self._stack

    def give(self, batch: Sequence[tuple[SimHost, Buffer]], now: Instant) -> None:
        """See :class:`SimHost`."""
        packets: list[tuple[PeerId, Buffer]] = [(self._peer(sender), packet) for sender, packet in batch]
        self._stack.ingress(gro.coalesce(packets, self.drops, self._verify), now)

    def _peer(self, sender: SimHost) -> PeerId:
        peer = self._peers.get(sender)
        if peer is None:
            peer = self._peers[sender] = (len(self._peers) + 1).to_bytes(32, "big")
        return peer

    def take(self, now: Instant) -> list[tuple[SimHost | None, list[Buffer]]]:
        """See :class:`SimHost`."""
        mtu = self._stack.mtu
        return [(self._sim.owner_of(unit.dst), [*tso.split(unit, mtu)]) for unit in self._stack.egress(now)]

    def next_deadline(self) -> Instant | None:
        """See :class:`SimHost`."""
        return self._stack.next_deadline()

    def handle_deadline(self, now: Instant) -> None:
        """See :class:`SimHost`."""
        self._stack.handle_deadline(now)


@final
class PlaneHost(SimHost):
    """A whole data plane: WireGuard datagrams on its links. Every other plane of the simulation is its peer."""

    overhead = _UDP_OVERHEAD

    def __init__(self, sim: "Simulator", name: str, addresses: tuple[IpBytes, ...], seed: int, mtu: int) -> None:
        super().__init__(name)
        entropy = SeededEntropy(seed)
        self._sim = sim
        self._private = dh.generate(entropy)
        self._mtu = mtu
        self.public: PeerId = dh.public_key(self._private)
        self.addresses = addresses
        self.plane = DataPlane(entropy)
        self.plane.wall_offset_ns = _WALL - sim.now

    @property
    def stack(self) -> Stack:
        """See :class:`SimHost`."""
        return self.plane.stack

    def configure(self, others: Sequence["PlaneHost"], now: Instant) -> None:
        """Make *others* the peers, and let everything in."""
        peers = tuple(
            PeerSpec(other.public, tuple(IpPrefix(ip, len(ip) * 8) for ip in other.addresses)) for other in others
        )
        self.plane.configure(
            DataPlaneConfig(
                private_key=self._private,
                addresses=self.addresses,
                peers=peers,
                filter_rules=_ALLOW_ALL,
                mtu=self._mtu,
            ),
            now,
        )

    def give(self, batch: Sequence[tuple[SimHost, Buffer]], now: Instant) -> None:
        """See :class:`SimHost`."""
        by_sender: dict[SimHost, list[Buffer]] = {}
        for sender, packet in batch:
            by_sender.setdefault(sender, []).append(packet)
        for sender, packets in by_sender.items():
            self.plane.from_underlay(packets, sender.name, now)

    def take(self, now: Instant) -> list[tuple[SimHost | None, list[Buffer]]]:
        """See :class:`SimHost`."""
        out: list[tuple[SimHost | None, list[Buffer]]] = [
            (self._sim.plane_by_key(peer), [bytes(d) for d in batch.datagrams()])
            for peer, batch in self.plane.to_underlay(now)
        ]
        out += [(self._sim.host_by_name(path), [data]) for path, data in self.plane.take_path_outgoing()]
        return out

    def next_deadline(self) -> Instant | None:
        """See :class:`SimHost`."""
        return self.plane.next_deadline()

    def handle_deadline(self, now: Instant) -> None:
        """See :class:`SimHost`."""
        self.plane.handle_deadline(now)
        while self.plane.next_event() is not None:
            pass


@final
class Simulator:
    """Hosts, the wires between them, and the clock.

    Args:
        seed: everything random comes from it.
        coalesce: how long a receiver gathers packets before it looks at them, as a network card does. It makes GRO
            work behind a link with a rate, and the simulation faster.

    Attributes:
        now: virtual time in nanoseconds.
        observers: called for every packet sent.
        drops: packets for nobody.
    """

    def __init__(self, seed: int = 1, coalesce: Duration = 0) -> None:
        self.now: Instant = START
        self.observers: list[Observer] = []
        self.drops = Drops()
        self._coalesce = coalesce
        self._random = Random(seed)
        self._heap: list[tuple[Instant, int, Callable[[], None]]] = []
        self._serial = 0
        self._hosts: list[SimHost] = []
        self._by_ip: dict[IpBytes, SimHost] = {}
        self._wires: dict[tuple[SimHost, SimHost], Wire] = {}
        self._inbox: dict[SimHost, list[tuple[SimHost, Buffer]]] = {}
        self._watchers: list[Callable[[], None]] = []

    # -- building ----------------------------------------------------------------------------------------------------

    def stack(
        self,
        *addresses: str,
        name: str = "",
        mtu: int = 1280,
        tcp: TcpConfig | None = None,
        limits: StackLimits | None = None,
        verify: bool = True,
    ) -> StackHost:
        """Add an IP stack with *addresses*."""
        entropy = SeededEntropy(self._random.getrandbits(32))
        stack = Stack(entropy, mtu, tcp if tcp is not None else TcpConfig(), limits)
        raw = [parse_ip(text) for text in addresses]
        stack.set_addresses(raw)
        host = StackHost(self, stack, name or addresses[0], verify)
        self._adopt(host, raw)
        return host

    def plane(self, *addresses: str, name: str = "", mtu: int = 1280) -> PlaneHost:
        """Add a data plane with *addresses*, and make it and all other planes each other's peers."""
        raw = tuple(parse_ip(text) for text in addresses)
        host = PlaneHost(self, name or addresses[0], raw, self._random.getrandbits(32), mtu)
        self._adopt(host, raw)
        planes = [h for h in self._hosts if isinstance(h, PlaneHost)]
        for plane in planes:
            plane.configure([other for other in planes if other is not plane], self.now)
        return host

    def _adopt(self, host: SimHost, addresses: Sequence[IpBytes]) -> None:
        self._hosts.append(host)
        for ip in addresses:
            self._by_ip[ip] = host

    def connect(self, a: SimHost, b: SimHost, there: LinkConfig, back: LinkConfig | None = None) -> tuple[Wire, Wire]:
        """Lay wires from *a* to *b* and back (the same way unless *back* says otherwise); return them."""
        wires = self.wire(there), self.wire(back if back is not None else there)
        self.attach(a, b, wires[0])
        self.attach(b, a, wires[1])
        return wires

    def wire(self, config: LinkConfig) -> Wire:
        """Return a wire that leads nowhere yet."""
        return Wire(config, self._random.getrandbits(32))

    def attach(self, sender: SimHost, receiver: SimHost, wire: Wire) -> None:
        """Send what goes from *sender* to *receiver* over *wire*; several pairs may share one bottleneck."""
        self._wires[sender, receiver] = wire

    def owner_of(self, ip: IpBytes) -> SimHost | None:
        """Return the host with address *ip*."""
        return self._by_ip.get(ip)

    def plane_by_key(self, key: PeerId) -> SimHost | None:
        """Return the plane whose public key is *key*."""
        return next((h for h in self._hosts if isinstance(h, PlaneHost) and h.public == key), None)

    def host_by_name(self, name: object) -> SimHost | None:
        """Return the host called *name*."""
        return next((h for h in self._hosts if h.name == name), None)

    # -- running -----------------------------------------------------------------------------------------------------

    def at(self, when: Instant, action: Callable[[], None]) -> None:
        """Call *action* at *when*; afterwards every host is asked what it wants to send."""
        self._serial += 1
        heappush(self._heap, (max(when, self.now), self._serial, action))

    def after(self, delay: Duration, action: Callable[[], None]) -> None:
        """Call *action* in *delay* from now."""
        self.at(self.now + delay, action)

    def watch(self, action: Callable[[], None]) -> None:
        """Call *action* after every event: an application that reads and writes when it can."""
        self._watchers.append(action)

    def flush(self) -> None:
        """Let applications act and hosts send until nothing is pending at this instant."""
        for _ in range(10_000):
            for action in self._watchers:
                action()
            moved = False
            for host in self._hosts:
                while units := host.take(self.now):
                    moved = True
                    for receiver, packets in units:
                        self._send(host, receiver, packets)
                host.collect_ready()
            if not moved:
                break
        else:
            raise RuntimeError(f"the hosts never come to rest at {self.now}")
        for host in self._hosts:
            deadline = host.next_deadline()
            if deadline is not None and (host.armed is None or deadline < host.armed):
                host.armed = deadline
                self.at(deadline, lambda host=host, deadline=deadline: self._alarm(host, deadline))  # type: ignore[misc]  # default arguments bind the loop variables

    def _alarm(self, host: SimHost, armed: Instant) -> None:
        if host.armed != armed:
            return
        host.armed = None
        deadline = host.next_deadline()
        if deadline is not None and deadline <= self.now:
            host.handle_deadline(self.now)

    def _send(self, sender: SimHost, receiver: SimHost | None, packets: Sequence[Buffer]) -> None:
        wire = self._wires.get((sender, receiver)) if receiver is not None else None
        if receiver is None or wire is None:
            self.drops.add("no_wire", len(packets))
            return
        for packet in packets:
            for observer in self.observers:
                observer(self.now, sender, receiver, packet)
            for arrives, data in wire.offer(packet, self.now, sender.overhead):
                self.at(arrives, _Arrival(self, sender, receiver, data))

    def arrive(self, sender: SimHost, receiver: SimHost, packet: Buffer) -> None:
        """Put *packet* into the receiver's inbox; it is looked at when :attr:`coalesce` has passed."""
        inbox = self._inbox.get(receiver)
        if inbox is None:
            inbox = self._inbox[receiver] = []
            self.at(self.now + self._coalesce, lambda: self._deliver(receiver))
        inbox.append((sender, packet))

    def _deliver(self, receiver: SimHost) -> None:
        receiver.give(self._inbox.pop(receiver), self.now)

    def step(self, until: Instant | None = None) -> bool:
        """Do the next event, and all others of the same instant; return False if none is left before *until*."""
        self.flush()
        heap = self._heap
        if not heap or (until is not None and heap[0][0] > until):
            if until is not None:
                self.now = max(self.now, until)
            return False
        self.now = heap[0][0]
        while heap and heap[0][0] <= self.now:
            heappop(heap)[2]()
        return True

    def run(self, done: Callable[[], bool], limit: Duration = 600 * SECOND) -> None:
        """Run until *done*.

        Raises:
            TimeoutError: *limit* passed, or nothing would ever happen again.
        """
        until = self.now + limit
        while not done():
            if not self.step(until):
                self.flush()
                if done():
                    return
                raise TimeoutError(f"not done after {(self.now - START) / SECOND:.3f} s of virtual time")

    def run_for(self, span: Duration) -> None:
        """Let *span* pass."""
        until = self.now + span
        while self.step(until):
            pass


@final
class _Arrival:
    """A packet on the way. Calling it is its arrival."""

    __slots__ = ("_packet", "_receiver", "_sender", "_sim")

    def __init__(self, sim: Simulator, sender: SimHost, receiver: SimHost, packet: Buffer) -> None:
        self._sim = sim
        self._sender = sender
        self._receiver = receiver
        self._packet = packet

    def __call__(self) -> None:
        self._sim.arrive(self._sender, self._receiver, self._packet)


@dataclass(slots=True, frozen=True)
class Goodput:
    """How a transfer went."""

    octets: int
    duration: Duration

    @property
    def megabits(self) -> float:
        """Megabits of payload per second."""
        return self.octets * 8000 / max(self.duration, 1)


@final
class Transfer:
    """An application that sends seeded bytes over one TCP connection, and one that reads and compares them.

    Attributes:
        received: bytes that arrived right.
        finished_at: when the end of the stream was read.
        client, server: the sockets, once there.
    """

    def __init__(
        self, sim: Simulator, source: SimHost, sink: SimHost, size: int, port: int = 5001, seed: int = 7
    ) -> None:
        self._sim = sim
        # A prime length: the stream repeats, but never in step with segments or buffers.
        self._block = Random(seed).randbytes(_BLOCK) * 2
        self._view = memoryview(self._block)
        self._size = size
        self._sent = 0
        self._shut = False
        self._listener = sink.stack.tcp_listen(port, sim.now)
        address = next(ip for ip in sorted(sink.stack.addresses, key=len))
        self.started_at = sim.now
        self.client: TcpSocket = source.stack.tcp_connect(Endpoint(address, port), sim.now)
        self.server: TcpSocket | None = None
        self.received = 0
        self.finished_at: Instant | None = None
        sim.watch(self._act)

    @property
    def done(self) -> bool:
        """Whether everything arrived."""
        return self.finished_at is not None

    @property
    def goodput(self) -> Goodput:
        """Bytes and time so far."""
        end = self.finished_at if self.finished_at is not None else self._sim.now
        return Goodput(self.received, end - self.started_at)

    def _expected(self, offset: int, length: int) -> memoryview:
        start = offset % _BLOCK
        return self._view[start : start + length]

    def _act(self) -> None:
        if self.finished_at is not None:
            return
        now = self._sim.now
        client = self.client
        if client.connection.error is not None:
            raise ConnectionError(client.connection.error)
        if not self._shut and client.send_space:
            if self._sent < self._size:
                self._sent += client.send(self._expected(self._sent, min(self._size - self._sent, _BLOCK)), now)
            if self._sent == self._size:
                self._shut = True
                client.shutdown(now)
        server = self.server
        if server is None:
            server = self.server = self._listener.accept()
            if server is None:
                return
        while chunk := server.read(_BLOCK, now):
            if self._expected(self.received, len(chunk)) != chunk:
                raise ValueError(f"wrong bytes at offset {self.received}")
            self.received += len(chunk)
        if server.connection.eof_received and not server.readable_bytes:
            if self.received != self._size:
                raise ValueError(f"the stream ended after {self.received} of {self._size} bytes")
            self.finished_at = now
            server.close(now)
