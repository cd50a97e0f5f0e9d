"""TAI64N timestamps, which keep a recorded initiation from being replayed (whitepaper section 5.1)."""

from typing import Final, final

from tsnetpy.base.instant import SECOND

SIZE: Final = 12
_EPOCH: Final = 0x400000000000000A
_STEP: Final = 1 << 24
"""The low 24 bits of the nanoseconds stay zero, so that the exact time is no side channel: steps of 16.8 ms."""

NEVER: Final = -SECOND
"""No timestamp has been sent yet."""


def stamp(wall_ns: int) -> bytes:
    """Return the timestamp of *wall_ns*, nanoseconds since 1970."""
    whole, nanos = divmod(max(wall_ns, 0), SECOND)
    return (_EPOCH + whole).to_bytes(8, "big") + (nanos & ~(_STEP - 1)).to_bytes(4, "big")


@final
class Tai64nClock:
    """Timestamps for one peer. Each is greater than the one before, even if the wall clock stalls or steps back.

    Args:
        last_ns: what the first one must be greater than.

    Attributes:
        last_ns: the time of the last timestamp, nanoseconds since 1970; negative before the first.
    """

    __slots__ = ("last_ns",)

    def __init__(self, last_ns: int = NEVER) -> None:
        self.last_ns = last_ns

    def next(self, wall_ns: int) -> bytes:
        """Return the timestamp to send at *wall_ns*."""
        if stamp(wall_ns) <= stamp(self.last_ns) and self.last_ns >= 0:
            wall_ns = self.last_ns + _STEP
        self.last_ns = wall_ns
        return stamp(wall_ns)
