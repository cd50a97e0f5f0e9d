"""The NIC as one object: capabilities, the two directions, and the taps on them."""

from typing import Final, final

from tsnetpy.base.addr import IpBytes
from tsnetpy.base.packet import Buffer, PeerId, TxPacket
from tsnetpy.base.stats import Drops

from . import gro, tso
from .rx import RxPacket
from .taps import Batch, Tap

_LARGE_BLOCK: Final = 4 << 20


def keep_heap_pages() -> None:
    """Stop glibc's malloc from giving memory back to the kernel after each batch of packets.

    Its default returns whatever is free above 128 KiB, and every batch then faults the same pages in again: that was a
    third of the time of a packet. Freeing one block of its own mapping raises the bound to twice the block's size
    (mallopt(3), M_MMAP_THRESHOLD, "dynamic"). The block is never touched; other allocators take no notice.
    """
    bytes(_LARGE_BLOCK)


@final
class Nic:
    """Joins what comes out of the tunnel and cuts what goes in.

    Attributes:
        mtu: of the tunnel, in bytes of inner IP packet.
        verify: check the checksums of arriving packets.
        trusted: source addresses that are exempt from *verify* (see :func:`tsnetpy.nic.gro.coalesce`).
        drops: what the receive side refused, by reason.
        rx_packets, tx_packets: IP packets in each direction.
        rx_units, tx_units: super-segments in each direction.
    """

    __slots__ = ("_taps", "drops", "mtu", "rx_packets", "rx_units", "trusted", "tx_packets", "tx_units", "verify")

    def __init__(self, mtu: int = 1280, verify: bool = True) -> None:
        self.mtu = mtu
        self.verify = verify
        self.trusted: frozenset[IpBytes] = frozenset()
        self.drops = Drops()
        self.rx_packets = 0
        self.tx_packets = 0
        self.rx_units = 0
        self.tx_units = 0
        self._taps: list[Tap] = []
        keep_heap_pages()

    def add_tap(self, tap: Tap) -> None:
        """Let *tap* see (and change) all packets from now on; the first tap added is the closest to the tunnel."""
        self._taps.append(tap)

    def remove_tap(self, tap: Tap) -> None:
        """Take *tap* off again; unknown taps are ignored."""
        if tap in self._taps:
            self._taps.remove(tap)

    def receive(self, packets: list[tuple[PeerId, Buffer]], wall_ns: int = 0) -> list[RxPacket]:
        """Return one batch of decrypted packets, parsed and joined."""
        for tap in self._taps:
            packets = tap.pass_batch(packets, wall_ns)
        self.rx_packets += len(packets)
        joined = gro.coalesce(packets, self.drops, self.verify, self.trusted)
        self.rx_units += len(joined)
        return joined

    def transmit(self, tx: TxPacket, peer: PeerId, wall_ns: int = 0) -> list[bytes]:
        """Return the complete IP packets that carry *tx* to *peer*."""
        packets = tso.split(tx, self.mtu)
        self.tx_units += 1
        if self._taps:
            batch: Batch = [(peer, packet) for packet in packets]
            for tap in reversed(self._taps):
                batch = tap.pass_batch(batch, wall_ns)
            packets = [bytes(packet) for _, packet in batch]
        self.tx_packets += len(packets)
        return packets
