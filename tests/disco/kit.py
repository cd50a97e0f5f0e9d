"""A deterministic entropy source and a two-peer world on a virtual clock."""

from collections.abc import Callable

from tsnetpy.base.addr import Endpoint, parse_endpoint
from tsnetpy.base.instant import MILLISECOND, Instant
from tsnetpy.disco.messages import Message
from tsnetpy.disco.paths import PathPeer, Paths


class CountingEntropy:
    """Bytes that are unique but predictable."""

    def __init__(self, seed: int = 0) -> None:
        self._next = seed << 32

    def bytes(self, n: int) -> bytes:
        self._next += 1
        return self._next.to_bytes(16, "big").rjust(n, b"\0")[-n:]

    def u32(self) -> int:
        self._next += 1
        return self._next & 0xFFFFFFFF


def ep(text: str) -> Endpoint:
    return parse_endpoint(text)


REGION = 900


class Side:
    """One node: its paths, and the address that others see it under."""

    def __init__(self, name: bytes, address: Endpoint, *, advertise: tuple[Endpoint, ...] | None = None) -> None:
        self.key = name.ljust(32, b"-")
        self.disco = name.ljust(32, b"d")
        self.address = address
        self.advertised = (address,) if advertise is None else advertise
        self.paths = Paths(self.key, CountingEntropy(name[0]))

    def peer(self, *, endpoints: bool = True) -> PathPeer:
        return PathPeer(self.key, self.disco, self.advertised if endpoints else (), REGION)


class World:
    """Two sides joined by UDP (with a filter) and DERP, each with its delay."""

    def __init__(
        self, a: Side, b: Side, *, udp_delay: int = 2 * MILLISECOND, derp_delay: int = 10 * MILLISECOND
    ) -> None:
        self.a, self.b = a, b
        self.now: Instant = 0
        self.udp_delay, self.derp_delay = udp_delay, derp_delay
        self.udp_open: Callable[[Side, Endpoint], bool] = lambda sender, to: True
        self.log: list[tuple[Instant, str, str, Endpoint | None]] = []
        self._wires: list[tuple[Instant, int, Side, Side, Message, bool]] = []
        self._seq = 0

    def configure(self, *, endpoints: bool = True) -> None:
        self.a.paths.configure([self.b.peer(endpoints=endpoints)], self.now)
        self.b.paths.configure([self.a.peer(endpoints=endpoints)], self.now)
        self.refresh()

    def refresh(self) -> None:
        self.a.paths.set_local_endpoints(self.a.advertised, self.now)
        self.b.paths.set_local_endpoints(self.b.advertised, self.now)

    def drain(self) -> None:
        for side, other in ((self.a, self.b), (self.b, self.a)):
            if side.paths.take_restun_request():
                side.paths.set_local_endpoints(side.advertised, self.now)
            for out in side.paths.take_outgoing():
                kind = type(out.message).__name__
                self.log.append((self.now, chr(side.key[0]), kind, out.to))
                by_udp = out.to is not None
                if out.to is not None and (out.to != other.address or not self.udp_open(side, out.to)):
                    continue
                self._seq += 1
                delay = self.udp_delay if by_udp else self.derp_delay
                self._wires.append((self.now + delay, self._seq, side, other, out.message, by_udp))

    def run(self, duration: int) -> None:
        """Advance the virtual clock by *duration*."""
        end = self.now + duration
        self.drain()
        while True:
            times = [wire[0] for wire in self._wires]
            times += [d for d in (self.a.paths.next_deadline(), self.b.paths.next_deadline()) if d is not None]
            upcoming = min(times, default=end + 1)
            if upcoming > end:
                break
            self.now = max(self.now, upcoming)
            due = sorted((w for w in self._wires if w[0] <= self.now), key=lambda w: w[1])
            self._wires = [w for w in self._wires if w[0] > self.now]
            for _, _, source, target, message, by_udp in due:
                if by_udp:
                    target.paths.receive_udp(source.disco, message, source.address, self.now)
                else:
                    target.paths.receive_derp(source.key, source.disco, message, REGION, self.now)
            for side in (self.a, self.b):
                side.paths.handle_deadline(self.now)
            self.drain()
        self.now = end

    def send(self, side: Side) -> tuple[Endpoint | None, int]:
        """Let *side* send a packet to the other; return the route."""
        other = self.b if side is self.a else self.a
        route = side.paths.route(other.key, 100, self.now)
        assert route is not None
        self.drain()
        return route
