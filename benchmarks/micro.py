"""What a packet costs inside, in *seal units*: ``python -m benchmarks.micro [--rounds N] [--profile planes|engine]``.

A bulk transfer runs between two data planes in memory through 1280-byte packets; no sockets, no event loop, virtual
time. The unit is one ChaCha20-Poly1305 seal of 1280 bytes by ``cryptography``, so that a figure says how much more than
the encryption that nobody can avoid is spent, on whatever machine this runs. Sending counts
everything from the application's ``send()`` to sealed datagrams, and the arriving acknowledgements; receiving
everything from sealed datagrams to the bytes that the application reads, and the acknowledgements sent. The engine is
TCP alone, both ends together. Time is this thread's processor time.

Rounds of packets and of seals alternate; each round of packets is divided by the mean of the seals just before and just
after it, and a figure is the median of all rounds. The quartiles beside it tell how much the machine moved meanwhile.
"""

import argparse
import cProfile
import json
import pstats
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

import tsnetpy.tcp.connection
from tsnetpy.base.addr import Endpoint, IpPrefix, parse_ip
from tsnetpy.base.entropy import SystemEntropy
from tsnetpy.base.instant import MILLISECOND, SECOND
from tsnetpy.base.packet import Buffer
from tsnetpy.crypto import dh
from tsnetpy.dataplane import DataPlane, DataPlaneConfig, PeerSpec
from tsnetpy.ipstack.filter import ANY_IP, DstRange, FilterRule
from tsnetpy.tcp import Connection, Listener, TcpConfig

PACKET = 1280
CHUNK = bytes(range(256)) * 1024
ALL = (FilterRule(ANY_IP, tuple(DstRange(ips, 0, 65535) for ips in ANY_IP)),)
TARGETS = {"send": 4.0, "receive": 6.0, "engine": 0.5}
COMPILED_TARGETS = {"send": 4.0, "receive": 6.0, "engine": 0.12}


