"""Key slots, the limits of a session, and when it is renewed (whitepaper sections 6.1 to 6.5)."""

import gc

import pytest

from tests.wg.kit import Net, Side, peer_id
from tsnetpy.base.addr import parse_prefix
from tsnetpy.base.instant import MILLISECOND, SECOND
from tsnetpy.wg.constants import REJECT_AFTER_MESSAGES, REKEY_AFTER_MESSAGES
from tsnetpy.wg.peer import Peer
from tsnetpy.wg.session import Session

INITIATION, RESPONSE, COOKIE_REPLY, TRANSPORT = 1, 2, 3, 4


def peer_of(side: Side, net: Net) -> Peer:
    """Return what *side* keeps of the other one."""
    return side.device._peers[peer_id(net.other(side))]


def established() -> Net:
    net = Net()
    net.data(net.a)
    net.run(SECOND)
    net.b.received.clear()
    return net


def sessions_in_memory(*owners: Side) -> int:
    """Count the sessions anywhere in this process that belong to a pair of these sides."""
    keys = {peer_id(side) for side in owners}
    gc.collect()
    return sum(isinstance(thing, Session) and thing.peer in keys for thing in gc.get_objects())


def test_three_slots_through_two_rekeys() -> None:
    net = established()
    a, b = peer_of(net.a, net), peer_of(net.b, net)
    first_a, first_b = a.current, b.current
    assert first_a is not None
    assert first_b is not None
    assert (a.previous, a.next, b.previous, b.next) == (None, None, None, None)

    # The responder has answered, but the initiator has not yet used the new keys.
    net.run(6 * SECOND)
    net.keep = lambda sender, datagram: not (sender == "a" and datagram[0] == TRANSPORT)
    net.a.device.initiate(peer_id(net.b), net.now)
    net.run(100 * MILLISECOND)
    second_a, second_b = a.current, b.next
    assert second_a is not None
    assert second_b is not None
    assert a.previous is first_a
    assert b.current is first_b
    net.keep = lambda sender, datagram: True
    answer = net.data(net.b)  # the responder stays on the old keys until it has heard the new ones
    assert net.sent("b", TRANSPORT)[-1][1][4:8] == first_a.local_index.to_bytes(4, "little")
    net.run(100 * MILLISECOND)
    assert net.a.received == [answer]

    net.data(net.a)
    net.run(100 * MILLISECOND)
    assert (b.previous, b.current, b.next) == (first_b, second_b, None)

    # The next handshake drops the oldest keys on both sides.
    net.run(6 * SECOND)
    net.b.device.initiate(peer_id(net.a), net.now)
    net.run(100 * MILLISECOND)
    assert b.previous is second_b
    assert a.previous is second_a
    assert first_a.dead
    assert first_b.dead
    assert set(net.a.device._sessions.values()) == {a.current, a.previous}
    assert set(net.b.device._sessions.values()) == {b.current, b.previous}


def test_what_was_sent_on_the_old_keys_still_arrives_after_a_rekey() -> None:
    net = established()
    net.run(6 * SECOND)
    held: list[bytes] = []

    def keep(sender: str, datagram: bytes) -> bool:
        if datagram[0] == TRANSPORT and not held:
            held.append(datagram)
            return False
        return True

    net.keep = keep
    packet = net.data(net.a)
    net.a.device.initiate(peer_id(net.b), net.now)
    net.run(SECOND)
    net.data(net.a)
    net.run(SECOND)
    net.inject(net.b, held[0], net.a.path)
    assert packet in net.b.received
    assert peer_of(net.b, net).previous is not None
    assert net.b.device.drops.total == 0


def test_an_initiator_that_has_an_unconfirmed_session_of_the_peer_keeps_it_readable() -> None:
    """Both began: what the peer sealed for the session that it offered must not get lost."""
    net = established()
    net.run(6 * SECOND)
    net.keep = lambda sender, datagram: datagram[0] != TRANSPORT
    net.b.device.initiate(peer_id(net.a), net.now)
    net.run(100 * MILLISECOND)  # a has answered and now has a "next"
    a = peer_of(net.a, net)
    offered = a.next
    assert offered is not None
    net.run(6 * SECOND)
    net.a.device.initiate(peer_id(net.b), net.now)
    net.run(100 * MILLISECOND)
    assert a.previous is offered
    assert a.next is None
    assert a.current is not None
    assert a.current.initiator


def test_a_second_answer_to_one_initiation_changes_nothing() -> None:
    net = established()
    response = net.sent("b", RESPONSE)[0][1]
    current = peer_of(net.a, net).current
    net.inject(net.a, response, net.b.path)
    assert net.a.device.drops.snapshot() == {"unknown_index": 1}
    assert peer_of(net.a, net).current is current


def test_initiations_less_than_20_ms_apart_are_a_flood() -> None:
    net = established()
    net.run(6 * SECOND)
    made: list[bytes] = []
    for n in range(3):
        net.a.device.initiate(peer_id(net.b), net.now + n * 6 * SECOND)
        made += [bytes(batch.data) for _, batch in net.a.device.take_outgoing()]
    answers = []
    for initiation, pause in zip(made, (0, 19, 2), strict=True):
        net.now += pause * MILLISECOND
        net.b.device.receive([initiation], net.a.path, net.now)
        answers.append(len(net.b.device.take_outgoing()))
    assert answers == [1, 0, 1]
    assert net.b.device.drops.snapshot() == {"initiation_flood": 1}


def test_an_old_initiation_is_refused_however_late() -> None:
    net = established()
    net.run(700 * SECOND)  # every key is gone, but not the memory of the timestamp
    old = net.sent("a", INITIATION)[0][1]
    net.inject(net.b, old, net.a.path)
    assert net.b.device.drops.counts["initiation_replay"] == 1
    assert len(net.sent("b", RESPONSE)) == 1


