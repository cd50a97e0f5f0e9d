"""The contract every sans-IO engine shares.

After *any* mutating call the owner does the same three things in the same order: drain the events, send what is
pending, re-arm the timer.
"""

from typing import Protocol

from .instant import Instant


class Engine(Protocol):
    """Bytes and time in; bytes, events and the next deadline out."""

    def next_deadline(self) -> Instant | None:
        """Return when :meth:`handle_deadline` wants to be called, or ``None`` for never."""
        ...

    def handle_deadline(self, now: Instant) -> None:
        """Run every timer that is due at *now*; calling early or often is harmless."""
        ...

    def next_event(self) -> object | None:
        """Return the oldest event not yet taken, or ``None`` when drained."""
        ...
