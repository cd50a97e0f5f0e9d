"""Which code runs: the sources, or (``make compiled``) the modules that mypyc made of them.

Shared objects left over beside the sources would be imported first and make every other test lie, so both directions
are asserted.
"""

import importlib
import os
import pathlib

import pytest

from tests.test_architecture import PURE

ROOT = pathlib.Path(__file__).parents[1]
COMPILED = os.environ.get("TSNETPY_EXPECT_COMPILED") == "1"
INTERPRETED = {"tsnetpy.base.errors"}  # tools/compile_core.py has the reasons; initialisers only re-export


def core_modules() -> list[str]:
    """Return the names of all modules of the sans-IO core that mypyc compiles."""
    names = []
    for package in sorted(PURE - {"tailcfg"}):  # msgspec Structs come from a metaclass
        for path in sorted((ROOT / "tsnetpy" / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            if path.name != "__init__.py" and name not in INTERPRETED:
                names.append(name)
    return names


@pytest.mark.parametrize("name", core_modules())
def test_module_in_use(name: str) -> None:
    module = importlib.import_module(name)
    file = module.__file__
    assert file is not None
    assert pathlib.Path(file).is_relative_to(ROOT)
    assert file.endswith(".so" if COMPILED else ".py")


def test_status_says_which() -> None:
    from tsnetpy.node.status import is_compiled

    assert is_compiled() is COMPILED


def test_compiled_functions_are_native() -> None:
    from tsnetpy.tcp.connection import Connection
    from tsnetpy.wg.device import Device

    for method in (Connection.receive_segment, Connection.segments_to_send, Device.receive):
        assert hasattr(method, "__code__") is not COMPILED
