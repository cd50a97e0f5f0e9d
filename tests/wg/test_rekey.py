"""Ten minutes of TCP between two data planes on a virtual clock: new keys every two minutes, no trace in the data."""

import gc
from itertools import pairwise

import pytest

from tests.dataplane.kit import B4, World
from tsnetpy.base.instant import MILLISECOND, SECOND, Instant
from tsnetpy.wg import PeerHandshake
from tsnetpy.wg.session import Session

TEN_MINUTES = 600 * SECOND
PIECE = 6_000
STEP = 500 * MILLISECOND


def sessions_of(world: World) -> int:
    """Count the sessions of this world that exist anywhere in the process."""
    gc.collect()
    keys = {world.a.public, world.b.public}
    return sum(isinstance(thing, Session) and thing.peer in keys for thing in gc.get_objects())


@pytest.mark.parametrize("loss", [0.0, 0.01], ids=["clean", "1 % loss"])
@pytest.mark.parametrize("downloads", [False, True], ids=["initiator sends", "initiator receives"])
def test_a_ten_minute_transfer_crosses_its_rekeys_without_a_trace(downloads: bool, loss: float) -> None:
    world = World(delay_ns=10 * MILLISECOND, loss=loss)
    client, server = world.connect(B4)
    source, sink = (server, client) if downloads else (client, server)
    sent = bytearray()
    received = bytearray()
    arrivals: list[Instant] = []
    handshakes: list[tuple[Instant, str, bool]] = []
    most_sessions = 0
    began = world.now
    first = world.a.plane.peer_info(world.b.public, began)
    assert first is not None
    assert first.last_handshake is not None
    world.a.events.clear()
    world.b.events.clear()

    def collect() -> bool:
        """Note what came in and which sessions came up."""
        while piece := sink.read(1 << 20, world.now):
            received.extend(piece)
            arrivals.append(world.now)
        for end in (world.a, world.b):
            events, end.events = end.events, []
            handshakes.extend(
                (world.now, end.name, event.initiator) for event in events if isinstance(event, PeerHandshake)
            )
        return False

    ticks = TEN_MINUTES // STEP
    for tick in range(ticks):
        piece = tick.to_bytes(4, "big") * (PIECE // 4)
        assert source.send(piece, world.now) == len(piece)
        sent += piece
        world.run(began + (tick + 1) * STEP - world.now, collect)
        if tick % 300 == 299:
            most_sessions = max(most_sessions, sessions_of(world))
    world.run(2 * SECOND, collect)

    assert received == sent
    # Sessions on schedule: one more each time that the initiator uses a key older than 120 s.
    of_a = [first.last_handshake] + [when for when, name, initiator in handshakes if name == "a" and initiator]
    of_b = [first.last_handshake] + [when for when, name, initiator in handshakes if name == "b" and not initiator]
    assert len(handshakes) == len(of_a) + len(of_b) - 2
    assert len(of_a) == len(of_b) == 5
    slack = SECOND if not loss else 12 * SECOND  # a lost handshake message costs a retry of 5 s
    for times in (of_a, of_b):
        assert all(120 * SECOND < later - earlier < 120 * SECOND + slack for earlier, later in pairwise(times))
    # Two ends hold at most current, previous and next each, however often they were renewed.
    assert most_sessions <= 6
    # Never does the flow stop for longer than a step and what a retransmission takes.
    gaps = [later - earlier for earlier, later in pairwise(arrivals)]
    assert max(gaps) <= STEP + (10 * MILLISECOND if not loss else SECOND)
    stats = world.b.plane.stats().drops
    assert not any(reason in stats for reason in ("wg.expired_session", "wg.unknown_index", "wg.not_authentic"))

    # When the traffic is over, the keys go.
    world.run(560 * SECOND)
    assert sessions_of(world) == 0
