"""The narrow door for per-byte work: pure functions of bytes with a pure-Python form that is the specification.

``ops`` is the implementation in use and ``ops.name`` says which. The environment variable ``TSNETPY_ACCEL`` chooses,
once, at import: ``auto`` (the default: native if a fitting one is installed, else pure), ``pure`` or ``native``.
"""

import os  # one environment variable, read at import; nothing else in the core touches the operating system
from typing import Final

from ._api import ABI as ABI
from ._api import PacketOps as PacketOps
from ._api import TransportKey as TransportKey
from ._select import VARIABLE
from ._select import AccelError as AccelError
from ._select import select as select

ops: Final[PacketOps] = select(os.environ.get(VARIABLE, "auto"))
