"""Both ends move while data flows: each follows the other's authentic messages, and nothing else."""

from collections.abc import Hashable

import pytest

from tests.wg.kit import Net, peer_id
from tsnetpy.base.instant import MILLISECOND, SECOND
from tsnetpy.wg import EndpointSeen

INITIATION, TRANSPORT = 1, 4


def place(number: int) -> Hashable:
    """A fresh address."""
    return ("udp", bytes((198, 51, 100, number)), 1000 + number)


def routed() -> Net:
    net = Net()
    net.routed = True
    net.data(net.a)
    net.run(SECOND)
    return net


def test_whoever_moves_is_followed_from_its_next_message_on() -> None:
    net = routed()
    sides = (net.a, net.b)
    for side in sides:
        side.received.clear()
    sent: dict[str, list[bytes]] = {"a": [], "b": []}
    for number in range(1, 41):
        mover = sides[number % 2]
        mover.path = place(number)
        # The mover speaks first; only what the other one had on its way to the old place is lost, here nothing.
        sent[mover.name].append(net.data(mover, bytes((number,))))
        net.run(50 * MILLISECOND)
        other = net.other(mover)
        assert other.knows == mover.path
        sent[other.name].append(net.data(other, bytes((number,))))
        net.run(50 * MILLISECOND)
    assert net.b.received == sent["a"]
    assert net.a.received == sent["b"]
    assert len(net.sent("a", INITIATION)) + len(net.sent("b", INITIATION)) == 1  # no new keys are needed


def test_a_mover_that_keeps_silent_is_found_by_its_keepalive() -> None:
    """It had received data before, so it must say something within 10 s."""
    net = routed()
    net.data(net.b)
    net.run(SECOND)
    net.a.path = place(1)
    lost = net.data(net.b, b"lost")
    net.run(10 * SECOND)
    assert lost not in net.a.received
    assert net.b.knows == net.a.path
    found = net.data(net.b, b"found")
    net.run(SECOND)
    assert net.a.received[-1] == found


@pytest.mark.parametrize("returns", [False, True])
def test_when_both_move_at_once_one_must_come_back(returns: bool) -> None:
    """Neither knows where the other is: WireGuard has no third party that could tell."""
    net = routed()
    home = net.b.path
    net.a.path, net.b.path = place(1), place(2)
    net.a.received.clear()
    net.b.received.clear()
    for _ in range(30):
        net.data(net.a)
        net.data(net.b)
        net.run(SECOND)
    assert net.a.received == net.b.received == []
    if returns:
        net.b.path = home
    for _ in range(20):
        net.data(net.a)
        net.data(net.b)
        net.run(SECOND)
    assert bool(net.a.received) == bool(net.b.received) == returns
    assert (net.b.knows == net.a.path) == returns


def test_a_recorded_message_from_elsewhere_moves_nobody() -> None:
    net = routed()
    net.run(6 * SECOND)
    net.data(net.a)
    net.run(SECOND)
    known = net.b.knows
    for _, datagram in net.sent("a"):
        net.inject(net.b, datagram, place(66))
        altered = bytearray(datagram)
        altered[-1] ^= 1
        net.inject(net.b, bytes(altered), place(67))
    assert net.b.knows == known
    assert not any(isinstance(event, EndpointSeen) and event.path == place(66) for event in net.b.events)


def test_a_delayed_message_from_the_old_place_costs_one_answer_at_most() -> None:
    """The last authentic message counts (whitepaper section 2.1); the next one from the new place puts it right."""
    net = routed()
    held: list[bytes] = []

    def keep(sender: str, datagram: bytes) -> bool:
        if not held:
            held.append(datagram)
            return False
        return True

    net.keep = keep
    net.data(net.a)
    old = net.a.path
    net.a.path = place(1)
    net.data(net.a)
    net.run(SECOND)
    assert net.b.knows == place(1)
    net.inject(net.b, held[0], old)
    assert net.b.knows == old
    net.data(net.a)
    net.run(SECOND)
    assert net.b.knows == place(1)


def test_an_initiation_and_a_response_from_a_new_place_are_believed_too() -> None:
    net = routed()
    net.run(6 * SECOND)
    net.a.path, net.keep = place(1), lambda sender, datagram: datagram[0] != TRANSPORT
    net.a.device.initiate(peer_id(net.b), net.now)
    net.run(SECOND)
    assert net.b.knows == place(1)

    net.run(6 * SECOND)
    net.b.path = place(2)
    assert net.a.knows != net.b.path
    net.routed = False  # somebody forwards the initiation to b; its answer shows where b is
    net.a.device.initiate(peer_id(net.b), net.now)
    net.run(SECOND)
    assert net.a.knows == place(2)
