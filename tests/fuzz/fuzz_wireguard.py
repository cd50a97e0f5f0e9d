"""Fuzzing of the WireGuard device: ``python -m tests.fuzz.fuzz_wireguard [seconds]``, or ``--soak DATAGRAMS``.

An input is a list of records: an operation, a length, and as many bytes. Operations feed raw bytes, put sound heads and
MACs in front of them, seal them under the keys of a session, repeat and damage what was genuine, let handshakes run,
change the configuration or let time pass. The long-lived soak draws records from a seed and never starts over. Without
atheris the soak takes the place of the guided run.

What must hold all the time: nothing raises; what cannot be genuine is a counted drop; no table, queue or heap outgrows
its limit; what is delivered is an IP packet that its peer may send; and no datagram takes long.
"""

import argparse
import gc
import random
import resource
import sys
import time
from collections.abc import Hashable, Sequence
from pathlib import Path

from tests.fuzz import guided
from tests.wg.kit import START, WALL, SeededEntropy, ipv4
from tsnetpy.base.addr import parse_ip, parse_prefix
from tsnetpy.base.instant import MILLISECOND, SECOND
from tsnetpy.base.packet import Buffer, PeerId
from tsnetpy.crypto import dh
from tsnetpy.crypto.hash import blake2s, blake2s_mac
from tsnetpy.wg import Device
from tsnetpy.wg.constants import MAX_EVENTS, MAX_OUTGOING_BATCHES, MAX_STAGED_PACKETS

MAX_RECORDS = 64
_KEPT = 64
_SIZES = (148, 92, 64, 32, 48, 96, 1312, 31, 147, 149)
_PATHS: tuple[Hashable, ...] = (
    ("udp", parse_ip("192.0.2.7"), 41641),
    ("udp", parse_ip("192.0.2.8"), 7),
    ("udp", parse_ip("2001:db8::9"), 9),
    "somewhere",
)
_A4, _A6 = parse_ip("10.9.0.1"), parse_ip("fd00:9::1")


