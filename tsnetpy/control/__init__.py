"""Talking to a coordination server: dial, register, long poll.

Read :mod:`.client` first; :mod:`.dial` says how the server is reached.
"""

from .client import ControlClient, ControlConfig
from .hostinfo import default_hostinfo
from .status import ControlState, ControlStatus

__all__ = ["ControlClient", "ControlConfig", "ControlState", "ControlStatus", "default_hostinfo"]
