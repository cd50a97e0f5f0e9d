"""What happens when the kernel takes no more datagrams: they are kept, the owner is told, and sent on later.

The owner is asked to wait for a second at most. A way out that stays shut longer is as good as a cut cable, and then
what is sent has to be lost for the timers above to notice.
"""

from collections.abc import Callable, Sequence
from typing import Final, Protocol, final

import anyio

from .queues import Kick

HOLD_S: Final = 1.0


class Keeper(Protocol):
    """A socket that keeps what the kernel does not take (:class:`.udp.UdpSocket`)."""

    @property
    def has_pending(self) -> bool:
        """Whether it keeps anything."""
        ...

    async def wait_writable(self) -> None:
        """Wait until the kernel takes data."""
        ...

    def flush(self) -> bool:
        """Send what was kept; return whether nothing is left."""
        ...


@final
class Flusher:
    """Watches the sockets of one port.

    Attributes:
        on_blocked: told True when the kernel takes no more, False when it does again or the wait was in vain.
    """

    __slots__ = ("_blocked", "_kick", "_stuck", "on_blocked")

    def __init__(self) -> None:
        self._kick = Kick()
        self._blocked = False
        self._stuck = False
        self.on_blocked: Callable[[bool], None] | None = None

    def note_pending(self) -> None:
        """A socket keeps datagrams that the kernel did not take."""
        if not self._stuck:
            self._note(True)
        self._kick.kick()

    async def run(self, sockets: Sequence[Keeper]) -> None:
        """Send what the sockets keep, as soon as they take it, until cancelled."""
        try:
            while True:
                await self._kick.wait()
                for sock in sockets:
                    while sock.has_pending:
                        with anyio.move_on_after(HOLD_S) as scope:
                            await sock.wait_writable()
                        if scope.cancelled_caught:
                            self._stuck = True
                            self._note(False)
                            await sock.wait_writable()
                        sock.flush()
                self._stuck = False
                self._note(False)
        finally:
            self._stuck = False
            self._note(False)  # what a closed port had kept is gone

    def _note(self, blocked: bool) -> None:
        if blocked != self._blocked:
            self._blocked = blocked
            if self.on_blocked is not None:
                self.on_blocked(blocked)
