"""Recorded control messages, by file name without its number."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "data" / "control"


def names() -> list[str]:
    """All recordings in the order they were made."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str) -> Any:
    """The parsed recording *name* (with or without its number)."""
    (path,) = FOLDER.glob(f"*{name}.json")
    return json.loads(path.read_bytes())


def raw(value: object) -> bytes:
    """*value* as JSON text."""
    return json.dumps(value).encode()
