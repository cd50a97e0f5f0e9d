"""The page about the testing kit: every block of Python on it runs, and every module that it names is there."""

import importlib
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "testing-kit.md").read_text(encoding="utf-8")
BLOCKS = [
    pytest.param(code, id=title.strip().lower().replace(" ", "-"), marks=[pytest.mark.loopback] * ("Tailnet" in code))
    for title, section in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    for code in re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)
]


@pytest.mark.parametrize("code", BLOCKS)
def test_every_block_runs(code: str) -> None:
    exec(compile(code, "docs/testing-kit.md", "exec"), {"__name__": "example"})


def test_every_module_is_there() -> None:
    names = re.findall(r"^\| `(tsnetpy[\w.]+)` \|", PAGE, re.M)
    assert len(names) == 10
    for name in names:
        assert importlib.import_module(name).__name__ == name
