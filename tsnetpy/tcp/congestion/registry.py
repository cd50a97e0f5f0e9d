"""Names of congestion controls: an explicit table, so that importing a module never changes behaviour."""

from tsnetpy.base.errors import ConfigError

from .base import CongestionControl
from .reno import Reno


def create(name: str, mss: int, initial_packets: int) -> CongestionControl:
    """Return a fresh congestion control.

    Raises:
        ConfigError: no algorithm has that name.
    """
    if name == "reno":
        return Reno(mss, initial_packets)
    raise ConfigError(f"unknown congestion control {name!r}", hint='use "reno"')
