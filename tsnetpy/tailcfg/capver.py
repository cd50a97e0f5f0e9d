"""The capability version: one number in the Noise header, in ``/key?v=`` and in every request."""

from typing import Final

CAPABILITY_VERSION: Final = 117
"""What this client claims.

Headscale refuses less than 113. 117 promises DisplayMessages, which :mod:`tsnetpy.ts2021.netmap` applies; from 121 on
peers would take this node for one that understands peer relays, which it does not.
"""

MIN_SUPPORTED: Final = 68
"""The oldest client that the coordinator serves: from 68 a streaming map request reads only."""
