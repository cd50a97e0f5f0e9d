"""Time inside the engines: integer nanoseconds on a monotonic clock that the caller reads."""

from typing import Final, TypeAlias

Instant: TypeAlias = int
"""A point on the monotonic clock, in nanoseconds since an arbitrary origin."""

Duration: TypeAlias = int
"""A span of time in nanoseconds."""

NANOSECOND: Final = 1
MICROSECOND: Final = 1_000
MILLISECOND: Final = 1_000_000
SECOND: Final = 1_000_000_000


def ms(value: float) -> Duration:
    """Return *value* milliseconds as nanoseconds."""
    return round(value * MILLISECOND)


def seconds(value: float) -> Duration:
    """Return *value* seconds as nanoseconds."""
    return round(value * SECOND)


def earliest(a: Instant | None, b: Instant | None) -> Instant | None:
    """Return the earlier of two deadlines; ``None`` means "no deadline"."""
    if a is None:
        return b
    if b is None or a <= b:
        return a
    return b
