"""Names of congestion controls: an explicit table, so that importing a module never changes behaviour."""

from collections.abc import Callable
from typing import Final

from tsnetpy.base.errors import ConfigError

from .base import CongestionControl
from .cubic import Cubic
from .reno import Reno

REGISTRY: Final[dict[str, Callable[[int, int], CongestionControl]]] = {"cubic": Cubic, "reno": Reno}
"""Name to constructor; its arguments are the packet size in bytes and the initial window in packets."""


def create(name: str, mss: int, initial_packets: int) -> CongestionControl:
    """Return a fresh congestion control.

    Raises:
        ConfigError: no algorithm has that name.
    """
    make = REGISTRY.get(name)
    if make is None:
        known = " or ".join(f'"{known}"' for known in REGISTRY)
        raise ConfigError(f"unknown congestion control {name!r}", hint=f"use {known}")
    return make(mss, initial_packets)
