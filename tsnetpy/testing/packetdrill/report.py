"""Runs many scripts and says how they went."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from tsnetpy.base.instant import Duration

from .runner import DEFINES, Result, run_file
from .settings import VARIANTS, Variant


def find_scripts(paths: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """Yield (name to show, file) for every script in *paths*: files, or folders that are searched for ``*.pkt``."""
    for path in paths:
        if path.is_dir():
            for found in sorted(path.rglob("*.pkt")):
                yield str(found.relative_to(path)), found
        else:
            yield path.name, path


def run_all(
    paths: Iterable[Path],
    variants: Iterable[Variant] = VARIANTS[:1],
    defines: Mapping[str, str] = DEFINES,
    tolerance: Duration = 0,
) -> list[Result]:
    """Run every script in *paths* in each of *variants*."""
    chosen = list(variants)
    results: list[Result] = []
    for name, path in find_scripts(paths):
        for variant in chosen:
            result = run_file(path, variant, defines, tolerance)
            results.append(replace(result, name=name))
    return results


def table(results: Iterable[Result], *, with_passes: bool = True, with_traces: bool = False) -> str:
    """Return *results* as lines of text, with the counts at the end; traces are those of failures."""
    rows = list(results)
    width = max((len(row.name) for row in rows), default=0)
    kind = max((len(row.variant) for row in rows), default=0)
    lines: list[str] = []
    for row in rows:
        if row.status == "pass" and not with_passes:
            continue
        where = f"line {row.line}: " if row.line else ""
        lines.append(f"{row.name:<{width}}  {row.variant:<{kind}}  {row.status}  {where}{row.reason}".rstrip())
        if with_traces and row.status == "fail":
            lines += [f"    {line}" for line in row.trace]
    for variant in dict.fromkeys(row.variant for row in rows):
        counts = {s: sum(r.variant == variant and r.status == s for r in rows) for s in ("pass", "fail", "skip")}
        lines.append(f"{variant}: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
    return "\n".join(lines) + "\n"
