"""Go's ``time.Time`` in JSON: RFC 3339, where the year 1 means "not set" and is sent all the same."""

from datetime import UTC, datetime, timedelta
from typing import Final

from tsnetpy.base.instant import SECOND

GO_ZERO: Final = datetime(1, 1, 1, tzinfo=UTC)
"""``time.Time{}``, on the wire ``0001-01-01T00:00:00Z``."""

LOGOUT_EXPIRY: Final = datetime(1970, 1, 1, 0, 2, 3, tzinfo=UTC)
"""A moment in the past (Unix time 123, as the official client sends): as ``RegisterRequest.Expiry`` it logs out."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def is_zero(moment: datetime | None) -> bool:
    """Tell whether *moment* is absent or Go's zero time. Some encoders give the zero time a zone: the year decides."""
    return moment is None or moment.year <= 1


def to_wall_ns(moment: datetime) -> int:
    """Return *moment* as nanoseconds since the Unix epoch."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return ((moment - _EPOCH) // _MICROSECOND) * 1000


def from_wall_ns(wall_ns: int) -> datetime:
    """Return the UTC time at *wall_ns* nanoseconds since the Unix epoch (kept to the microsecond)."""
    return _EPOCH + timedelta(seconds=wall_ns // SECOND, microseconds=wall_ns % SECOND // 1000)


def is_past(moment: datetime | None, wall_ns: int) -> bool:
    """Tell whether *moment* is set and not after *wall_ns*. The zero time is never past: it means "none"."""
    return moment is not None and not is_zero(moment) and to_wall_ns(moment) <= wall_ns
