"""Chooses the implementation."""

import importlib
from typing import Final, cast

from tsnetpy.base.errors import ConfigError

from ._api import ABI, PacketOps
from .pure import PureOps

VARIABLE: Final = "TSNETPY_ACCEL"
NATIVE_MODULE: Final = "tsnetpy_native"


class AccelError(ConfigError):
    """``TSNETPY_ACCEL`` asks for something that is not there."""


def select(mode: str, module: str = NATIVE_MODULE) -> PacketOps:
    """Return the implementation for *mode*.

    Args:
        mode: ``auto``, ``pure`` or ``native``.
        module: where a native implementation would live: a module with ``ABI`` and ``ops``.

    Raises:
        AccelError: unknown mode, or ``native`` and there is none that fits. ``auto`` falls back to pure instead.
    """
    if mode == "pure":
        return PureOps()
    if mode not in ("auto", "native"):
        raise AccelError(f"{VARIABLE}={mode!r} is none of auto, pure, native")
    problem: str
    try:
        native = importlib.import_module(module)
    except ImportError:
        problem = f"{module} is not installed"
    else:
        abi: object = getattr(native, "ABI", None)
        if abi == ABI:
            return cast("PacketOps", native.ops)
        problem = f"{module} has interface {abi!r}, this version needs {ABI}"
    if mode == "native":
        raise AccelError(problem, hint=f"Unset {VARIABLE}, or set it to pure or auto.")
    return PureOps()
