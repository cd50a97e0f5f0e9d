"""A deterministic pipe between two TCP engines: virtual clock, event heap, seeded loss, reordering and duplication.

Segments are cut into packets the way a NIC would, so loss hits packets and not super-segments; on arrival neighbours
may be merged again (``gro=True``).
"""

import heapq
from dataclasses import dataclass, field
from random import Random

from tsnetpy.base.instant import MILLISECOND, SECOND
from tsnetpy.tcp import Connection, Listener, Segment, State, TcpConfig, rst_for
from tsnetpy.tcp.flags import ACK, CWR, ESTABLISHED, FIN, PSH, RST, SYN

ISS_A = 0xFFFF_F000
ISS_B = 0x7FFF_FF00


@dataclass(slots=True)
class Packet:
    """One packet on the wire."""

    seq: int
    ack: int
    flags: int
    wnd: int
    options: bytes
    payload: bytes
    packets: int = 1


@dataclass(slots=True)
class Link:
    """What happens to packets in one direction."""

    delay: int = 10 * MILLISECOND
    loss: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0
    drop_next: set[int] = field(default_factory=set)
    """Indices (counting from 0, this direction) of packets to lose on purpose."""
    dead: bool = False
    count: int = 0
    rate: int = 0
    """Bits per second; 0 for no limit."""
    queue_limit: int = 256
    busy_until: int = 0


def split(segment: Segment) -> list[Packet]:
    """Cut a super-segment into packets: FIN and PSH only on the last."""
    data = b"".join(bytes(piece) for piece in segment.payload)
    assert len(data) == segment.payload_len
    size = segment.gso_size
    if not size or len(data) <= size:
        return [Packet(segment.seq, segment.ack, segment.flags, segment.wnd, segment.options, data)]
    out = []
    for at in range(0, len(data), size):
        last = at + size >= len(data)
        flags = segment.flags if last else segment.flags & ~(FIN | PSH)
        seq = (segment.seq + at) & 0xFFFFFFFF
        out.append(Packet(seq, segment.ack, flags & ~CWR, segment.wnd, segment.options, data[at : at + size]))
    return out


def coalesce(packets: list[Packet]) -> list[Packet]:
    """Merge neighbours in sequence with equal headers, as strict receive offload does."""
    out: list[Packet] = []
    for p in packets:
        q = out[-1] if out else None
        if (
            q is not None
            and p.payload
            and q.payload
            and not (p.flags | q.flags) & (SYN | RST)
            and not q.flags & (FIN | PSH)
            and (q.seq + len(q.payload)) & 0xFFFFFFFF == p.seq
            and (p.ack, p.options, p.wnd) == (q.ack, q.options, q.wnd)
        ):
            q.payload += p.payload
            q.flags |= p.flags
            q.packets += 1
        else:
            out.append(p)
    return out


