"""Looking at packets on their way through the NIC, and hurting them on purpose.

A tap sees one batch of complete IP packets at a time and returns the batch that goes on. Taps hold no file and read no
clock: the pcap writer gathers bytes that its owner writes wherever it likes.
"""

import struct
from typing import Final, Protocol, final

from tsnetpy.base.packet import Buffer, PeerId

LINKTYPE_RAW: Final = 101
"""Packets begin with an IPv4 or IPv6 header."""
_PCAP_MAGIC_NS: Final = 0xA1B23C4D
_GLOBAL: Final = struct.Struct("<IHHiIII")
_RECORD: Final = struct.Struct("<IIII")

Batch = list[tuple[PeerId, Buffer]]


class Tap(Protocol):
    """Something between the tunnel and the NIC."""

    def pass_batch(self, packets: Batch, wall_ns: int) -> Batch:
        """Return the packets that go on; *wall_ns* is the time since the Unix epoch."""
        ...


def pcap_header(snap_len: int = 65535) -> bytes:
    """Return the 24 bytes that start a capture file (little-endian, nanosecond stamps, raw IP)."""
    return _GLOBAL.pack(_PCAP_MAGIC_NS, 2, 4, 0, 0, snap_len, LINKTYPE_RAW)


def pcap_record(packet: Buffer, wall_ns: int, snap_len: int = 65535) -> bytes:
    """Return one record of a capture file for *packet*."""
    kept = bytes(packet[:snap_len])
    seconds, nanos = divmod(wall_ns, 1_000_000_000)
    return _RECORD.pack(seconds & 0xFFFFFFFF, nanos, len(kept), len(packet)) + kept


@final
class PcapTap:
    """Records every packet that passes, up to *limit* bytes between two calls of :meth:`take`.

    Attributes:
        missed: packets that were not recorded because the limit was reached.
    """

    __slots__ = ("_limit", "_pending", "_size", "_snap_len", "missed")

    def __init__(self, snap_len: int = 65535, limit: int = 8 << 20) -> None:
        self._pending: list[bytes] = [pcap_header(snap_len)]
        self._size = 0
        self._snap_len = snap_len
        self._limit = limit
        self.missed = 0

    def pass_batch(self, packets: Batch, wall_ns: int) -> Batch:
        """Record the packets and return them unchanged."""
        for _, packet in packets:
            if self._size >= self._limit:
                self.missed += 1
                continue
            record = pcap_record(packet, wall_ns, self._snap_len)
            self._pending.append(record)
            self._size += len(record)
        return packets

    def take(self) -> bytes:
        """Return the bytes gathered since the last call; the first ones start with the file header."""
        data = b"".join(self._pending)
        self._pending = []
        self._size = 0
        return data


@final
class FaultTap:
    """Drops, repeats, damages and reorders packets with given probabilities, the same way for the same seed.

    The generator is a 64-bit xorshift: reproducible everywhere, and far from any key material.

    Args:
        seed: where the generator starts.
        drop, duplicate, corrupt, reorder: probabilities between 0 and 1, one draw each per packet. A reordered packet
            is held until after the next one that passes.
    """

    __slots__ = (
        "_corrupt",
        "_drop",
        "_duplicate",
        "_held",
        "_reorder",
        "_state",
        "corrupted",
        "dropped",
        "duplicated",
        "reordered",
    )

    def __init__(
        self, seed: int, drop: float = 0.0, duplicate: float = 0.0, corrupt: float = 0.0, reorder: float = 0.0
    ) -> None:
        self._state = (seed * 0x9E3779B97F4A7C15 + 0x2545F4914F6CDD1D) & 0xFFFFFFFFFFFFFFFF or 1
        self._drop = int(drop * (1 << 32))
        self._duplicate = int(duplicate * (1 << 32))
        self._corrupt = int(corrupt * (1 << 32))
        self._reorder = int(reorder * (1 << 32))
        self._held: tuple[PeerId, Buffer] | None = None
        self.dropped = 0
        self.duplicated = 0
        self.corrupted = 0
        self.reordered = 0

    def pass_batch(self, packets: Batch, wall_ns: int) -> Batch:
        """Return what is left of the packets after the faults."""
        out: Batch = []
        for peer, packet in packets:
            if self._draw() < self._drop:
                self.dropped += 1
                continue
            kept: Buffer = packet
            if self._draw() < self._corrupt and len(packet):
                damaged = bytearray(packet)
                damaged[self._draw() % len(damaged)] ^= 1 << self._draw() % 8
                kept = bytes(damaged)
                self.corrupted += 1
            if self._held is None and self._draw() < self._reorder:
                self._held = (peer, bytes(kept))
                self.reordered += 1
                continue
            out.append((peer, kept))
            if self._draw() < self._duplicate:
                out.append((peer, kept))
                self.duplicated += 1
            if self._held is not None:
                out.append(self._held)
                self._held = None
        return out

    def _draw(self) -> int:
        """Return 32 pseudo-random bits."""
        x = self._state
        x ^= x << 13 & 0xFFFFFFFFFFFFFFFF
        x ^= x >> 7
        x ^= x << 17 & 0xFFFFFFFFFFFFFFFF
        self._state = x
        return x >> 32
