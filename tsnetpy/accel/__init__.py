"""The narrow door for per-byte work: pure functions of bytes with a pure-Python form that is the specification.

``ops`` is the implementation in use and ``ops.name`` says which. The environment variable ``TSNETPY_ACCEL`` chooses:
``auto`` (the default: native if a fitting one is installed, else pure), ``pure`` or ``native``.
"""

from ._api import ABI as ABI
from ._api import PacketOps as PacketOps
from ._api import TransportKey as TransportKey
from ._select import AccelError as AccelError
from ._select import ops as ops
from ._select import select as select
