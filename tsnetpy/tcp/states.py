"""The states of RFC 9293 §3.3.2. LISTEN is a :class:`~tsnetpy.tcp.listener.Listener` and not a connection's state."""

from enum import Enum
from typing import Final


class State(Enum):
    """Where a connection stands."""

    CLOSED = "CLOSED"
    SYN_SENT = "SYN-SENT"
    SYN_RECEIVED = "SYN-RECEIVED"
    ESTABLISHED = "ESTABLISHED"
    FIN_WAIT_1 = "FIN-WAIT-1"
    FIN_WAIT_2 = "FIN-WAIT-2"
    CLOSE_WAIT = "CLOSE-WAIT"
    CLOSING = "CLOSING"
    LAST_ACK = "LAST-ACK"
    TIME_WAIT = "TIME-WAIT"


CAN_RECEIVE: Final = frozenset({State.ESTABLISHED, State.FIN_WAIT_1, State.FIN_WAIT_2})
"""States in which the peer's data is new data (RFC 9293 §3.10.7.4, seventh)."""

CAN_TRANSMIT: Final = frozenset({State.ESTABLISHED, State.CLOSE_WAIT, State.FIN_WAIT_1, State.CLOSING, State.LAST_ACK})
"""States in which this side may still have data or a FIN to (re)transmit."""

FIN_SENT: Final = frozenset({State.FIN_WAIT_1, State.CLOSING, State.LAST_ACK})
"""States that wait for the acknowledgment of our FIN."""

HANDSHAKE: Final = frozenset({State.SYN_SENT, State.SYN_RECEIVED})
"""States before ESTABLISHED."""
