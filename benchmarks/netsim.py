"""Goodput of our TCP over simulated links: ``python -m benchmarks.netsim`` prints the table, ``--write`` keeps it.

Everything is virtual time and seeded: the same source gives the same table on every machine. ``tests/testing`` compares
a fresh run with the committed ``tests/snapshots/goodput.json`` and fails when goodput fell by more than a tenth.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tsnetpy.base.instant import MILLISECOND, SECOND, ms
from tsnetpy.tcp import TcpConfig
from tsnetpy.testing.checkers import TcpChecker
from tsnetpy.testing.links import LinkConfig
from tsnetpy.testing.sim import Simulator, Transfer

SNAPSHOT: Final = Path(__file__).parent.parent / "tests" / "snapshots" / "goodput.json"
RATE: Final = 50_000_000
SIZE: Final = 3 << 17
SEEDS: Final = (1, 2, 3, 4)
RTTS: Final = (1, 20, 100, 300)
LOSSES: Final = (0.0, 0.001, 0.01, 0.05)


@dataclass(frozen=True, slots=True)
class Case:
    """One cell: a row (what the link does) at one round-trip time in milliseconds."""

    row: str
    rtt: int
    link: LinkConfig
    back: LinkConfig

    @property
    def random(self) -> bool:
        """Whether the result depends on the seed."""
        link = self.link
        return bool(link.loss or link.reorder or link.duplicate or link.corrupt or link.jitter)


def cases() -> Iterator[Case]:
    """Yield all cells, row by row."""
    for loss in LOSSES:
        for rtt in RTTS:
            yield Case(f"loss {loss * 100:g} %", rtt, _link(rtt, loss=loss), _link(rtt))
    for rtt in (20, 100):
        late = max(2, rtt // 10) * MILLISECOND
        yield Case("reorder 5 %", rtt, _link(rtt, reorder=0.05, reorder_delay=late), _link(rtt))
        yield Case("duplicate 5 %", rtt, _link(rtt, duplicate=0.05), _link(rtt, duplicate=0.05))
        yield Case("corrupt 1 %", rtt, _link(rtt, corrupt=0.01), _link(rtt, corrupt=0.01))


def _link(
    rtt: int,
    *,
    loss: float = 0.0,
    reorder: float = 0.0,
    reorder_delay: int = MILLISECOND,
    duplicate: float = 0.0,
    corrupt: float = 0.0,
) -> LinkConfig:
    return LinkConfig(
        rate=RATE,
        delay=ms(rtt / 2),
        queue=max(65_536, RATE * rtt // 8000),
        loss=loss,
        reorder=reorder,
        reorder_delay=reorder_delay,
        duplicate=duplicate,
        corrupt=corrupt,
    )


def measure(case: Case, size: int = SIZE, seeds: tuple[int, ...] = SEEDS) -> float:
    """Return Mbit/s of payload from the first SYN to the last byte read, the geometric mean over *seeds*.

    Raises:
        ValueError: a byte arrived wrong.
        AssertionError: a packet broke a rule of ``testing.checkers``.
    """
    total = 0.0
    chosen = seeds if case.random else seeds[:1]
    for seed in chosen:
        sim = Simulator(seed, coalesce=MILLISECOND // 10)
        a, b = sim.stack("100.64.0.1"), sim.stack("100.64.0.2")
        checker = TcpChecker()
        sim.observers.append(checker)
        sim.connect(a, b, case.link, case.back)
        transfer = Transfer(sim, a, b, size)
        sim.run(lambda transfer=transfer: transfer.done)  # type: ignore[misc]  # a default argument binds the loop variable
        checker.raise_if_any()
        total += math.log(transfer.goodput.megabits)
    return math.exp(total / len(chosen))


def run(size: int = SIZE, seeds: tuple[int, ...] = SEEDS) -> dict[str, dict[str, float]]:
    """Return {row: {RTT: Mbit/s}} for all cells."""
    table: dict[str, dict[str, float]] = {}
    for case in cases():
        table.setdefault(case.row, {})[f"{case.rtt} ms"] = round(measure(case, size, seeds), 2)
    return table


def fairness(flows: int = 16, rate: int = 20_000_000, rtt: int = 40, seconds: int = 30) -> tuple[float, float]:
    """Return Jain's index over *flows* that share one bottleneck, and the share of the link that they fill.

    The flows start within the first second; bytes count from a third of the time on.
    """
    sim = Simulator(3, coalesce=MILLISECOND // 10)
    server = sim.stack("100.64.0.1")
    queue = rate * rtt // 8000
    shared = sim.wire(LinkConfig(rate=rate, delay=ms(rtt / 2), queue=queue))
    transfers: list[Transfer] = []
    for at in range(flows):
        client = sim.stack(f"100.64.1.{at + 1}")
        sim.attach(client, server, shared)
        sim.attach(server, client, sim.wire(LinkConfig(delay=ms(rtt / 2))))
        sim.run_for(SECOND // flows)
        transfers.append(Transfer(sim, client, server, rate // 8 * seconds, 5000 + at))
    sim.run_for(seconds * SECOND // 3)
    before = [t.received for t in transfers]
    span = seconds * SECOND * 2 // 3
    sim.run_for(span)
    got = [t.received - b for t, b in zip(transfers, before)]
    jain = sum(got) ** 2 / (len(got) * sum(g * g for g in got))
    return jain, sum(got) * 8 * SECOND / (rate * span)


def long_fat(
    congestion: str,
    loss: float,
    *,
    sack: bool = True,
    tolerance: bool = True,
    seconds: int = 30,
    skip: int = 0,
    rtt: int = 100,
    seed: int = 3,
) -> float:
    """Return the share of a 100 Mbit/s link that one long flow fills, after *skip* of its *seconds*.

    The queue holds one bandwidth-delay product; *rtt* is in milliseconds, *tolerance* that of rare losses.
    """
    rate = 100_000_000
    sim = Simulator(seed, coalesce=MILLISECOND // 2)
    config = TcpConfig(congestion=congestion, sack=sack, loss_tolerance=tolerance)
    a, b = sim.stack("100.64.0.1", tcp=config), sim.stack("100.64.0.2", tcp=config)
    queue = rate * rtt // 8000
    back = LinkConfig(rate=rate, delay=ms(rtt / 2))
    sim.connect(a, b, LinkConfig(rate=rate, delay=ms(rtt / 2), queue=queue, loss=loss), back)
    transfer = Transfer(sim, a, b, rate // 8 * seconds)
    sim.run_for(skip * SECOND)
    before = transfer.received
    sim.run_for((seconds - skip) * SECOND)
    return (transfer.received - before) * 8 / (rate * (seconds - skip))


def beside_plain(queue: float, first: bool, second: bool, rate: int = 20_000_000, rtt: int = 40) -> tuple[float, float]:
    """Return the Mbit/s of two flows over one bottleneck, of which *first* and *second* tell who bears rare losses.

    *queue* is in bandwidth-delay products. The second flow starts a second later; bytes count for 20 s after ten.
    """
    sim = Simulator(3, coalesce=MILLISECOND // 10)
    server = sim.stack("100.64.0.1")
    shared = sim.wire(LinkConfig(rate=rate, delay=ms(rtt / 2), queue=int(queue * rate * rtt / 8000)))
    transfers: list[Transfer] = []
    for at, tolerance in enumerate((first, second)):
        client = sim.stack(f"100.64.1.{at + 1}", tcp=TcpConfig(loss_tolerance=tolerance))
        sim.attach(client, server, shared)
        sim.attach(server, client, sim.wire(LinkConfig(delay=ms(rtt / 2))))
        transfers.append(Transfer(sim, client, server, rate // 8 * 30, 5000 + at))
        sim.run_for(SECOND)
    sim.run_for(8 * SECOND)
    before = [t.received for t in transfers]
    sim.run_for(20 * SECOND)
    one, two = ((t.received - b) * 8 / 20e6 for t, b in zip(transfers, before))
    return one, two


def render(table: dict[str, dict[str, float]]) -> str:
    """Return *table* as text."""
    columns = [f"{rtt} ms" for rtt in RTTS]
    lines = [f"{'Mbit/s':<14}" + "".join(f"{column:>10}" for column in columns)]
    for row, cells in table.items():
        lines.append(f"{row:<14}" + "".join(f"{cells[c]:>10.2f}" if c in cells else f"{'':>10}" for c in columns))
    return "\n".join(lines) + "\n"


def main() -> int:
    """Print the table, and write the snapshot if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.netsim", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"replace tests/snapshots/{SNAPSHOT.name}")
    parser.add_argument("--size", type=int, default=SIZE, help="bytes per transfer (the snapshot needs the default)")
    parser.add_argument("--fairness", action="store_true", help="16 flows over one bottleneck instead: Jain's index")
    parser.add_argument("--long-fat", metavar="NAME", help="one flow of that congestion control, 100 Mbit/s and 100 ms")
    parser.add_argument("--neighbours", action="store_true", help="two flows that take rare losses differently")
    args = parser.parse_args()
    if args.fairness:
        jain, share = fairness()
        sys.stdout.write(f"Jain index {jain:.3f}, {share:.0%} of the link\n")
        return 0
    if args.long_fat:
        for loss in (0.0001, 0.01):
            for tolerance in (True, False):
                shares = [long_fat(args.long_fat, loss, tolerance=tolerance, seed=seed) for seed in SEEDS]
                spelt = ", ".join(f"{share:.1%}" for share in shares)
                sys.stdout.write(
                    f"loss {loss:.2%}, {'rare ones borne' if tolerance else 'plain'}: {spelt} of the link\n"
                )
        return 0
    if args.neighbours:
        sys.stdout.write("Mbit/s of two flows at 20 Mbit/s and 40 ms; + bears rare losses, - is plain\n")
        for queue in (1.0, 0.5, 0.25, 0.1):
            pairs = [(a, b, *beside_plain(queue, a, b)) for a in (False, True) for b in (False, True)]
            spelt = "   ".join(f"{'-+'[a]}{'-+'[b]} {one:5.1f} {two:5.1f}" for a, b, one, two in pairs)
            sys.stdout.write(f"queue {queue:4.2f} BDP: {spelt}\n")
        return 0
    table = run(args.size)
    sys.stdout.write(render(table))
    if args.write:
        if args.size != SIZE:
            parser.error("the snapshot is of the default size")
        SNAPSHOT.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
