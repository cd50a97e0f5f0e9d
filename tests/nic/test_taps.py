"""Captures, faults and the device around them."""

import io
from typing import Any

from scapy.utils import RawPcapReader

from tests.nic.kit import A4, B4, PEER, tcp_packet, tcp_unit, udp_packet
from tsnetpy.base.packet import Buffer, PeerId
from tsnetpy.nic.device import Nic
from tsnetpy.nic.taps import LINKTYPE_RAW, FaultTap, PcapTap


def test_capture_is_read_by_scapy() -> None:
    tap = PcapTap(snap_len=100)
    packets: list[tuple[PeerId, Buffer]] = [(PEER, udp_packet(b"x" * 200)), (PEER, memoryview(tcp_packet(1)))]
    assert tap.pass_batch(packets, 1_700_000_000_123_456_789) is packets
    data = tap.take()
    tap.pass_batch([(PEER, tcp_packet(2))], 1_700_000_001_000_000_000)
    data += tap.take()
    capture: Any = io.BytesIO(data)
    with RawPcapReader(capture) as reader:
        assert reader.linktype == LINKTYPE_RAW
        records = list(reader)
    assert [(len(raw), meta.wirelen) for raw, meta in records] == [(100, 228), (40, 40), (40, 40)]
    assert (records[0][1].sec, records[0][1].usec) == (1_700_000_000, 123_456_789)
    assert records[1][0] == tcp_packet(1)


def test_capture_is_bounded() -> None:
    tap = PcapTap(limit=100)
    tap.pass_batch([(PEER, tcp_packet(i)) for i in range(10)], 0)
    assert tap.missed == 8
    tap.take()
    tap.pass_batch([(PEER, tcp_packet(1))], 0)
    assert tap.missed == 8


def test_faults_are_reproducible_and_near_their_rates() -> None:
    batch: list[tuple[PeerId, Buffer]] = [(PEER, udp_packet(b"%d" % i)) for i in range(5000)]

    def hurt(seed: int) -> tuple[FaultTap, list[bytes]]:
        tap = FaultTap(seed, drop=0.1, duplicate=0.05, corrupt=0.02, reorder=0.03)
        return tap, [bytes(packet) for _, packet in tap.pass_batch(batch, 0)]

    tap, out = hurt(1)
    assert hurt(1)[1] == out
    assert hurt(2)[1] != out
    assert 400 < tap.dropped < 600
    assert 180 < tap.duplicated < 320
    assert 60 < tap.corrupted < 140
    assert 90 < tap.reordered < 190
    assert len(out) in (5000 - tap.dropped + tap.duplicated, 5000 - tap.dropped + tap.duplicated - 1)


def test_no_faults_no_change() -> None:
    batch: list[tuple[PeerId, Buffer]] = [(PEER, udp_packet(b"%d" % i)) for i in range(10)]
    assert FaultTap(1).pass_batch(batch, 0) == batch


def test_device_counts_and_taps_both_directions() -> None:
    nic = Nic()
    tap = PcapTap()
    nic.add_tap(tap)
    packets = nic.transmit(tcp_unit(b"x" * 3000, 1000), PEER)
    units = nic.receive([(PEER, packet) for packet in packets])
    assert [unit.payload for unit in units] == [b"x" * 3000]
    assert (nic.tx_units, nic.tx_packets, nic.rx_units, nic.rx_packets) == (1, 3, 1, 3)
    captured = tap.take()
    assert captured.count(A4 + B4) == 6
    nic.remove_tap(tap)
    nic.transmit(tcp_unit(b"x" * 3000, 1000), PEER)
    assert tap.take() == b""
