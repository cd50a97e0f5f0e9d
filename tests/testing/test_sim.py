"""The event-heap simulator, with whole stacks and whole data planes."""

import pytest

from tsnetpy.base.addr import Endpoint, parse_ip
from tsnetpy.base.instant import MILLISECOND, SECOND, ms
from tsnetpy.testing.checkers import TcpChecker
from tsnetpy.testing.links import LinkConfig
from tsnetpy.testing.sim import START, Simulator, StackHost, Transfer


def pair(config: LinkConfig, seed: int = 1, coalesce: int = 0) -> tuple[Simulator, StackHost, StackHost]:
    """Return two stacks joined by *config* both ways."""
    sim = Simulator(seed, coalesce)
    a, b = sim.stack("100.64.0.1", "fd7a:115c:a1e0::1"), sim.stack("100.64.0.2", "fd7a:115c:a1e0::2")
    sim.connect(a, b, config)
    return sim, a, b


def test_a_handshake_takes_one_round_trip() -> None:
    sim, a, b = pair(LinkConfig(delay=ms(10)))
    b.stack.tcp_listen(80, sim.now)
    socket = a.stack.tcp_connect(Endpoint(parse_ip("100.64.0.2"), 80), sim.now)
    sim.run(lambda: socket.connection.state.value == "ESTABLISHED")
    assert sim.now - START == ms(20)


def test_timers_fire_at_their_very_nanosecond() -> None:
    sim, _, _ = pair(LinkConfig())
    seen: list[int] = []
    sim.after(SECOND + 1, lambda: seen.append(sim.now - START))
    sim.after(3, lambda: seen.append(sim.now - START))
    sim.run_for(2 * SECOND)
    assert seen == [3, SECOND + 1]
    assert sim.now - START == 2 * SECOND


@pytest.mark.parametrize("coalesce", [0, MILLISECOND // 10])
def test_a_bad_link_delivers_every_byte_right(coalesce: int) -> None:
    config = LinkConfig(
        rate=50_000_000, delay=ms(5), jitter=ms(1), loss=0.01, duplicate=0.02, reorder=0.02, corrupt=0.02, queue=200_000
    )
    sim, a, b = pair(config, 3, coalesce)
    checker = TcpChecker()
    sim.observers.append(checker)
    transfer = Transfer(sim, a, b, 300_000)
    sim.run(lambda: transfer.done)
    checker.raise_if_any()
    assert transfer.received == 300_000
    assert a.drops.total + b.drops.total > 0, "no damaged packet was noticed"


def test_the_rate_bounds_the_goodput() -> None:
    sim, a, b = pair(LinkConfig(rate=10_000_000, delay=ms(1), queue=100_000))
    transfer = Transfer(sim, a, b, 500_000)
    sim.run(lambda: transfer.done)
    assert 8 < transfer.goodput.megabits < 10


def test_the_same_seed_is_the_same_run() -> None:
    moments = []
    for seed in (5, 5, 6):
        sim, a, b = pair(LinkConfig(rate=20_000_000, delay=ms(10), loss=0.03), seed)
        transfer = Transfer(sim, a, b, 100_000)
        sim.run(lambda transfer=transfer: transfer.done)  # type: ignore[misc]  # a default binds the loop variable
        moments.append(transfer.goodput.duration)
    assert moments[0] == moments[1] != moments[2]


def test_a_dead_link_ends_the_wait_with_an_error_of_ours() -> None:
    sim, a, b = pair(LinkConfig(up=False))
    transfer = Transfer(sim, a, b, 1000)
    with pytest.raises(TimeoutError):
        sim.run(lambda: transfer.done, limit=10 * SECOND)


def test_flows_share_one_bottleneck() -> None:
    sim = Simulator(2)
    server = sim.stack("100.64.0.1")
    clients = [sim.stack(f"100.64.0.{n}") for n in (2, 3)]
    bottleneck = sim.wire(LinkConfig(rate=10_000_000, delay=ms(5), queue=60_000))
    for client in clients:
        sim.attach(client, server, bottleneck)
        sim.attach(server, client, sim.wire(LinkConfig(delay=ms(5))))
    transfers = [Transfer(sim, client, server, 200_000, 5000 + at) for at, client in enumerate(clients)]
    sim.run(lambda: all(t.done for t in transfers))
    assert sum(t.goodput.megabits for t in transfers) < 21
    assert max(t.goodput.duration for t in transfers) > 2 * 200_000 * 8 * SECOND // 10_000_000


def test_whole_data_planes_talk_over_a_link() -> None:
    sim = Simulator(4)
    a, b = sim.plane("100.64.0.1"), sim.plane("100.64.0.2")
    there, _ = sim.connect(a, b, LinkConfig(rate=50_000_000, delay=ms(5), loss=0.01))
    transfer = Transfer(sim, a, b, 200_000)
    sim.run(lambda: transfer.done)
    assert transfer.received == 200_000
    assert there.octets > 200_000
    assert b.plane.peer_info(a.public, sim.now) is not None
