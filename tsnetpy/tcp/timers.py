"""All timers of a connection: a list of deadlines under small int names, with one earliest.

Arming is a list store and nothing more, so the retransmission timer can move on every ACK for free. The owner keeps
one heap for all connections and tolerates that a deadline moved later (it calls ``handle_deadline`` once too early).
"""

from typing import Final, final

from tsnetpy.base.instant import Instant

NEVER: Final = 1 << 62

RETRANSMIT: Final = 0
"""RFC 6298, for data, FIN, SYN and SYN-ACK alike; before it, the tail loss probe of RFC 8985 §7."""
DELAYED_ACK: Final = 1
PERSIST: Final = 2
"""Zero-window probe (RFC 9293 §3.8.6.1) and the override of sender SWS avoidance."""
KEEPALIVE: Final = 3
USER_TIMEOUT: Final = 4
"""Give up on unacknowledged data (RFC 5482)."""
LINGER: Final = 5
"""After close(): an orphan without progress is reset."""
TIME_WAIT: Final = 6
REORDER: Final = 7
"""RACK's reordering window closes (RFC 8985 §6.2 step 5)."""
PACING: Final = 8
"""The next super-segment may go out."""
CORK: Final = 9
"""What a cork holds back goes out all the same."""
_COUNT: Final = 10


@final
class Timers:
    """The deadlines of one connection; ``at[NAME]`` is an instant or :data:`NEVER`."""

    __slots__ = ("at",)

    def __init__(self) -> None:
        self.at: list[int] = [NEVER] * _COUNT

    def earliest(self) -> Instant | None:
        """Return the next deadline of all, or ``None``."""
        first = min(self.at)
        return None if first == NEVER else first

    def stop_all(self) -> None:
        """Disarm everything, in place: callers hold the list while timers run."""
        self.at[:] = [NEVER] * _COUNT