@dataclass(frozen=True, slots=True)
class Figure:
    """The median of all rounds, between the quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, rounds: Sequence[float]) -> "Figure":
        """Return the figure of at least two *rounds*."""
        low, median, high = statistics.quantiles(rounds, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True, slots=True)
class Result:
    """Seal units per data packet, and the unit itself in nanoseconds."""

    send: Figure
    receive: Figure
    engine: Figure
    seal_ns: Figure
    seal_into_ns: Figure
    packets: int
    compiled: bool


def seal_times(count: int = 400) -> tuple[float, float]:
    """Return the nanoseconds of one seal of 1280 bytes: into a new object, and into a buffer."""
    cipher = ChaCha20Poly1305(bytes(32))
    nonce = bytes(12)
    data = bytes(PACKET)
    out = bytearray(PACKET + 16)
    began = time.thread_time_ns()
    for _ in range(count):
        cipher.encrypt(nonce, data, None)
    middle = time.thread_time_ns()
    for _ in range(count):
        cipher.encrypt_into(nonce, data, None, out)
    return (middle - began) / count, (time.thread_time_ns() - middle) / count


class Planes:
    """Two data planes, a connection between them, and the processor time that each side used."""

    def __init__(self) -> None:
        entropy = SystemEntropy()
        keys = [dh.generate(entropy) for _ in range(2)]
        ips = [parse_ip("100.64.0.1"), parse_ip("100.64.0.2")]
        self.now = 1000 * SECOND
        self.planes = [DataPlane(entropy), DataPlane(entropy)]
        for n, plane in enumerate(self.planes):
            peer = PeerSpec(dh.public_key(keys[1 - n]), (IpPrefix(ips[1 - n], 32),))
            plane.configure(DataPlaneConfig(keys[n], (ips[n],), (peer,), ALL), self.now)
        self.spent = [0, 0]
        self.packets = 0
        listener = self.planes[1].stack.tcp_listen(80, self.now)
        self.client = self.planes[0].stack.tcp_connect(Endpoint(ips[1], 80), self.now)
        server = None
        for _ in range(20):
            self.carry(0)
            self.carry(1)
            server = server or listener.accept()
        assert server is not None
        self.server = server

    def carry(self, n: int) -> bool:
        """Take one portion of what side *n* has to send to the other side; False if there was none."""
        plane, other = self.planes[n], self.planes[1 - n]
        began = time.thread_time_ns()
        plane.stack.take_ready()
        batches = plane.to_underlay(self.now)
        while plane.next_event() is not None:
            pass
        self.spent[n] += time.thread_time_ns() - began
        self.now += MILLISECOND // 4
        for _, batch in batches:
            datagrams: list[Buffer] = list(batch.datagrams())
            began = time.thread_time_ns()
            other.from_underlay(datagrams, n, self.now)
            self.spent[1 - n] += time.thread_time_ns() - began
            if n == 0:
                self.packets += len(datagrams)
        for side in self.planes:
            deadline = side.next_deadline()
            if deadline is not None and deadline <= self.now:
                side.handle_deadline(self.now)
        return bool(batches)

    def turn(self) -> None:
        """Send, read what arrives, and bring the acknowledgements back, a portion at a time."""
        began = time.thread_time_ns()
        while self.client.send(CHUNK, self.now) == len(CHUNK):
            pass
        self.spent[0] += time.thread_time_ns() - began
        for _ in range(4):
            self.carry(0)
            began = time.thread_time_ns()
            while self.server.read(1 << 16, self.now):
                pass
            self.spent[1] += time.thread_time_ns() - began
            self.carry(1)


class Engines:
    """Two TCP connections that hand each other their super-segments."""

    def __init__(self) -> None:
        self.now = SECOND
        config = TcpConfig(mss=PACKET - 40)
        self.client = Connection.connect(config, 1, self.now)
        listener = Listener(config)
        (syn,) = self.client.segments_to_send(self.now)
        server = listener.receive_syn(b"", syn.seq, syn.wnd, syn.options, self.now, 7)
        assert server is not None
        self.server = server
        self.spent = 0
        self.packets = 0
        for _ in range(4):
            self.carry(self.server, self.client)
            self.carry(self.client, self.server)

    def carry(self, source: Connection, sink: Connection) -> None:
        """Hand over all that *source* has to send; joining the pieces is the NIC's work and not counted."""
        while True:
            began = time.thread_time_ns()
            segments = source.segments_to_send(self.now)
            self.spent += time.thread_time_ns() - began
            if not segments:
                break
            self.now += MILLISECOND // 4
            for segment in segments:
                payload = b"".join(segment.payload)
                count = max(1, -(-len(payload) // (segment.gso_size or 1220)))
                self.packets += count if payload else 0
                began = time.thread_time_ns()
                sink.receive_segment(
                    segment.seq, segment.ack, segment.flags, segment.wnd, segment.options, payload, self.now, count
                )
                self.spent += time.thread_time_ns() - began

    def turn(self) -> None:
        """Send as much as fits, read it, and bring the acknowledgements back."""
        began = time.thread_time_ns()
        while self.client.send(CHUNK, self.now) == len(CHUNK):
            pass
        self.spent += time.thread_time_ns() - began
        self.carry(self.client, self.server)
        began = time.thread_time_ns()
        while self.server.read(1 << 16, self.now):
            pass
        self.spent += time.thread_time_ns() - began
        self.carry(self.server, self.client)
        began = time.thread_time_ns()
        for end in (self.client, self.server):
            end.take_ready()
            deadline = end.next_deadline()
            if deadline is not None and deadline <= self.now:
                end.handle_deadline(self.now)
        self.spent += time.thread_time_ns() - began


def measure(rounds: int = 60, packets: int = 800, warm_up: int = 60) -> Result:
    """Run *rounds* (at least two) of *packets* each, every one between timings of the seal; *warm_up* turns first."""
    planes, engines = Planes(), Engines()
    for _ in range(warm_up):  # until windows and buffers have their size
        planes.turn()
        engines.turn()
    total = 0
    columns: dict[str, list[float]] = {"send": [], "receive": [], "engine": [], "seal": [], "into": []}
    before, _ = seal_times()
    for _ in range(rounds):
        planes.spent, planes.packets = [0, 0], 0
        while planes.packets < packets:
            planes.turn()
        middle, into = seal_times()
        engines.spent = engines.packets = 0
        while engines.packets < packets:
            engines.turn()
        after, _ = seal_times()
        around = (before + middle) / 2
        total += planes.packets
        columns["send"].append(planes.spent[0] / planes.packets / around)
        columns["receive"].append(planes.spent[1] / planes.packets / around)
        columns["engine"].append(engines.spent / engines.packets / ((middle + after) / 2))
        columns["seal"].append(middle)
        columns["into"].append(into)
        before = after
    return Result(
        send=Figure.of(columns["send"]),
        receive=Figure.of(columns["receive"]),
        engine=Figure.of(columns["engine"]),
        seal_ns=Figure.of(columns["seal"]),
        seal_into_ns=Figure.of(columns["into"]),
        packets=total,
        compiled=is_compiled(),
    )


def is_compiled() -> bool:
    """Tell whether the core runs as extension modules."""
    return not str(tsnetpy.tcp.connection.__file__).endswith(".py")


def profile(what: str, rounds: int) -> None:
    """Print where the time goes."""
    subject: Planes | Engines = Engines() if what == "engine" else Planes()
    for _ in range(60):
        subject.turn()
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(rounds * 10):
        subject.turn()
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(30)


def main() -> int:
    """Print the table; the exit status is 1 if a target is missed and ``--check`` was given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--profile", choices=["planes", "engine"])
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument("--check", action="store_true", help="fail if a target is missed")
    options = parser.parse_args()
    if options.profile:
        profile(options.profile, options.rounds)
        return 0
    result = measure(options.rounds)
    targets = COMPILED_TARGETS if result.compiled else TARGETS
    figures = {"send": result.send, "receive": result.receive, "engine": result.engine}
    if options.json:
        print(json.dumps(asdict(result)))
    else:
        print(f"core {'compiled' if result.compiled else 'interpreted'}, {result.packets} packets of {PACKET} bytes")
        print(f"one seal: {result.seal_ns.median:.0f} ns (into a buffer: {result.seal_into_ns.median:.0f} ns)")
        for name, figure in figures.items():
            verdict = "kept" if figure.median <= targets[name] else "MISSED"
            spread = f"quartiles {figure.low:.2f}-{figure.high:.2f}"
            print(f"{name:8} {figure.median:6.2f} seals a packet, {spread}, target {targets[name]:g}: {verdict}")
    return 1 if options.check and any(figure.median > targets[name] for name, figure in figures.items()) else 0


if __name__ == "__main__":
    sys.exit(main())