@pytest.mark.parametrize("side_name", ["a", "b"])
def test_rekey_after_2_to_the_60_messages_by_either_side(side_name: str) -> None:
    net = established()
    side = net.a if side_name == "a" else net.b
    net.run(6 * SECOND)
    session = peer_of(side, net).current
    assert session is not None
    session.counter = REKEY_AFTER_MESSAGES - 1
    before = len(net.sent(side_name, INITIATION))
    net.data(side)
    assert len(net.sent(side_name, INITIATION)) == before
    net.data(side)
    assert len(net.sent(side_name, INITIATION)) == before + 1
    net.run(SECOND)
    fresh = peer_of(side, net).current
    assert fresh is not None
    assert fresh is not session
    assert fresh.counter < 10
    assert len(net.other(side).received) == 2


def test_no_message_goes_out_beyond_the_last_nonce() -> None:
    net = established()
    net.run(6 * SECOND)
    session = peer_of(net.a, net).current
    assert session is not None
    session.counter = REJECT_AFTER_MESSAGES - 2
    net.keep = lambda sender, datagram: datagram[0] != INITIATION
    one, two = net.data(net.a), net.data(net.a)
    last = net.sent("a", TRANSPORT)[-1][1]
    assert int.from_bytes(last[8:16], "little") == REJECT_AFTER_MESSAGES - 1
    three = net.data(net.a)
    net.run(SECOND)
    assert net.sent("a", TRANSPORT)[-1][1] == last
    assert net.b.received == [one, two]
    net.keep = lambda sender, datagram: True
    net.run(6 * SECOND)
    assert net.b.received == [one, two, three]


def test_a_batch_that_does_not_fit_the_nonces_left_waits_as_a_whole() -> None:
    net = established()
    net.run(6 * SECOND)
    session = peer_of(net.a, net).current
    assert session is not None
    session.counter = REJECT_AFTER_MESSAGES - 3
    packet = net.data(net.a)
    net.b.received.clear()
    net.send(net.a, *[packet] * 10)
    assert session.counter <= REJECT_AFTER_MESSAGES
    net.run(6 * SECOND)
    assert net.b.received == [packet] * 11


def test_who_only_hears_keepalives_renews_after_165_seconds() -> None:
    """It sends nothing itself, so the rule for senders (120 s) never runs."""
    net = established()
    net.run(12 * SECOND)
    net.b.device.add_peer(peer_id(net.a), [parse_prefix("10.9.0.1")], net.now, persistent_keepalive_s=10)
    net.run(400 * SECOND)
    times = [when / SECOND for when, _ in net.sent("a", INITIATION)]
    assert times[0] == 0
    assert 165 < times[1] < 176
    assert 165 < times[2] - times[1] < 176
    assert len(times) == 3
    assert net.sent("b", INITIATION) == []


def test_the_responder_never_renews_by_age() -> None:
    net = established()
    net.keep = lambda sender, datagram: datagram[0] == TRANSPORT
    while net.elapsed < 178 * SECOND:
        net.data(net.b)
        net.data(net.a)
        net.run(SECOND)
    assert net.sent("b", INITIATION) == []
    assert len(net.sent("a", INITIATION)) > 5  # the initiator tries from 120 s on


def test_the_wait_for_an_answer_is_15_seconds_and_a_random_third() -> None:
    waits = set()
    for seed in range(1, 9):
        net = Net(seed)
        net.data(net.a)
        net.run(SECOND)
        net.data(net.b)
        net.run(SECOND)
        net.keep = lambda sender, datagram: False
        net.data(net.a)
        at = net.elapsed
        net.run(17 * SECOND)
        waits.add(net.sent("a", INITIATION)[1][0] - at)
    assert all(15 * SECOND <= wait < 15_334 * MILLISECOND for wait in waits)
    assert len(waits) > 4


def test_a_keepalive_that_is_due_again_comes_again_after_10_seconds() -> None:
    """Data that came in while one was already due asks for one more (needAnotherKeepalive in wireguard-go)."""
    net = established()
    net.run(20 * SECOND)
    at = net.elapsed
    net.data(net.b)
    net.run(SECOND)
    net.data(net.b)
    net.run(60 * SECOND)
    keepalives = [when - at for when, d in net.sent("a", TRANSPORT, at) if len(d) == 32]
    assert [round(when / SECOND) for when in keepalives] == [10, 20]


def test_no_key_outlives_three_lifetimes() -> None:
    net = established()
    for side in (net.a, net.b):  # a handshake under way must not stay either
        side.device.initiate(peer_id(net.other(side)), net.now)
    net.run(6 * SECOND)
    assert sessions_in_memory(net.a, net.b) >= 2
    net.keep = lambda sender, datagram: False
    net.run(545 * SECOND)
    assert sessions_in_memory(net.a, net.b) == 0
    for side in (net.a, net.b):
        peer = peer_of(side, net)
        assert (peer.previous, peer.current, peer.next, peer.handshake) == (None, None, None, None)
        assert not len(peer.staged)
        assert not side.device._sessions
        assert not side.device._pending
        assert side.device.next_deadline() is None


def test_a_handshake_that_nobody_answers_leaves_nothing_behind() -> None:
    net = Net()
    net.keep = lambda sender, datagram: False
    net.data(net.a)
    net.run(110 * SECOND)
    assert peer_of(net.a, net).handshake is not None  # a late answer may still come
    net.run(545 * SECOND)
    assert peer_of(net.a, net).handshake is None
    assert not net.a.device._pending
    assert net.a.device.next_deadline() is None
