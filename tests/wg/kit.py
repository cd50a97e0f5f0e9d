"""A small laboratory: devices on a virtual clock, joined by a link that can lose, delay and record."""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Final

from tsnetpy.base.addr import parse_prefix
from tsnetpy.base.instant import MILLISECOND, SECOND
from tsnetpy.base.packet import PeerId
from tsnetpy.crypto import dh
from tsnetpy.wg import Device, EndpointSeen

DATA: Final = Path(__file__).parent.parent / "data" / "datapath"
START: Final = 1_000 * SECOND
WALL: Final = 1_700_000_000 * SECOND


def load(name: str) -> Any:
    """Return one file of recordings."""
    return json.loads((DATA / name).read_text())


class SeededEntropy:
    """Repeatable randomness; ``script`` bytes come first."""

    def __init__(self, seed: int, script: bytes = b"") -> None:
        self._random = random.Random(seed)
        self._script = script

    def bytes(self, n: int) -> bytes:
        """Return *n* bytes."""
        scripted, self._script = self._script[:n], self._script[n:]
        return scripted + self._random.randbytes(n - len(scripted))

    def u32(self) -> int:
        """Return 32 bits."""
        return int.from_bytes(self.bytes(4), "big")


def ipv4(src: str, dst: str, payload: bytes = b"", proto: int = 17) -> bytes:
    """Return a bare IPv4 packet (no transport header, zero checksum)."""
    head = bytes((0x45, 0)) + (20 + len(payload)).to_bytes(2, "big") + bytes(4) + bytes((64, proto, 0, 0))
    return head + bytes(map(int, src.split("."))) + bytes(map(int, dst.split("."))) + payload


class Side:
    """A device and what it has received.

    Attributes:
        path: where the device is.
        knows: where it believes the other side to be; matters only to :attr:`Net.routed`.
        behind_ns: how much its monotonic clock has missed (a suspended machine).
    """

    def __init__(self, name: str, device: Device) -> None:
        self.name = name
        self.device = device
        self.path: Hashable = ("udp", b"\x7f\x00\x00\x01", 41641 + ord(name[0]))
        self.knows: Hashable = None
        self.behind_ns = 0
        self.received: list[bytes] = []
        self.events: list[object] = []


class Net:
    """Two devices, ``a`` (10.9.0.1) and ``b`` (10.9.0.2), and the link between them.

    ``keep`` decides for each datagram ``(sender's name, bytes)`` whether it arrives; ``log`` has all that were sent, as
    ``(time since start, sender, bytes)``. With ``routed`` a datagram goes to where its sender last heard the other
    side, and arrives only if that is where the other side is.
    """

    def __init__(self, seed: int = 1, delay_ns: int = 10 * MILLISECOND, persistent_a_s: int = 0) -> None:
        self.now = START
        self.delay_ns = delay_ns
        self.keep: Callable[[str, bytes], bool] = lambda sender, datagram: True
        self.log: list[tuple[int, str, bytes]] = []
        self.routed = False
        self._wire: list[tuple[int, int, Side, bytes, Hashable, Hashable]] = []
        self._serial = 0
        entropy = SeededEntropy(seed)
        keys = [dh.generate(entropy), dh.generate(entropy)]
        self.a = Side("a", Device(keys[0], entropy))
        self.b = Side("b", Device(keys[1], entropy))
        for side, other, ip, keepalive in (
            (self.a, self.b, "10.9.0.2", persistent_a_s),
            (self.b, self.a, "10.9.0.1", 0),
        ):
            side.device.wall_offset_ns = WALL - START
            side.device.add_peer(
                other.device.public_key, [parse_prefix(ip)], self.now, persistent_keepalive_s=keepalive
            )
            side.knows = other.path

    def other(self, side: Side) -> Side:
        """Return the opposite side."""
        return self.b if side is self.a else self.a

    def send(self, side: Side, *packets: bytes) -> None:
        """Hand inner packets to *side* for the other one."""
        side.device.send(self.other(side).device.public_key, packets, self.now - side.behind_ns)
        self.flush()

    def data(self, side: Side, payload: bytes = b"x" * 40) -> bytes:
        """Send one well-formed packet and return it."""
        ends = ("10.9.0.1", "10.9.0.2") if side is self.a else ("10.9.0.2", "10.9.0.1")
        packet = ipv4(*ends, payload)
        self.send(side, packet)
        return packet

    def flush(self) -> None:
        """Move what the devices want to send onto the wire."""
        for side in (self.a, self.b):
            target = self.other(side)
            while (event := side.device.next_event()) is not None:
                side.events.append(event)
                if isinstance(event, EndpointSeen):
                    side.knows = event.path
            for peer, batch in side.device.take_outgoing():
                assert peer == target.device.public_key
                for datagram in batch.datagrams():
                    self._put(side, target, bytes(datagram))
            for path, reply in side.device.take_path_outgoing():
                assert path == target.path
                self._put(side, target, reply)

    def inject(self, side: Side, datagram: bytes, path: Hashable = ("udp", b"\x09\x09\x09\x09", 9)) -> None:
        """Give *side* a datagram from nowhere, at once."""
        self._deliver(side, datagram, path)
        self.flush()

    def run(self, duration_ns: int) -> None:
        """Let virtual time pass."""
        end = self.now + duration_ns
        while True:
            self.flush()
            due = [
                deadline + side.behind_ns
                for side in (self.a, self.b)
                if (deadline := side.device.next_deadline()) is not None
            ]
            if self._wire:
                due.append(self._wire[0][0])
            when = max(min(due, default=end + 1), self.now)
            if when > end:
                break
            self.now = when
            while self._wire and self._wire[0][0] <= self.now:
                _, _, target, datagram, path, to = heapq.heappop(self._wire)
                if not self.routed or to == target.path:
                    self._deliver(target, datagram, path)
            for side in (self.a, self.b):
                side.device.handle_deadline(self.now - side.behind_ns)
        self.now = end

    def sent(self, sender: str, kind: int | None = None, since_ns: int = 0) -> list[tuple[int, bytes]]:
        """Return ``(time, datagram)`` of what *sender* sent (of one message type)."""
        return [
            (when, datagram)
            for when, name, datagram in self.log
            if name == sender and when >= since_ns and (kind is None or datagram[0] == kind)
        ]

    @property
    def elapsed(self) -> int:
        """Time since the start."""
        return self.now - START

    def _put(self, side: Side, target: Side, datagram: bytes) -> None:
        self.log.append((self.elapsed, side.name, datagram))
        if self.keep(side.name, datagram):
            self._serial += 1
            item = (self.now + self.delay_ns, self._serial, target, datagram, side.path, side.knows)
            heapq.heappush(self._wire, item)

    def _deliver(self, target: Side, datagram: bytes, path: Hashable) -> None:
        for _, packets in target.device.receive([datagram], path, self.now - target.behind_ns):
            target.received.extend(bytes(p) for p in packets)


def peer_id(side: Side) -> PeerId:
    """Return the name under which the other device knows *side*."""
    return side.device.public_key
