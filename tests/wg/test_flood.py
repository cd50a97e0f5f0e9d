"""A handshake flood of 20,000 a second beside an established transfer: it goes on, and memory stays bounded."""

import time
import tracemalloc
from collections.abc import Callable

import pytest

from tests.wg.kit import START, WALL, Net, SeededEntropy, ipv4
from tsnetpy.base.instant import MILLISECOND, SECOND, Instant
from tsnetpy.base.packet import Buffer
from tsnetpy.crypto import dh
from tsnetpy.wg import Device

PER_SECOND = 20_000
STEP = 5 * MILLISECOND
DATAGRAMS = PER_SECOND * STEP // SECOND
PACKETS = 8
"""Packets of the transfer in each step, with room for 1,400 bytes each: 18 Mbit/s."""
STEPS = 100
MEASURED = 60
"""Steps of which the time is taken; in those after them memory is."""


def garbage(now: Instant, entropy: SeededEntropy, target: Device) -> list[Buffer]:
    """Datagrams of the right type and size, and of every other."""
    out: list[Buffer] = []
    for n in range(DATAGRAMS):
        kind, size = ((1, 148), (2, 92), (3, 64), (4, 96), (1, 147), (9, 200))[n % 6]
        out.append(bytes((kind, 0, 0, 0)) + entropy.bytes(size - 4))
    return out


class Strangers:
    """Initiations that know the target's key, each from another ephemeral: MAC1 holds, the sender is no peer."""

    def __init__(self, target: Device) -> None:
        self.entropy = SeededEntropy(77)
        self.devices = [Device(dh.generate(self.entropy), self.entropy) for _ in range(8)]
        for device in self.devices:
            device.wall_offset_ns = WALL - START
            device.add_peer(target.public_key, [], START)
        self.made: list[Buffer] = []
        for n in range(128):
            device = self.devices[n % 8]
            device.initiate(target.public_key, START + n * 6 * SECOND)
            self.made += [bytes(batch.data) for _, batch in device.take_outgoing() if batch.data[0] == 1]

    def __call__(self, now: Instant, entropy: SeededEntropy, target: Device) -> list[Buffer]:
        return [self.made[n % len(self.made)] for n in range(DATAGRAMS)]


@pytest.mark.parametrize("kind", ["garbage", "valid MAC1"])
def test_a_transfer_outlives_a_handshake_flood(kind: str, record_property: Callable[[str, object], None]) -> None:
    net = Net(delay_ns=MILLISECOND)
    net.data(net.a)
    net.run(100 * MILLISECOND)
    target = net.b.device
    make = garbage if kind == "garbage" else Strangers(target)
    entropy = SeededEntropy(5)
    packets = [ipv4("10.9.0.1", "10.9.0.2", bytes(1380)) for _ in range(PACKETS)]

    net.b.received.clear()
    flooded = replies = early = 0
    for step in range(STEPS):
        if step == MEASURED:  # tracing memory takes time, so times are taken before
            tracemalloc.start()
        datagrams = make(net.now, entropy, target)
        started = time.perf_counter_ns()
        for at in range(0, DATAGRAMS, 10):
            source = ("udp", (0x0A000000 + step * DATAGRAMS + at).to_bytes(4, "big"), at)
            assert target.receive(datagrams[at : at + 10], source, net.now) == []
        replies += len(target.take_path_outgoing())
        if step < MEASURED:
            flooded += time.perf_counter_ns() - started
        net.send(net.a, *packets)
        net.run(STEP)
        if step == MEASURED + 5:
            early = tracemalloc.get_traced_memory()[0]
        net.b.received, got = [], net.b.received
        assert len(got) == PACKETS
        net.log.clear()
    late = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()

    assert late - early < 1 << 20
    assert len(target.peers()) == 1
    dropped = target.drops.snapshot()
    assert sum(dropped.values()) == STEPS * DATAGRAMS
    if kind == "garbage":
        assert replies == 0
        assert set(dropped) == {"mac1", "unknown_index", "unknown_message"}
    else:
        # Once load is noticed every initiation costs one cookie; the Diffie-Hellman is done for the first few only.
        assert set(dropped) == {"unknown_peer", "cookie"}
        assert dropped["unknown_peer"] < 140
        assert dropped["cookie"] == replies
    record_property("flood us each", round(flooded / (MEASURED * DATAGRAMS) / 1000, 1))
    record_property("processor left for the transfer", round(1 - flooded / (MEASURED * STEP), 2))
