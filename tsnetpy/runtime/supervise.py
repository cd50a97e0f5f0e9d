"""Named long-lived tasks that are restarted with growing pauses when they fail.

Only this module catches ``Exception`` around other people's work: it counts, logs and restarts. Cancellation always
passes through.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import final

import anyio

from tsnetpy.base.entropy import Entropy, SystemEntropy
from tsnetpy.base.instant import MILLISECOND, SECOND, Duration

from .clock import monotonic_ns

_log = logging.getLogger(__name__)


@final
class Backoff:
    """Pauses between attempts: *initial*, then *factor* times more each time, at most *maximum*.

    Each pause is drawn uniformly from the upper half of its span, so that many nodes which lost the same server do
    not come back in step.
    """

    __slots__ = ("_entropy", "_factor", "_initial", "_maximum", "attempts")

    def __init__(
        self,
        initial: Duration = 100 * MILLISECOND,
        maximum: Duration = 5 * SECOND,
        factor: float = 2.0,
        entropy: Entropy | None = None,
    ) -> None:
        self._initial = initial
        self._maximum = maximum
        self._factor = factor
        self._entropy = entropy if entropy is not None else SystemEntropy()
        self.attempts = 0

    def next_pause(self) -> Duration:
        """Return the pause before the next attempt and count the attempt."""
        # The exponent is capped so that a node offline for a week does not overflow a float.
        span = min(float(self._maximum), self._initial * self._factor ** min(self.attempts, 64))
        self.attempts += 1
        return int(span * (0.5 + self._entropy.u32() / 2**33))

    def reset(self) -> None:
        """Start again at the initial pause (call after a success)."""
        self.attempts = 0


@dataclass(slots=True)
class TaskHealth:
    """How a supervised task fares."""

    name: str
    restarts: int = 0
    """Times it was started again after a failure."""
    last_error: str = ""
    """The last failure in words, or ``""``."""
    running: bool = False


@final
class Supervisor:
    """Runs named tasks in a task group of the caller and restarts those that raise."""

    def __init__(self) -> None:
        self._health: dict[str, TaskHealth] = {}

    @property
    def health(self) -> Mapping[str, TaskHealth]:
        """Task name to its health; tasks that ended normally stay listed."""
        return self._health

    async def run(
        self,
        name: str,
        work: Callable[[], Awaitable[None]],
        *,
        backoff: Backoff | None = None,
        healthy_after: Duration = 30 * SECOND,
        fatal: tuple[type[Exception], ...] = (),
    ) -> None:
        """Await ``work()`` until it returns; after an exception wait and call it again.

        Args:
            name: for logs and :attr:`health`.
            work: called anew for each attempt.
            backoff: pauses between attempts; reset once an attempt lasted *healthy_after*.
            healthy_after: nanoseconds after which an attempt counts as a success.
            fatal: exceptions that are passed on instead of restarted.
        """
        health = self._health.setdefault(name, TaskHealth(name))
        pauses = backoff if backoff is not None else Backoff()
        while True:
            started = monotonic_ns()
            health.running = True
            try:
                await work()
                return
            except fatal:
                raise
            except Exception as error:
                health.last_error = f"{type(error).__name__}: {error}"
                health.restarts += 1
                if monotonic_ns() - started >= healthy_after:
                    pauses.reset()
                pause = pauses.next_pause()
                _log.warning(
                    "%s failed (%s), again in %.1f s", name, health.last_error, pause / SECOND, exc_info=_debugging()
                )
            finally:
                health.running = False
            await anyio.sleep(pause / SECOND)


def _debugging() -> bool:
    return _log.isEnabledFor(logging.DEBUG)


def single_failure(error: BaseException) -> BaseException:
    """Return the one exception inside nested exception groups, or *error* itself if there are several or no groups."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
