"""What a process does at rest, seen from outside: how often it wakes up, and its processor time."""

import pathlib
from dataclasses import dataclass
from typing import Final, Self

PROC: Final = pathlib.Path("/proc")


@dataclass(frozen=True, slots=True)
class Activity:
    """What a process has done since it began.

    Attributes:
        wake_ups: how often a thread of it went to sleep of its own will, and so woke up again
            (``voluntary_ctxt_switches`` of proc(5)).
        cpu_ns: processor time of its threads (``schedstat``).
    """

    wake_ups: int
    cpu_ns: int

    @classmethod
    def of(cls, pid: int, proc: pathlib.Path = PROC) -> Self:
        """Read the counters of a running process; threads that have ended do not count."""
        wake_ups = cpu_ns = 0
        for task in (proc / str(pid) / "task").iterdir():
            try:
                status = (task / "status").read_text(encoding="ascii", errors="replace")
                cpu_ns += int((task / "schedstat").read_text(encoding="ascii").split()[0])
            except (FileNotFoundError, ProcessLookupError):  # ended just now
                continue
            wake_ups += next(int(line.split()[1]) for line in status.splitlines() if line.startswith("voluntary"))
        return cls(wake_ups, cpu_ns)

    def a_minute(self, before: Self, seconds: float) -> tuple[float, float]:
        """Return wake-ups, and milliseconds of processor time, in a minute, if *before* is *seconds* ago."""
        per_minute = 60 / seconds
        return (self.wake_ups - before.wake_ups) * per_minute, (self.cpu_ns - before.cpu_ns) * 1e-6 * per_minute
