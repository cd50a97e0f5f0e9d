"""Wires: what each knob does to packets."""

from tsnetpy.base.instant import MILLISECOND, SECOND, ms
from tsnetpy.testing.links import LinkConfig, Wire

PACKET = bytes(1000)


def flood(wire: Wire, count: int, gap: int = 0) -> list[tuple[int, int]]:
    """Offer *count* numbered packets; return (arrival, number)."""
    out: list[tuple[int, int]] = []
    for number in range(count):
        packet = number.to_bytes(4, "big") + PACKET[4:]
        out += [(at, int.from_bytes(data[:4], "big")) for at, data in wire.offer(packet, number * gap)]
    return out


def test_rate_and_delay_make_a_packet_late_by_both() -> None:
    wire = Wire(LinkConfig(rate=8_000_000, delay=ms(10)), 1)
    assert [at for at, _ in flood(wire, 3)] == [ms(11), ms(12), ms(13)]


def test_a_full_queue_drops_what_does_not_fit() -> None:
    wire = Wire(LinkConfig(rate=8_000_000, queue=2500), 1)
    assert len(flood(wire, 10)) == 2
    assert wire.drops.counts["queue"] == 8


def test_overhead_counts_for_rate_and_mtu() -> None:
    wire = Wire(LinkConfig(rate=8_000_000, mtu=1050), 1)
    assert wire.offer(PACKET, 0, 28)[0][0] == 1028 * SECOND // 1_000_000
    assert wire.offer(PACKET, 0, 60) == []
    assert wire.drops.counts["mtu"] == 1


def test_loss_duplication_corruption_and_reordering_happen_about_as_often_as_asked() -> None:
    wire = Wire(LinkConfig(loss=0.1, duplicate=0.1, corrupt=0.1, reorder=0.1), 5)
    got = flood(wire, 2000)
    assert 120 < wire.drops.counts["loss"] < 280
    for count in (wire.duplicated, wire.corrupted, wire.reordered):
        assert 100 < count < 260
    assert len(got) == 2000 - wire.drops.counts["loss"] + wire.duplicated


def test_jitter_reorders_unless_order_is_kept() -> None:
    loose = flood(Wire(LinkConfig(jitter=ms(5)), 1), 50, MILLISECOND)
    tight = flood(Wire(LinkConfig(jitter=ms(5), keep_order=True), 1), 50, MILLISECOND)
    assert sorted(loose) != loose
    assert sorted(tight) == tight


def test_the_same_seed_gives_the_same_fate() -> None:
    config = LinkConfig(loss=0.2, jitter=ms(3), duplicate=0.1)
    assert flood(Wire(config, 9), 200) == flood(Wire(config, 9), 200)
    assert flood(Wire(config, 9), 200) != flood(Wire(config, 10), 200)


def test_a_link_that_is_down_takes_nothing() -> None:
    wire = Wire(LinkConfig(up=False), 1)
    assert flood(wire, 3) == []
    wire.config = LinkConfig()
    assert len(flood(wire, 3)) == 3
