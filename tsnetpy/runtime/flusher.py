"""What happens when the kernel takes no more datagrams: they are kept, the owner is told, and sent on later.

The owner is asked to wait for a second at most. A way out that stays shut longer is as good as a cut cable, and then
what is sent has to be lost for the timers above to notice.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final, Protocol, final

import anyio

from .queues import Kick

HOLD_S: Final = 1.0
RETRY_S: Final = 0.001
"""A pause where the kernel says "writable" and takes nothing all the same (``ENOBUFS``: a queue behind the socket)."""


class Keeper(Protocol):
    """A socket that keeps what the kernel does not take (:class:`.udp.UdpSocket`)."""

    on_pending: Callable[[], None] | None

    @property
    def pending(self) -> int:
        """How much it keeps."""
        ...

    async def wait_writable(self) -> None:
        """Wait until the kernel takes data."""
        ...

    def flush(self) -> bool:
        """Send what was kept; return whether nothing is left."""
        ...


@final
class Flusher:
    """Watches the sockets of one port, each by itself: one family's way out may be shut while the other's is open.

    Attributes:
        on_blocked: told True when the kernel takes no more, False when it does again or the wait was in vain.
    """

    __slots__ = ("_waiting", "on_blocked")

    def __init__(self) -> None:
        self._waiting = 0  # sockets for which the owner waits
        self.on_blocked: Callable[[bool], None] | None = None

    async def run(self, sockets: Sequence[Keeper]) -> None:
        """Send what the sockets keep, as soon as they take it, until cancelled."""
        async with anyio.create_task_group() as group:
            for sock in sockets:
                group.start_soon(_Watch(sock, self._note).run)

    def release(self) -> None:
        """Have the owner wait for these sockets no more, now or later: it sends by others."""
        tell, self.on_blocked = self.on_blocked, None
        if self._waiting and tell is not None:
            tell(False)

    def _note(self, shut: bool) -> None:
        before = self._waiting
        self._waiting += 1 if shut else -1
        if not (before and self._waiting) and self.on_blocked is not None:
            self.on_blocked(shut)


@final
class _Watch:
    """What is known of one socket."""

    __slots__ = ("_kick", "_note", "_shut", "_sock", "_stuck")

    def __init__(self, sock: Keeper, note: Callable[[bool], None]) -> None:
        self._sock = sock
        self._note = note
        self._kick = Kick()
        self._shut = False  # the owner was asked to wait
        self._stuck = False  # in vain

    async def run(self) -> None:
        sock = self._sock
        sock.on_pending = self._on_pending
        if sock.pending:
            self._on_pending()
        try:
            while True:
                await self._kick.wait()
                await self._flush()
                self._stuck = False
                self._set_shut(False)
        finally:
            sock.on_pending = None
            self._set_shut(False)  # what a closed port had kept is gone

    async def _flush(self) -> None:
        sock = self._sock
        deadline = anyio.current_time() + HOLD_S
        while left := sock.pending:
            with anyio.CancelScope(deadline=math.inf if self._stuck else deadline) as scope:
                await sock.wait_writable()
            if scope.cancelled_caught:
                self._stuck = True
                self._set_shut(False)
            elif sock.flush() or sock.pending < left:
                deadline = anyio.current_time() + HOLD_S
            else:
                await anyio.sleep(RETRY_S)

    def _on_pending(self) -> None:
        if not self._stuck:
            self._set_shut(True)
        self._kick.kick()

    def _set_shut(self, shut: bool) -> None:
        if shut != self._shut:
            self._shut = shut
            self._note(shut)
