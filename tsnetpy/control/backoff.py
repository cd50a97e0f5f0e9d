"""Pauses between attempts to reach the coordination server."""

from typing import Final, final

from tsnetpy.base.entropy import Entropy
from tsnetpy.base.instant import MILLISECOND, SECOND, Duration

STEP: Final = 10 * MILLISECOND
MAXIMUM: Final = 30 * SECOND


@final
class ControlBackoff:
    """Grows with the square of the attempts, as the official client's does, up to 30 s.

    Each pause is drawn from zero to twice that ("full jitter"), so that a server that comes back does not meet all of
    its nodes at once.
    """

    __slots__ = ("_entropy", "attempts")

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy
        self.attempts = 0

    def next_pause(self) -> Duration:
        """Count a failure and return the pause after it, in nanoseconds."""
        self.attempts += 1
        span = 2 * min(MAXIMUM, self.attempts * self.attempts * STEP)
        return span * self._entropy.u32() >> 32

    def reset(self) -> None:
        """Forget the failures."""
        self.attempts = 0
