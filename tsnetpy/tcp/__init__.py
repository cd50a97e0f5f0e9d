"""A sans-IO TCP engine: one connection, super-segments in and out, no addresses and no clock.

Start reading at :mod:`tsnetpy.tcp.connection`; the variables are in :mod:`tsnetpy.tcp.tcb`.
"""

from .config import TcpConfig
from .connection import Connection
from .cookies import SynCookies
from .listener import Listener
from .segment import Segment, rst_for
from .states import State
from .stats import TcpInfo
from .timewait import TimeWait

__all__ = ["Connection", "Listener", "Segment", "State", "SynCookies", "TcpConfig", "TcpInfo", "TimeWait", "rst_for"]
