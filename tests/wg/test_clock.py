"""Clocks that jump and machines that sleep: sessions live on the monotonic clock, timestamps never go back."""

import pytest

from tests.wg.kit import WALL, Net, SeededEntropy, Side, peer_id
from tsnetpy.base.addr import parse_prefix
from tsnetpy.base.instant import MILLISECOND, SECOND, Duration
from tsnetpy.crypto import dh
from tsnetpy.noise.ikpsk2 import IkPsk2Responder
from tsnetpy.wg import Device, UnknownSession
from tsnetpy.wg.messages import Initiation
from tsnetpy.wg.tai64n import Tai64nClock, stamp

INITIATION, RESPONSE, TRANSPORT = 1, 2, 4
HOUR = 3600 * SECOND


def private_keys() -> tuple[bytes, bytes]:
    """The keys that a :class:`Net` of seed 1 gives its devices."""
    entropy = SeededEntropy(1)
    return dh.generate(entropy), dh.generate(entropy)


def timestamps(net: Net, sender: str) -> list[bytes]:
    """Read the timestamps in the initiations of *sender*, as their receiver would."""
    privates = private_keys()
    own, other = (privates[1], net.b) if sender == "a" else (privates[0], net.a)
    found = []
    for _, datagram in net.sent(sender, INITIATION):
        message = Initiation.decode(datagram)
        noise = IkPsk2Responder(own, peer_id(other))
        noise.read_static(message.ephemeral, message.sealed_static)
        found.append(noise.read_timestamp(message.sealed_timestamp))
    return found


def exchange(net: Net, seconds: int) -> tuple[list[bytes], list[bytes]]:
    """Send one packet a second each way; return what was sent."""
    forth, back = [], []
    for _ in range(seconds):
        stamped = net.now.to_bytes(8, "big")  # no two packets are equal
        forth.append(net.data(net.a, stamped))
        back.append(net.data(net.b, stamped))
        net.run(SECOND)
    return forth, back


@pytest.mark.parametrize("jump", [-5 * HOUR, 5 * HOUR, -WALL], ids=["back", "forth", "to 1970"])
def test_our_wall_clock_steps_and_nothing_is_lost(jump: Duration) -> None:
    net = Net()
    net.data(net.a)
    net.run(SECOND)
    net.b.received.clear()
    forth, back = [], []
    for step in range(4):  # there and back, twice: beyond each step lie two rekeys
        more = exchange(net, 250)
        forth += more[0]
        back += more[1]
        net.a.device.wall_offset_ns += jump if step % 2 == 0 else -jump
    net.run(SECOND)
    assert net.b.received == forth
    assert net.a.received == back
    sent = timestamps(net, "a")
    assert len(sent) >= 8
    assert sent == sorted(set(sent))
    assert net.sent("b", INITIATION) == []
    assert net.b.device.drops.total == 0


def test_timestamps_after_a_step_back_stay_close_to_those_before() -> None:
    """A step back of hours costs steps of 17 ms, so that the true time is soon reached again."""
    clock = Tai64nClock()
    high = clock.next(WALL)
    for _ in range(1000):
        low = clock.next(WALL - HOUR)
    assert high < low < stamp(WALL + 17 * SECOND)
    assert clock.next(WALL + 18 * SECOND) == stamp(WALL + 18 * SECOND)


def test_a_peer_that_comes_back_into_the_configuration_gets_a_later_timestamp() -> None:
    net = Net()
    net.data(net.a)
    net.run(SECOND)
    net.a.device.remove_peer(peer_id(net.b))
    net.a.device.wall_offset_ns -= 5 * HOUR  # meanwhile somebody set the clock
    net.a.device.add_peer(peer_id(net.b), [parse_prefix("10.9.0.2")], net.now)
    packet = net.data(net.a)
    net.run(SECOND)
    assert net.b.received[-1] == packet
    assert net.b.device.drops.total == 0
    one, two = timestamps(net, "a")
    assert one < two


