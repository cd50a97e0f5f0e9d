"""The rows of ``make bench``: figures of several rounds, ratios of paired rounds, floors, and the tables of them."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

TSNET: Final = "tsnet"
OURS: Final = "tsnetpy"
COMPILED: Final = "compiled"
KERNEL: Final = "kernel"
"""wireguard-go with the kernel's TCP behind its TUN."""


class Pair(NamedTuple):
    """The kinds of both ends."""

    client: str
    server: str

    def __str__(self) -> str:
        return f"{self.client} to {self.server}"


REFERENCE: Final = Pair(TSNET, TSNET)
JUDGED: Final = {OURS: Pair(OURS, OURS), COMPILED: Pair(COMPILED, COMPILED)}
ALIKE: Final = (REFERENCE, *JUDGED.values())
"""What the floors are about. They are next to each other in every round, so that trouble from outside meets all."""
PLAIN_REFERENCE: Final = Pair(KERNEL, KERNEL)
PAIRS: Final = (
    *ALIKE,
    Pair(OURS, TSNET),
    Pair(COMPILED, TSNET),
    PLAIN_REFERENCE,
    Pair(OURS, KERNEL),
    Pair(COMPILED, KERNEL),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the tables.

    Attributes:
        mode: the load that it comes from; name: what is measured; unit: in which unit.
        less: True if less is better.
        floors: what ours must reach of tsnet's own figure, interpreted and compiled: at least (or, with *less*, at
            most) these ratios.
        limit: what ours may be at most, in *unit*.
    """

    mode: str
    name: str
    unit: str
    less: bool = True
    floors: tuple[float, float] | None = None
    limit: float | None = None

    def floor(self, kind: str) -> float | None:
        """Return the floor of the interpreted (``OURS``) or the compiled core."""
        return None if self.floors is None else self.floors[kind == COMPILED]

    def verdict(self, kind: str, figure: float | None, ratio: float | None) -> tuple[str, bool] | None:
        """Return the rule and whether it is kept; ``None`` if there is no rule, or nothing to judge."""
        floor = self.floor(kind)
        if floor is not None and ratio is not None:
            return f"{'<=' if self.less else '>='} {floor:g}x", ratio <= floor if self.less else ratio >= floor
        if self.limit is not None and figure is not None:
            return f"<= {self.limit:g}", figure <= self.limit
        return None

    @property
    def judged(self) -> bool:
        """Whether a floor or a limit stands in this row."""
        return self.floors is not None or self.limit is not None


MEMORY: Final = (0.3, 0.3)
ROWS: Final = (
    Row("join", "join, Headscale as it comes", "s"),
    Row("join", "join, Headscale answering at once", "s", floors=(1.0, 1.0)),
    Row("join", "process, from start to end", "s"),
    Row("join", "CPU of join and 3 s of rest", "s"),
    Row("join", "memory at rest", "MiB"),
    Row("rtt", "echo of 1 byte, p50", "us", floors=(2.5, 1.5)),
    Row("rtt", "echo of 1 byte, p99", "us"),
    Row("rtt", "CPU of a round, both ends", "us"),
    Row("conns", "connect, echo, close (8 at a time)", "/s", less=False, floors=(0.2, 0.5)),
    Row("conns", "connect, echo, close, p50", "ms"),
    Row("conns", "CPU of a connection, both ends", "us"),
    Row("http", "HTTP GET (32 connections)", "/s", less=False),
    Row("http", "HTTP GET, p50", "ms"),
    Row("http", "CPU of a GET, both ends", "us"),
    Row("proxy", "reverse proxy (32 connections)", "/s", less=False, floors=(0.1, 0.1)),
    Row("proxy", "reverse proxy, p50", "ms"),
    Row("proxy", "CPU of a GET, client and proxy", "us"),
    Row("bulk", "bulk to the server", "Mbit/s", less=False, floors=(0.25, 0.4)),
    Row("bulk", "CPU of a GB to the server, both ends", "s"),
    Row("bulk", "memory of the sending client", "MiB", floors=MEMORY),
    Row("bulk", "memory of the receiving server", "MiB", floors=MEMORY),
    Row("source", "bulk to the client", "Mbit/s", less=False, floors=(0.25, 0.4)),
    Row("source", "CPU of a GB to the client, both ends", "s"),
    Row("source", "memory of the receiving client", "MiB", floors=MEMORY),
    Row("source", "memory of the sending server", "MiB", floors=MEMORY),
    Row("idle", "wake-ups of an idle node in a minute", "", limit=60),
    Row("idle", "CPU of an idle node in a minute", "ms"),
)


@dataclass(slots=True)
class Rounds:
    """The figures of one pair in one row, by the number of the round; a round that failed is absent."""

    values: dict[int, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """The figure that counts."""
        return statistics.median(self.values.values())

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the greatest."""
        return min(self.values.values()), max(self.values.values())

    def against(self, other: "Rounds") -> "Rounds | None":
        """Return the ratios to *other* of the rounds that both have."""
        both = {at: self.values[at] / other.values[at] for at in self.values if other.values.get(at)}
        return Rounds(both) if both else None


