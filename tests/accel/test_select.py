"""Which implementation is chosen, and how loudly a wrong choice fails."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from tsnetpy.accel import ABI, AccelError, ops, select
from tsnetpy.accel.pure import PureOps

ABSENT = "tsnetpy_native_that_is_not_there"


def test_pure_and_auto() -> None:
    assert select("pure").name == "pure"
    assert select("auto", ABSENT).name == "pure"
    assert ops.name in ("pure", "native")


def test_native_is_never_silently_replaced() -> None:
    with pytest.raises(AccelError) as caught:
        select("native", ABSENT)
    assert ABSENT in str(caught.value)
    assert "TSNETPY_ACCEL" in caught.value.hint


def test_unknown_mode() -> None:
    with pytest.raises(AccelError):
        select("fast")


@pytest.mark.parametrize(("abi", "fits"), [(ABI, True), (ABI + 1, False), (None, False)])
def test_interface_number_decides(monkeypatch: pytest.MonkeyPatch, abi: int | None, fits: bool) -> None:
    module = types.ModuleType("stand_in")
    native = PureOps()
    vars(module).update(ops=native, **({} if abi is None else {"ABI": abi}))
    monkeypatch.setitem(sys.modules, "stand_in", module)
    assert (select("auto", "stand_in") is native) == fits
    if not fits:
        with pytest.raises(AccelError, match="interface"):
            select("native", "stand_in")


def test_the_environment_variable_is_read_at_import() -> None:
    root = Path(__file__).parents[2]
    environ = {**os.environ, "PYTHONPATH": str(root), "TSNETPY_ACCEL": "nonsense"}
    done = subprocess.run(
        [sys.executable, "-c", "import tsnetpy.accel"], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "AccelError" in done.stderr