class Pipe:
    """Two ends: ``a`` dials, ``b`` is made by a listener (or dials too, for simultaneous open)."""

    def __init__(
        self,
        a: TcpConfig | None = None,
        b: TcpConfig | None = None,
        *,
        seed: int = 1,
        gro: bool = True,
        simultaneous: bool = False,
        iss_a: int = ISS_A,
        iss_b: int = ISS_B,
        link: Link | None = None,
    ) -> None:
        self.now = 1_000 * SECOND
        self.random = Random(seed)
        self.gro = gro
        base = link or Link()
        self.links = [
            Link(base.delay, base.loss, base.reorder, base.duplicate, rate=base.rate, queue_limit=base.queue_limit)
            for _ in range(2)
        ]
        self.config_b = b or TcpConfig()
        self.listener = Listener(self.config_b)
        self.a = Connection.connect(a or TcpConfig(), iss_a, self.now)
        self.iss_b = iss_b
        self._b: Connection | None = Connection.connect(self.config_b, iss_b, self.now) if simultaneous else None
        self._heap: list[tuple[int, int, int, Packet]] = []
        self._serial = 0
        self.log: list[tuple[int, int, Packet]] = []
        """(time, side that sent, packet): everything sent, lost or not."""
        self.ready = [0, 0]

    @property
    def b(self) -> Connection:
        """The passive end; it exists once the SYN has arrived."""
        assert self._b is not None
        return self._b

    # -- running -------------------------------------------------------------------------------------------------

    def ends(self) -> list[Connection | None]:
        return [self.a, self._b]

    def flush(self) -> bool:
        """Put everything the engines want to send on the wire, until they have nothing more."""
        moved = False
        for side, conn in enumerate(self.ends()):
            if conn is None:
                continue
            for _ in range(1_000):
                segments = conn.segments_to_send(self.now)
                if not segments:
                    break
                moved = True
                for segment in segments:
                    self._transmit(side, segment)
            else:
                raise AssertionError("an engine never stops sending")
            self.ready[side] |= conn.take_ready()
        return moved

    def _transmit(self, side: int, segment: Segment) -> None:
        link = self.links[side]
        for packet in split(segment):
            index = link.count
            link.count += 1
            self.log.append((self.now, side, packet))
            if link.dead or index in link.drop_next or self.random.random() < link.loss:
                continue
            at = self.now + link.delay
            if link.rate:
                cost = (len(packet.payload) + 72) * 8 * SECOND // link.rate
                start = max(self.now, link.busy_until)
                full = 1_280 * 8 * SECOND // link.rate
                if start - self.now > link.queue_limit * full and packet.payload:
                    continue  # the bottleneck's queue is full
                link.busy_until = start + cost
                at = link.busy_until + link.delay
            if self.random.random() < link.reorder:
                at += self.random.randrange(link.delay // 4, link.delay * 2)
            copies = 2 if self.random.random() < link.duplicate else 1
            for _ in range(copies):
                self.inject(1 - side, packet, at)

    def inject(self, side: int, packet: Packet, at: int | None = None) -> None:
        """Let *packet* arrive at *side*."""
        self._serial += 1
        copy = Packet(packet.seq, packet.ack, packet.flags, packet.wnd, packet.options, packet.payload)
        heapq.heappush(self._heap, (self.now if at is None else at, self._serial, side, copy))

    def step(self, until: int) -> bool:
        """Advance to the next event not after *until*; return False when there is none."""
        self.flush()
        moments = [conn.next_deadline() for conn in self.ends() if conn is not None]
        due = [m for m in moments if m is not None]
        if self._heap:
            due.append(self._heap[0][0])
        if not due or min(due) > until:
            self.now = max(self.now, until)
            return False
        self.now = max(self.now, min(due))
        arrived: list[list[Packet]] = [[], []]
        while self._heap and self._heap[0][0] <= self.now:
            _, _, side, packet = heapq.heappop(self._heap)
            arrived[side].append(packet)
        for side in (0, 1):
            for packet in coalesce(arrived[side]) if self.gro else arrived[side]:
                self._deliver(side, packet)
        for conn in self.ends():
            deadline = conn.next_deadline() if conn is not None else None
            if conn is not None and deadline is not None and deadline <= self.now:
                conn.handle_deadline(self.now)
        self.flush()
        return True

    def _deliver(self, side: int, p: Packet) -> None:
        conn = self.ends()[side]
        if conn is None:
            if p.flags & (SYN | ACK | RST | FIN) == SYN:
                self._b = self.listener.receive_syn("a", p.seq, p.wnd, p.options, self.now, self.iss_b)
            elif not p.flags & RST:
                seq, ack, flags = rst_for(p.seq, p.ack, p.flags, len(p.payload))
                self.inject(0, Packet(seq, ack, flags, 0, b"", b""), self.now + self.links[1].delay)
            return
        payload = memoryview(bytearray(p.payload)) if self.random.random() < 0.5 else p.payload
        conn.receive_segment(p.seq, p.ack, p.flags, p.wnd, memoryview(p.options), payload, self.now, p.packets)
        if isinstance(payload, memoryview):
            payload[:] = bytes(len(payload))  # borrowed means borrowed: scribble over it
        if side == 1 and conn.tcb.ready & ESTABLISHED:
            self.listener.on_established(conn)

    def run(self, duration: int) -> None:
        """Let *duration* pass."""
        until = self.now + duration
        while self.step(until):
            pass

    def open(self) -> None:
        """Run the handshake to the end."""
        self.run(5 * SECOND) if self.links[0].loss else self.run(100 * MILLISECOND)
        assert self.a.state is State.ESTABLISHED, self.a.state
        assert self.b.state is State.ESTABLISHED, self.b.state

    def transfer(
        self, data_a: bytes, data_b: bytes = b"", *, limit: int = 600 * SECOND, close: bool = True, chunk: int = 65_536
    ) -> tuple[bytes, bytes]:
        """Send *data_a* from a to b and *data_b* back at the same time; return what (b, a) received."""
        sources = [memoryview(data_a), memoryview(data_b)]
        sent = [0, 0]
        got: list[list[bytes]] = [[], []]
        count = [0, 0]
        done = [False, False]
        until = self.now + limit
        while True:
            for side, conn in enumerate(self.ends()):
                if conn is None or conn.state in (State.SYN_SENT, State.SYN_RECEIVED):
                    continue
                source = sources[side]
                while sent[side] < len(source):
                    n = conn.send(source[sent[side] : sent[side] + chunk], self.now)
                    sent[side] += n
                    if not n:
                        break
                if close and sent[side] == len(source) and not done[side]:
                    done[side] = True
                    conn.shutdown(self.now)
                while data := conn.read(1 << 20, self.now):
                    got[side].append(data)
                    count[side] += len(data)
            complete = [count[1 - side] >= len(sources[side]) for side in (0, 1)]
            if all(complete) and (not close or (self.a.eof_received and self.b.eof_received)):
                self.flush()
                return b"".join(got[1]), b"".join(got[0])
            for conn in self.ends():
                assert conn is None or conn.error is None, conn.error
            if not self.step(until):
                raise AssertionError(f"stalled: {self.a.info()} {self.b.info()}")

    def sent(self, side: int, flags: int = 0) -> list[Packet]:
        """Return the packets that *side* sent with all of *flags*."""
        return [p for _, s, p in self.log if s == side and p.flags & flags == flags]

    def data_sent(self, side: int) -> list[Packet]:
        """Return the packets with payload that *side* sent."""
        return [p for _, s, p in self.log if s == side and p.payload]

    def clear_log(self) -> None:
        """Forget what was sent so far."""
        self.log.clear()


def blob(size: int, seed: int = 7) -> bytes:
    """Return *size* pseudo-random bytes."""
    return Random(seed).randbytes(size)


class Script:
    """One engine against hand-made packets. Sequence numbers are relative to each side's ISN."""

    PEER_ISN = 0xFFFF_FFF0
    OUR_ISN = 0xFFFF_FF00

    def __init__(self, config: TcpConfig | None = None, *, options: bytes = bytes.fromhex("020404d8")) -> None:
        self.now = 50 * SECOND
        self.config = config or TcpConfig()
        self.options = options
        self.conn = Connection.connect(self.config, self.OUR_ISN, self.now)

    @classmethod
    def established(cls, config: TcpConfig | None = None, *, options: bytes = bytes.fromhex("020404d8")) -> "Script":
        """Return an engine that dialled and is ESTABLISHED, with nothing pending."""
        script = cls(config, options=options)
        (syn,) = script.out()
        assert syn.flags == SYN
        script.feed(0, 1, SYN | ACK, options=options)
        script.out()
        script.conn.take_ready()
        assert script.conn.state is State.ESTABLISHED
        return script

    def feed(
        self,
        seq: int,
        ack: int,
        flags: int = ACK,
        payload: bytes = b"",
        wnd: int = 65_535,
        options: bytes = b"",
        packets: int = 1,
    ) -> list[Segment]:
        """Let a segment arrive and return the answer."""
        self.conn.receive_segment(
            (seq + self.PEER_ISN) & 0xFFFFFFFF,
            (ack + self.OUR_ISN) & 0xFFFFFFFF if flags & ACK else 0,
            flags,
            wnd,
            options,
            payload,
            self.now,
            packets,
        )
        return self.out()

    def out(self) -> list[Segment]:
        """Return everything the engine sends now, numbers made relative."""
        out: list[Segment] = []
        while more := self.conn.segments_to_send(self.now):
            out.extend(more)
            assert len(out) < 500
        for segment in out:
            segment.seq = (segment.seq - self.OUR_ISN) & 0xFFFFFFFF
            segment.ack = (segment.ack - self.PEER_ISN) & 0xFFFFFFFF if segment.flags & ACK else 0
        return out

    def wait(self, duration: int) -> list[tuple[int, Segment]]:
        """Let time pass, timers firing exactly; return (time since the call, segment)."""
        start = self.now
        until = start + duration
        out = [(0, s) for s in self.out()]
        while (deadline := self.conn.next_deadline()) is not None and deadline <= until:
            self.now = max(self.now, deadline)
            self.conn.handle_deadline(self.now)
            out.extend((self.now - start, s) for s in self.out())
        self.now = until
        return out

    def state(self) -> State:
        """Return the engine's state (a call, so that a type checker does not remember it)."""
        return self.conn.state


def payload_of(segment: Segment) -> bytes:
    """Return the payload in one piece."""
    return b"".join(bytes(piece) for piece in segment.payload)
