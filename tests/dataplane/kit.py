"""Two data planes on a virtual clock with a bad network between them."""

import heapq
import random
from collections.abc import Callable

from tests.wg.kit import WALL, SeededEntropy
from tsnetpy.base.addr import Endpoint, IpBytes, IpPrefix, parse_ip
from tsnetpy.base.instant import MILLISECOND, SECOND
from tsnetpy.crypto import dh
from tsnetpy.dataplane import DataPlane, DataPlaneConfig, PeerSpec
from tsnetpy.ipstack import TcpSocket
from tsnetpy.ipstack.filter import ANY_IP, DstRange, FilterRule

START = 1_000 * SECOND
ALLOW_ALL = (FilterRule(ANY_IP, tuple(DstRange(ips, 0, 65535) for ips in ANY_IP)),)

A4, A6 = parse_ip("100.64.0.1"), parse_ip("fd7a:115c:a1e0::1")
B4, B6 = parse_ip("100.64.0.2"), parse_ip("fd7a:115c:a1e0::2")


def hosts(*ips: IpBytes) -> tuple[IpPrefix, ...]:
    """Return the single-address prefixes of *ips*."""
    return tuple(IpPrefix(ip, len(ip) * 8) for ip in ips)


class End:
    """One data plane with its configuration and what it reported."""

    def __init__(self, name: str, entropy: SeededEntropy, addresses: tuple[IpBytes, ...]) -> None:
        self.name = name
        self.private = dh.generate(entropy)
        self.public = dh.public_key(self.private)
        self.addresses = addresses
        self.plane = DataPlane(entropy)
        self.plane.wall_offset_ns = WALL - START
        self.path = ("udp", b"\xc0\x00\x02" + bytes((ord(name),)), 41641)
        self.events: list[object] = []

    def configure(self, other: "End", now: int, rules: tuple[FilterRule, ...] = ALLOW_ALL) -> DataPlaneConfig:
        """Make *other* the only peer."""
        config = DataPlaneConfig(
            private_key=self.private,
            addresses=self.addresses,
            peers=(PeerSpec(other.public, hosts(*other.addresses)),),
            filter_rules=rules,
        )
        self.plane.configure(config, now)
        return config


class World:
    """``a`` and ``b``, and a link with delay, jitter, loss and duplication drawn from one seed."""

    def __init__(
        self,
        seed: int = 1,
        *,
        delay_ns: int = 5 * MILLISECOND,
        jitter_ns: int = 0,
        loss: float = 0.0,
        duplicate: float = 0.0,
        rules_b: tuple[FilterRule, ...] = ALLOW_ALL,
    ) -> None:
        self.now = START
        self.delay_ns = delay_ns
        self.jitter_ns = jitter_ns
        self.loss = loss
        self.duplicate = duplicate
        self.random = random.Random(seed)
        entropy = SeededEntropy(seed)
        self.a = End("a", entropy, (A4, A6))
        self.b = End("b", entropy, (B4, B6))
        self.a.configure(self.b, self.now)
        self.b.configure(self.a, self.now, rules_b)
        self.wire: list[tuple[int, int, End, bytes, object]] = []
        self.lost = 0
        self._serial = 0

    def flush(self) -> None:
        """Drain events, put pending datagrams on the wire."""
        for end, other in ((self.a, self.b), (self.b, self.a)):
            while out := end.plane.to_underlay(self.now):
                for peer, batch in out:
                    assert peer == other.public
                    for datagram in batch.datagrams():
                        self._put(end, other, bytes(datagram))
            while (event := end.plane.next_event()) is not None:
                end.events.append(event)

    def run(self, duration_ns: int, until: Callable[[], bool] = lambda: False) -> None:
        """Let virtual time pass, but not beyond *until*."""
        end_at = self.now + duration_ns
        while not until():
            self.flush()
            due = [d for d in (self.a.plane.next_deadline(), self.b.plane.next_deadline()) if d is not None]
            if self.wire:
                due.append(self.wire[0][0])
            when = max(min(due, default=end_at + 1), self.now)
            if when > end_at:
                self.now = end_at
                break
            self.now = when
            batches: dict[int, tuple[End, list[bytes], object]] = {}
            while self.wire and self.wire[0][0] <= self.now:
                _, _, target, datagram, path = heapq.heappop(self.wire)
                batches.setdefault(id(target), (target, [], path))[1].append(datagram)
            for target, datagrams, path in batches.values():
                target.plane.from_underlay(datagrams, ("udp", path), self.now)
            for end in (self.a, self.b):
                end.plane.handle_deadline(self.now)
        self.flush()

    def connect(self, to: IpBytes, port: int = 80) -> tuple[TcpSocket, TcpSocket]:
        """Return both ends of a TCP connection from ``a`` to ``b``."""
        listener = self.b.plane.stack.tcp_listen(port, self.now)
        client = self.a.plane.stack.tcp_connect(Endpoint(to, port), self.now)
        accepted: list[TcpSocket] = []

        def ready() -> bool:
            server = listener.accept()
            if server is not None:
                accepted.append(server)
            return bool(accepted)

        self.run(60 * SECOND, ready)
        assert accepted
        return client, accepted[0]

    def _put(self, source: End, target: End, datagram: bytes) -> None:
        copies = 2 if self.random.random() < self.duplicate else 1
        for _ in range(copies):
            if self.random.random() < self.loss:
                self.lost += 1
                continue
            self._serial += 1
            when = self.now + self.delay_ns + self.random.randrange(self.jitter_ns + 1)
            heapq.heappush(self.wire, (when, self._serial, target, datagram, source.path))


def transfer(world: World, source: TcpSocket, sink: TcpSocket, data: bytes, limit_ns: int = 300 * SECOND) -> bytes:
    """Send *data* and the end of stream from *source*; return what *sink* reads."""
    sent = 0
    received = bytearray()
    finished = False

    def step() -> bool:
        nonlocal sent, finished
        if sent < len(data):
            sent += source.send(data[sent : sent + 262_144], world.now)
        elif not finished:
            source.shutdown(world.now)
            finished = True
        while piece := sink.read(1 << 20, world.now):
            received.extend(piece)
        return sink.connection.eof_received and not sink.connection.readable_bytes

    world.run(limit_ns, step)
    return bytes(received)
