"""Says which numbers of ``docs/checklist.md`` have no test: ``python tools/checklist.py`` (``make checklist``).

Tests carry numbers as ``pytest.mark.checklist(1, 2)`` and ``pytest.mark.attack(3)``: on a function, a class, a
parameter or a module. They are found in the source, so nothing is imported or run. The exit status is 1 if a number has
neither a test nor a reason, if a test carries a number that does not exist, or if a reason is out of date.
"""

import argparse
import ast
import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("checklist", "attack")
_ROW = re.compile(r"\|\s*(\d+)\s*\|(.*)\|([^|]*)\|\s*$")


def read_table(path: Path) -> dict[str, dict[int, tuple[str, str]]]:
    """Return kind to number to (text, reason for having no test)."""
    tables: dict[str, dict[int, tuple[str, str]]] = {kind: {} for kind in KINDS}
    kind = KINDS[0]
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            kind = KINDS[1] if "ttack" in line else KINDS[0]
        row = _ROW.match(line)
        if row is not None:
            tables[kind][int(row[1])] = (row[2].strip(), row[3].strip())
    return tables


def marks_in(source: str) -> list[tuple[str, int, int]]:
    """Return (kind, number, line) of every numbered mark in *source*."""
    found: list[tuple[str, int, int]] = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr not in KINDS:
            continue
        owner = node.func.value
        if isinstance(owner, ast.Attribute) and owner.attr == "mark":
            numbers = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, int)]
            found += [(node.func.attr, number, node.lineno) for number in numbers]
    return found


def main() -> int:
    """Print what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-v", "--verbose", action="store_true", help="list the tests of every number")
    options = parser.parse_args()
    tables = read_table(ROOT / "docs" / "checklist.md")
    where: dict[tuple[str, int], list[str]] = defaultdict(list)
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for kind, number, line in marks_in(path.read_text(encoding="utf-8")):
            where[kind, number].append(f"{path.relative_to(ROOT)}:{line}")

    bad = 0
    for kind, rows in tables.items():
        missing = 0
        for number, (text, reason) in rows.items():
            places = where.pop((kind, number), [])
            if options.verbose and places:
                print(f"{kind} {number}: {', '.join(places)}")
            if not places:
                missing += 1
                bad += not reason
                print(f"{kind} {number}: {text}: {reason or 'NO TEST'}")
            elif reason:
                bad += 1
                print(f"{kind} {number}: has a test ({places[0]}), but also a reason for having none")
        print(f"{kind}: {len(rows) - missing} of {len(rows)} have a test")
    for (kind, number), places in where.items():
        bad += 1
        print(f"{kind} {number}: no such number ({', '.join(places)})")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