def restart(net: Net, side: Side) -> None:
    """Give *side* a new device with the same key, as after a restart of its process."""
    other = net.other(side)
    offset = side.device.wall_offset_ns
    side.device = Device(private_keys()[0 if side is net.a else 1], SeededEntropy(66))
    side.device.wall_offset_ns = offset
    prefix = parse_prefix("10.9.0.2" if side is net.a else "10.9.0.1")
    side.device.add_peer(peer_id(other), [prefix], net.now)


def test_after_a_restart_with_a_true_clock_the_first_initiation_is_good() -> None:
    net = Net()
    net.data(net.a)
    net.run(SECOND)
    restart(net, net.a)
    packet = net.data(net.a)
    net.run(100 * MILLISECOND)
    assert net.b.received[-1] == packet


def test_after_a_restart_with_an_older_clock_only_the_peer_can_begin() -> None:
    """The peer must refuse what may be a replay (whitepaper section 5.1); its own initiation needs no past of ours."""
    net = Net()
    net.data(net.a)
    net.run(SECOND)
    net.a.device.wall_offset_ns -= HOUR
    restart(net, net.a)
    waiting = net.data(net.a)
    net.run(30 * SECOND)
    assert waiting not in net.b.received[1:]
    assert net.b.device.drops.counts["initiation_replay"] >= 5
    # Anything that the peer sends on its old keys tells us of it; b's own silence ends in an initiation after 15 s.
    net.data(net.b)
    net.run(16 * SECOND)
    assert net.sent("b", INITIATION)
    assert net.b.received[-1] == waiting
    assert any(isinstance(event, UnknownSession) for event in net.a.events)


@pytest.mark.parametrize("initiator", ["a", "b"])
def test_the_peers_wall_clock_steps_back_while_data_flows_both_ways(initiator: str) -> None:
    """A peer without our care sends older timestamps, which we refuse; our own initiation takes the place of its."""
    net = Net()
    (net.data(net.a) if initiator == "a" else net.data(net.b))
    net.run(SECOND)
    net.a.received.clear()
    net.b.received.clear()
    forth, back = exchange(net, 60)
    # b forgets its sent timestamps, as an implementation does that takes them from the clock alone.
    net.b.device._peers[peer_id(net.a)].clock = Tai64nClock()
    net.b.device.wall_offset_ns -= HOUR
    more = exchange(net, 400)
    net.run(SECOND)
    assert net.b.received == forth + more[0]
    if initiator == "b":
        # The keys run out at 180 s; what b sent in their last 10 ms is on the way when they do.
        assert len(net.a.received) >= len(back + more[1]) - 1
    else:
        assert net.a.received == back + more[1]
    refused = net.a.device.drops.snapshot()
    if initiator == "b":
        assert refused["initiation_replay"] > 0
        assert len(net.sent("a", INITIATION)) >= 1
    else:
        assert refused == {}


@pytest.mark.parametrize("slept", [60 * SECOND, 170 * SECOND, 2 * HOUR], ids=["short", "nearly too long", "long"])
@pytest.mark.parametrize("sleeper", ["a", "b"])
def test_a_machine_that_slept_is_back_after_one_silence_at_most(sleeper: str, slept: Duration) -> None:
    """While it sleeps its monotonic clock stands still, so it believes keys to be young that the other side forgot."""
    net = Net()
    exchange(net, 30)
    side = net.a if sleeper == "a" else net.b
    other = net.other(side)
    awake = net.keep
    net.keep = lambda sender, datagram: False
    before = net.now
    # The sleeping device is not called: time passes for the other one only.
    while net.now < before + slept:
        deadline = other.device.next_deadline()
        net.now = min(before + slept, max(net.now, deadline) if deadline is not None else before + slept)
        other.device.handle_deadline(net.now)
        net.flush()
    side.behind_ns = slept
    net.keep = awake

    woke = net.now
    side.received.clear()
    other.received.clear()
    first = None
    for _ in range(60):
        net.data(side)
        net.run(SECOND)
        if other.received and first is None:
            first = net.now - woke
    assert first is not None
    assert first <= (2 * SECOND if slept < 100 * SECOND else 17 * SECOND)
    assert len(other.received) >= 60 - 17
    net.data(other)
    net.run(SECOND)
    assert side.received