class Target:
    """The device under test, ``b``, with a peer ``a`` that plays along and a stranger that knows its key.

    Attributes:
        fed: datagrams given to ``b``.
        delivered: packets that came out of it.
        slowest: seconds of the dearest datagram, in the mean of its batch.
    """

    def __init__(self, seed: int = 1) -> None:
        self.now = START
        self.fed = 0
        self.delivered = 0
        self.slowest = 0.0
        entropy = SeededEntropy(seed)
        self.a, self.b, self.stranger = (Device(dh.generate(entropy), entropy) for _ in range(3))
        self.mac1_key = blake2s(b"mac1----" + self.b.public_key)
        self.relayed: Hashable = ("derp", 1, self.a.public_key)
        for device in (self.a, self.b, self.stranger):
            device.wall_offset_ns = WALL - START
        self.known = False
        self.psk: bytes | None = None
        self._set_peer(True)
        self.a.add_peer(self.b.public_key, [parse_prefix("10.9.0.2")], self.now)
        self.stranger.add_peer(self.b.public_key, [], self.now)
        self.genuine: list[bytes] = []
        self.a.send(self.b.public_key, [self._packet(b"hello")], self.now)
        self._talk()

    def act(self, op: int, body: bytes) -> None:
        """Do one record."""
        what = op % 16
        path = self.relayed if op & 128 and op & 64 else _PATHS[op >> 6]
        number = int.from_bytes(body[:2].ljust(2, b"\0"), "big")
        if what == 0:
            self._feed([body], path, genuine=len(body) >= 32)
        elif what == 1:  # a sound head of some type and size, for an index that exists
            kind = 1 + op // 16 % 4
            size = (148, 92, 64, 32 + len(body))[kind - 1]
            head = bytes((kind, 0, 0, 0)) + self._index(number)
            self._feed([(head + body).ljust(size, b"\0")[:size]], path, genuine=False)
        elif what == 2:  # an odd size or type
            datagram = (bytes((op // 16, 0, 0, number & 1)) + body).ljust(_SIZES[number % len(_SIZES)], b"\1")
            self._feed([datagram], path, genuine=False)
        elif what == 3:  # sealed under real keys: what is inside may be anything
            self.a.send(self.b.public_key, [body] * (1 + op // 64), self.now)
            self._talk()
        elif what == 4:  # inside, an IP head with fields of the fuzzer's
            ip = bytearray(self._packet(bytes(30)))
            ip[: len(body[:20])] = body[:20]
            self.a.send(self.b.public_key, [bytes(ip), self._packet(body)], self.now)
            self._talk()
        elif what in (5, 6):
            self._feed([self._damaged(op, body)], path, genuine=True)
        elif what == 7:
            self._feed([self.genuine[number % len(self.genuine)]] * (1 + op // 16 % 8), path, genuine=True)
        elif what == 8:
            self.a.initiate(self.b.public_key, self.now)
            self._talk()
        elif what == 9:
            self.b.send(self.a.public_key, [body] * (1 + number % 3), self.now)
            self._talk(deaf=bool(op & 16))
        elif what == 10:
            self._feed([self._with_mac1(1, 148, number, body)] * (1 + op // 16), path, genuine=False)
        elif what == 11:
            self._feed([self._with_mac1(2, 92, number, body)], path, genuine=False)
        elif what == 12:
            self.stranger.initiate(self.b.public_key, self.now)
            made: list[Buffer] = [bytes(batch.data) for _, batch in self.stranger.take_outgoing()]
            self._feed(made * (1 + number % 300), path, genuine=False)
        elif what == 13:
            self._configure(op // 16, body)
        elif what == 14:
            self.b.wall_offset_ns += (number - (1 << 15)) * SECOND if op & 16 else 0
            self._pass(number * MILLISECOND)
        else:
            self._pass(number * MILLISECOND * (100 if op & 16 else 1))
        self._check()

    def _feed(self, datagrams: Sequence[Buffer], path: Hashable, *, genuine: bool) -> None:
        """Give *datagrams* to ``b``; if they cannot be *genuine*, each must be a counted drop."""
        if not datagrams:
            return
        before = self.b.drops.total
        began = time.thread_time()
        out = self.b.receive(datagrams, path, self.now)
        self.slowest = max(self.slowest, (time.thread_time() - began) / (len(datagrams) + 10))
        self.fed += len(datagrams)
        for peer, packets in out:
            assert peer == self.a.public_key
            for packet in packets:
                self.delivered += 1
                if packet[0] >> 4 == 4:
                    assert packet[12:16] == _A4
                    assert len(packet) == int.from_bytes(packet[2:4], "big")
                else:
                    assert packet[8:24] == _A6
                    assert len(packet) == int.from_bytes(packet[4:6], "big") + 40
        if not genuine:
            assert not out
            assert self.b.drops.total == before + len(datagrams)

    def _talk(self, *, deaf: bool = False) -> None:
        """Carry what both devices have to say, for some rounds; with *deaf* nothing reaches ``a``."""
        for _ in range(4):
            forth = [bytes(d) for _, batch in self.a.take_outgoing() for d in batch.datagrams()]
            self._keep(forth)
            self._feed(forth, _PATHS[0], genuine=True)
            back = [bytes(d) for _, batch in self.b.take_outgoing() for d in batch.datagrams()]
            self._keep(back)
            if not deaf:
                self.a.receive(back + [d for _, d in self.b.take_path_outgoing()], "b", self.now)
            if not forth and not back:
                break

    def _keep(self, datagrams: Sequence[bytes]) -> None:
        for datagram in datagrams:
            if len(self.genuine) < _KEPT:
                self.genuine.append(datagram)
            else:
                self.genuine[(self.fed + len(datagram)) % _KEPT] = datagram

    def _pass(self, duration: int) -> None:
        """Let time pass, timer by timer."""
        end = self.now + duration
        for _ in range(200):
            due = [d for d in (self.a.next_deadline(), self.b.next_deadline()) if d is not None and d <= end]
            if not due:
                break
            self.now = max(self.now, min(due))
            for device in (self.a, self.b):
                device.handle_deadline(self.now)
            self._talk()
        self.now = max(self.now, end)

    def _configure(self, what: int, body: bytes) -> None:
        if what % 4 == 0:
            self._set_peer(not self.known)
        elif what % 4 == 1:
            self.psk = body[:1].ljust(32, b"p") if body else None
            self._set_peer(True)
            self.a.add_peer(self.b.public_key, [parse_prefix("10.9.0.2")], self.now, psk=self.psk)
        elif what % 4 == 2:
            self.b.add_peer(self.stranger.public_key, [parse_prefix("10.9.0.9")], self.now)
            self.b.remove_peer(self.stranger.public_key)
        else:
            self._set_peer(self.known, keepalive=len(body))

    def _set_peer(self, present: bool, keepalive: int = 0) -> None:
        self.known = present
        if present:
            prefixes = [parse_prefix("10.9.0.1"), parse_prefix("fd00:9::1")]
            key: PeerId = self.a.public_key
            self.b.add_peer(key, prefixes, self.now, psk=self.psk, persistent_keepalive_s=keepalive)
        else:
            self.b.remove_peer(self.a.public_key)

    def _check(self) -> None:
        """Nothing is above its limit; then the owner takes what waits."""
        b = self.b
        peers = len(b.peers())
        assert peers <= 1
        assert len(b._sessions) <= 3 * peers
        assert len(b._pending) <= peers
        assert len(b._heap) <= 64
        assert len(b._outgoing.items) <= MAX_OUTGOING_BATCHES
        assert len(b._path_outgoing.items) <= MAX_OUTGOING_BATCHES
        assert len(b._events.items) <= MAX_EVENTS
        info = b.peer_info(self.a.public_key, self.now)
        assert info is None or info.staged <= MAX_STAGED_PACKETS
        b.take_path_outgoing()
        while b.next_event() is not None:
            pass
        while self.a.next_event() is not None:
            pass

    def _index(self, number: int) -> bytes:
        """Return the index of a session or handshake of ``b``, or any."""
        indices = [*self.b._sessions, *self.b._pending, number]
        return indices[number % len(indices)].to_bytes(4, "little")

    def _with_mac1(self, kind: int, size: int, number: int, body: bytes) -> bytes:
        head = bytes((kind, 0, 0, 0)) + number.to_bytes(4, "little")
        if kind == 2:
            head += self._index(number)
        covered = (head + body).ljust(size - 32, b"\7")[: size - 32]
        mac2 = body[-16:].ljust(16, b"\0")
        return covered + blake2s_mac(self.mac1_key, covered) + mac2

    def _damaged(self, op: int, body: bytes) -> bytes:
        spec = body.ljust(4, b"\1")
        data = bytearray(self.genuine[spec[0] % len(self.genuine)])
        what = op // 16 % 4
        if what == 0:
            data[spec[1] % len(data)] ^= spec[2] or 1
        elif what == 1:
            del data[spec[1] * len(data) // 256 :]
        elif what == 2:
            data += body
        else:
            data[8:16] = body[:8].ljust(8, b"\xff")  # the counter
        return bytes(data)

    @staticmethod
    def _packet(payload: bytes) -> bytes:
        return ipv4("10.9.0.1", "10.9.0.2", payload)


def replay(data: bytes) -> Target:
    """Run one input; return the target for a look."""
    target = Target()
    at = 0
    for _ in range(MAX_RECORDS):
        if at + 2 > len(data):
            break
        target.act(data[at], data[at + 2 : at + 2 + data[at + 1]])
        at += 2 + data[at + 1]
    return target


def soak(seed: int, datagrams: int, seconds: float = float("inf"), *, report: bool = False) -> Target:
    """Feed at least *datagrams* to one device, or for *seconds*, and check time and memory along the way."""
    dice = random.Random(seed)
    target = Target(seed)
    began = time.monotonic()
    base = next_check = 0
    step = min(max(datagrams // 10, 5_000), 500_000)
    while target.fed < datagrams and time.monotonic() - began < seconds:
        for _ in range(20):
            # Floods, long waits and new configurations are rare, so that sessions live for a while.
            op = dice.choice((0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11)) if dice.random() < 0.97 else dice.randrange(16)
            target.act(op | dice.randrange(16) << 4, dice.randbytes(dice.randrange(60)))
        if dice.random() < 0.1 and not target.known:
            target.act(13, b"")
        if target.fed >= next_check:
            next_check = target.fed + step
            gc.collect()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            base = base or peak
            assert peak - base < 50_000, f"memory grew by {peak - base} KiB"
            assert target.slowest < 0.05, f"{target.slowest} s per datagram"
            if report:
                spent = time.monotonic() - began
                print(
                    f"{target.fed} datagrams, {target.delivered} delivered, {spent:.0f} s, {peak} KiB, "
                    f"worst {target.slowest * 1e6:.0f} us a datagram",
                    flush=True,
                )
    if report:
        print("dropped:", dict(sorted(target.b.drops.counts.items(), key=lambda item: -item[1])))
        print(f"{target.fed} datagrams clean")
    return target


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", type=int, nargs="?", default=20)
    parser.add_argument("corpus", nargs="?", default="build/fuzz/wireguard")
    parser.add_argument("--soak", type=int, default=0, metavar="DATAGRAMS")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.soak:
        soak(options.seed, options.soak, report=True)
    elif guided.available():
        guided.fuzz(replay, options.seconds, Path(options.corpus))
    else:
        print("atheris is not installed: seeded datagrams instead of guided ones")
        soak(options.seed, 1 << 62, options.seconds, report=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