@dataclass(slots=True)
class Figures:
    """All figures of one run."""

    by_row: dict[tuple[str, str], dict[Pair, Rounds]] = field(default_factory=dict)

    def note(self, mode: str, name: str, pair: Pair, value: float, round_: int = 0) -> None:
        """Add one figure."""
        self.by_row.setdefault((mode, name), {}).setdefault(pair, Rounds()).values[round_] = value

    def note_all(self, mode: str, pair: Pair, values: Iterable[float], round_: int = 0) -> None:
        """Add the figures of all rows of a mode, in their order; fewer are fewer of the first."""
        for row, value in zip([row for row in ROWS if row.mode == mode], values):
            self.note(mode, row.name, pair, value, round_)

    def rows(self) -> Iterator[tuple[Row, dict[Pair, Rounds]]]:
        """Yield what was measured, in the order of the table."""
        for row in ROWS:
            if found := self.by_row.get((row.mode, row.name)):
                yield row, found

    def judged_table(self) -> list[list[str]]:
        """Return the rows with a floor, header first: ours to ours against tsnet to itself."""
        kinds = [kind for kind, pair in JUDGED.items() if any(pair in found for _, found in self.rows())]
        header = ["", "unit", TSNET]
        for kind in kinds:
            header += [kind if kind == COMPILED else f"{kind}, interpreted", "ratio", "floor"]
        table = [header]
        for row, found in self.rows():
            if row.judged:
                cells = [row.name, row.unit, spread(found.get(REFERENCE))]
                for kind in kinds:
                    cells += self._judged_cells(row, kind, found)
                table.append(cells)
        return table

    @staticmethod
    def _judged_cells(row: Row, kind: str, found: Mapping[Pair, Rounds]) -> list[str]:
        ours, reference = found.get(JUDGED[kind]), found.get(REFERENCE)
        if ours is None:
            return ["", "", ""]
        ratios = ours.against(reference) if reference is not None else None
        verdict = row.verdict(kind, ours.median, ratios.median if ratios else None)
        said = f"{verdict[0]}: {'kept' if verdict[1] else 'MISSED'}" if verdict else ""
        return [spread(ours), spread(ratios), said]

    def pairs_table(self, plain: bool) -> list[list[str]]:
        """Return all rows for the pairs of the tailnet, or of *plain* WireGuard, with ratios to the first pair."""
        pairs = [pair for pair in PAIRS if (KERNEL in pair) is plain]
        pairs = [pair for pair in pairs if any(pair in found for _, found in self.rows())]
        table = [["", "unit", *map(str, pairs)]]
        for row, found in self.rows():
            if not any(pair in found for pair in pairs):
                continue
            reference = found.get(PLAIN_REFERENCE if plain else REFERENCE)
            cells = [row.name, row.unit]
            for pair in pairs:
                here = found.get(pair)
                ratios = here.against(reference) if here and reference and here is not reference else None
                cells.append(_number(here.median if here else None) + (f" ({ratios.median:.2f}x)" if ratios else ""))
            table.append(cells)
        return table

    def as_json(self) -> list[dict[str, object]]:
        """Return every figure, every ratio to tsnet's own, and every verdict."""
        rows: list[dict[str, object]] = []
        for row, found in self.rows():
            reference = found.get(REFERENCE)
            judged = {}
            for kind, pair in JUDGED.items():
                if pair not in found:
                    continue
                ratios = found[pair].against(reference) if reference else None
                verdict = row.verdict(kind, found[pair].median, ratios.median if ratios else None)
                judged[kind] = {
                    "ratio": _summary(ratios) if ratios else None,
                    "floor": row.floor(kind),
                    "limit": row.limit,
                    "kept": verdict[1] if verdict else None,
                }
            pairs = {str(pair): _summary(rounds) for pair, rounds in found.items()}
            rows.append({"mode": row.mode, "name": row.name, "unit": row.unit, "pairs": pairs, "ours": judged})
        return rows


def _summary(rounds: Rounds) -> dict[str, object]:
    low, high = rounds.spread
    return {"median": rounds.median, "min": low, "max": high, "rounds": len(rounds.values)}


def spread(rounds: Rounds | None) -> str:
    """Return the median, and with several rounds the least and the greatest after it."""
    if rounds is None:
        return ""
    median, (low, high) = _number(rounds.median), rounds.spread
    return median if len(rounds.values) == 1 else f"{median} ({_number(low)}-{_number(high)})"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def missed(table: Sequence[Sequence[str]]) -> list[str]:
    """Return the rules of a table that were not kept: row, column and what was found."""
    header = table[0]
    return [
        f"{row[0]}, {header[at - back]}: {row[at - 1]}, floor {cell.removesuffix(': MISSED')}"
        for row in table[1:]
        for at, cell in enumerate(row)
        if cell.endswith("MISSED")
        for back in [2 if header[at - 1] == "ratio" else 1]
    ]


def plain_text(table: Sequence[Sequence[str]]) -> str:
    """Return a table for a terminal."""
    widths = [max(len(row[at]) for row in table) for at in range(len(table[0]))]
    lines = []
    for row in table:
        first = row[0].ljust(widths[0])
        lines.append("  ".join([first, *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]).rstrip())
    return "\n".join(lines)


def markdown(table: Sequence[Sequence[str]]) -> str:
    """Return a table for a page."""
    lines = ["| " + " | ".join(table[0]) + " |", "|---|---|" + "---:|" * (len(table[0]) - 2)]
    lines += ["| " + " | ".join(row) + " |" for row in table[1:]]
    return "\n".join(lines)
