"""The pump: the one owner of the data plane, and the border between the sans-IO core and tasks.

After *any* mutating call it does the same three things in the same order (base/engine.py): drain the events, send what
is pending, re-arm the timer. All of it is synchronous: received datagrams go from the underlay's reader straight into
the data plane, and an application's ``send()`` goes straight down to the underlay, because one task hop costs as much
as several packets; waiting is only for applications.
"""

from collections.abc import Callable, Sequence
from typing import Final, Protocol, cast, final

import anyio
from anyio.abc import TaskStatus

from tsnetpy.base.addr import IpBytes
from tsnetpy.base.instant import SECOND, Instant
from tsnetpy.base.packet import Buffer, PeerId
from tsnetpy.dataplane import DataPlane, DataPlaneConfig
from tsnetpy.ipstack import Socket, TcpSocket
from tsnetpy.runtime.clock import loop_clock, monotonic_ns, wall_ns
from tsnetpy.runtime.loop import Wakeup, call_soon, wakeups
from tsnetpy.runtime.underlay import PathId, Underlay
from tsnetpy.tcp import State

from .attributes import WhoIs

_ROUNDS: Final = 64
"""Rounds of sending in one turn; what is left waits for the timer task, so that one turn stays bounded."""
BREATH: Final = 1 << 18
"""After so many bytes sent, the event loop gets two turns before there are more.

In them what has come meanwhile is read: acknowledgments, and whatever else lives on this loop. A thousand connections
that begin at once would otherwise leave as one burst that no receive buffer holds, and those whose part of it is lost
wait for a retransmission while the others go on.
"""
_DELIVERED: Final = frozenset({State.CLOSED, State.FIN_WAIT_2, State.TIME_WAIT})
"""States in which the peer has acknowledged everything, our FIN included (RFC 9293 figure 5)."""
_SLACK: Final = 1_000_000
"""1 ms: how early a sleep may end and still count as the deadline."""


class Readable(Protocol):
    """What owns a socket of the stack and is told when it becomes ready."""

    def on_ready(self, bits: int) -> None:
        """Take note of readiness *bits* (see :mod:`tsnetpy.tcp.events`); runs between awaits and must not block."""
        ...


class EventSink(Protocol):
    """Takes the data plane's rare events (a handshake finished, a peer moved)."""

    def __call__(self, event: object) -> None:
        """Take one event; runs between awaits."""
        ...


@final
class Pump:
    """Drives one :class:`DataPlane` over one :class:`Underlay`.

    Attributes:
        dataplane: the engine; touch it on the event-loop thread only, between awaits, and call :meth:`turn` after.
        stack: its IP stack, for sockets.
        identify: tells who an address is; set by the node, so that streams can carry identities.
        turns: how often :meth:`turn` ran.
        wakeups: how often the timer task woke up; what keeps an idle node from sleeping shows here.
        sockets: TCP connections that an application has or had, until the stack forgets them.
        others: open listeners and UDP sockets.
        stopped: the node has ended; sockets raise ``ClosedResourceError``.
        wakeup: makes what a task waits for.
    """

    __slots__ = (
        "_again",
        "_armed",
        "_clock",
        "_corked",
        "_drain",
        "_failure",
        "_held",
        "_more",
        "_passed",
        "_running",
        "_scheduled",
        "_sent",
        "_sink",
        "_soon",
        "_turning",
        "_uncork_at",
        "_underlay",
        "_wake",
        "dataplane",
        "identify",
        "others",
        "sockets",
        "stack",
        "stopped",
        "turns",
        "wakeup",
        "wakeups",
    )

    def __init__(
        self,
        dataplane: DataPlane,
        underlay: Underlay,
        *,
        clock: Callable[[], Instant] = monotonic_ns,
        sink: EventSink | None = None,
    ) -> None:
        self.dataplane = dataplane
        self.stack = dataplane.stack
        self.identify: Callable[[IpBytes], WhoIs | None] = _nobody
        self.turns = 0
        self.wakeups = 0
        self.sockets: dict[TcpSocket, None] = {}
        self.others: set[Readable] = set()
        self.stopped = False
        self.wakeup: Callable[[], Wakeup] = anyio.Event
        self._underlay = underlay
        self._clock = clock
        self._sink = sink
        self._turning = False
        self._again = False
        self._more = False  # a turn ended with something left to send
        self._armed: Instant | None = None  # when the timer task will wake up at the latest
        self._wake: anyio.Event | None = None
        self._soon: Callable[[Callable[[], object]], object] | None = None
        self._scheduled = 0  # calls of _uncork asked for
        self._passed = 0  # calls of _uncork that took place
        self._corked = False  # what is sent now goes out with the call of that number
        self._uncork_at = 0
        self._sent = 0  # bytes since the event loop had a turn for sure
        self._held = False  # it is to have one now
        self._failure: Exception | None = None
        self._running = False
        self._drain: anyio.Event | None = None

    def now(self) -> Instant:
        """Return the present instant, as the data plane counts it."""
        return self._clock()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Fire the data plane's timers until cancelled."""
        if self._running:
            raise RuntimeError("the pump is already running")
        self._running = True
        self._soon = call_soon()
        self.wakeup = wakeups()
        if self._clock is monotonic_ns:
            self._clock = loop_clock()
        try:
            self.dataplane.wall_offset_ns = wall_ns() - self.now()
            self.turn(self.now())
            task_status.started()
            while True:
                await self._sleep()
                self.wakeups += 1
                if self._failure is not None:
                    raise self._failure
                # A sleep may end a moment early; a deadline that is handled "too early" would not be due and the
                # loop would spin.
                now = self.now()
                deadline = self.dataplane.next_deadline()
                if deadline is not None and deadline - now < _SLACK:
                    now = max(now, deadline)
                self.dataplane.wall_offset_ns = wall_ns() - now
                if deadline is not None and deadline <= now:
                    self.dataplane.handle_deadline(now)
                self.turn(now)
        finally:
            self._running = False
            self._soon = None
            self.wakeup = anyio.Event
            self._corked = self._held = False

    def deliver(self, batch: Sequence[Buffer], path: PathId, now: Instant) -> None:
        """Take datagrams from the underlay (its ``deliver`` callback)."""
        plane = self.dataplane
        plane.from_underlay(batch, path, now)
        # Only what arrives can call for an answer by its own path.
        for back, datagram in plane.take_path_outgoing():
            self._underlay.reply(cast("PathId", back), datagram)
        ready = self.stack.take_ready()
        _tell(ready)
        if len(ready) > 1 and self._soon is not None:
            self._scheduled += 1
            self._soon(self._let_others_run)
            self._cork()
        elif plane.pending or self._drain is not None:
            self.turn(now)
        else:
            self._arm(now)

    def flush(self, now: Instant) -> None:
        """Send what an application call left pending: at once, or with that of the tasks that run beside it.

        The first send in a turn of the event loop goes out directly, and so does one whose task was woken alone. Others
        wait for the end of the turn: one seal, one system call and one round through all layers for many small writes
        cost little more than for one.
        """
        if self._corked:
            return
        if self._passed < self._scheduled:
            self._cork()
            return
        if self._soon is not None:
            self._scheduled += 1
            self._soon(self._uncork)
        self.turn(now)

    def _cork(self) -> None:
        if not self._corked:
            self._corked = True
            self._uncork_at = self._scheduled  # fixed: what is scheduled after this must not put it off for ever

    def _let_others_run(self) -> None:
        """The tasks that were woken have run, but not yet those that they have woken."""
        if self._soon is not None:
            self._soon(self._uncork)
        else:
            self._uncork()

    def _uncork(self) -> None:
        self._passed += 1
        if self._corked and self._passed >= self._uncork_at:
            self._corked = False
            self._turn_from_loop()

    def _breathe(self) -> None:
        """One turn of the event loop has begun; the next is for what arrives, too: it takes in less than it sends."""
        if self._soon is not None:
            self._soon(self._breathed)

    def _breathed(self) -> None:
        if self._held:
            self._held = False
            self._turn_from_loop()

    def _turn_from_loop(self) -> None:
        try:
            self.turn(self._clock())
        except Exception as failure:  # run() raises it
            self._failure = failure
            if self._wake is not None:
                self._wake.set()

    def configure(self, config: DataPlaneConfig) -> None:
        """Apply a new configuration to the data plane."""
        now = self.now()
        self.dataplane.configure(config, now)
        self.turn(now)

    def set_burst(self, peer: PeerId, burst: int) -> None:
        """Take from the underlay how many datagrams may go to *peer* back to back (0: no limit)."""
        self.dataplane.set_path(peer, burst=burst)

    def set_blocked(self, blocked: bool) -> None:
        """Take from the underlay that the kernel takes no more, or again: TCP waits meanwhile instead of losing."""
        self.dataplane.set_blocked(blocked)
        if not blocked:
            self.turn(self._clock())

    def kick(self) -> None:
        """Run a turn now: send what application calls left pending, wake who became ready."""
        self.turn(self._clock())

    def turn(self, now: Instant) -> None:
        """Drain the events, send what is pending, wake the waiters, re-arm the timer."""
        if self._turning:
            # An underlay that delivers from inside send() (two nodes on one in-memory wire) lands here.
            self._again = True
            return
        if self._held:
            return
        self._turning = True
        self.turns += 1
        plane = self.dataplane
        send = self._underlay.send
        try:
            for _ in range(_ROUNDS):
                self._again = False
                while (event := plane.next_event()) is not None:
                    if self._sink is not None:
                        self._sink(event)
                for peer, batch in plane.to_underlay(now):
                    send(peer, batch)
                    self._sent += len(batch.data)
                if not self._again and not plane.pending:
                    break
                if self._sent >= BREATH and self._soon is not None:
                    self._sent = 0
                    self._held = True
                    self._soon(self._breathe)
                    break
            else:
                self._more = True
            _tell(self.stack.take_ready())
            if self._drain is not None and not self._undelivered():
                self._drain.set()
        finally:
            self._turning = False
        self._arm(now)

    def _arm(self, now: Instant) -> None:
        """Wake the timer task if it would sleep too long."""
        deadline = self.dataplane.next_deadline()
        # Deadlines mostly move later (each ACK pushes the retransmission timer out). Only an earlier one is worth
        # waking the timer task for; the others are noticed when it wakes up anyway.
        if self._more or (deadline is not None and (self._armed is None or deadline < self._armed)):
            self._armed = now if self._more else deadline
            if self._wake is not None:
                self._wake.set()

    async def close(self, drain_s: float) -> None:
        """Close every socket, and wait up to *drain_s* seconds until the peers have what was sent to them."""
        now = self.now()
        for socket in list(self.sockets):
            socket.close(now)
        self._drain = anyio.Event()
        self.turn(now)
        with anyio.move_on_after(drain_s):
            await self._drain.wait()
        self.stop()

    def stop(self) -> None:
        """Wake everybody who waits for a socket; from now on they raise ``ClosedResourceError``."""
        self.stopped = True
        for owner in [socket.owner for socket in self.sockets] + list(self.others):
            cast("Readable", owner).on_ready(-1)

    @property
    def closing(self) -> bool:
        """Whether the node is about to end, or has: what is being connected will not come about."""
        return self.stopped or self._drain is not None

    def _undelivered(self) -> bool:
        # A peer that has left the network map can take nothing any more.
        route = self.dataplane.peer_for_ip
        return any(
            socket.connection.state not in _DELIVERED and route(socket.remote.ip) is not None for socket in self.sockets
        )

    async def _sleep(self) -> None:
        if self._more:
            self._more = False
            await anyio.lowlevel.checkpoint()
            return
        deadline = self.dataplane.next_deadline()
        self._armed = deadline
        self._wake = anyio.Event()
        try:
            with anyio.move_on_after(None if deadline is None else max(0, deadline - self._clock()) / SECOND):
                await self._wake.wait()
        finally:
            self._wake = None


def _tell(ready: list[tuple[Socket, int]]) -> None:
    """Wake the owners of sockets that something became true of."""
    for socket, bits in ready:
        owner = socket.owner
        if owner is not None:
            # Only this layer sets owners; the stack knows them as objects.
            cast("Readable", owner).on_ready(bits)


def _nobody(ip: IpBytes) -> WhoIs | None:
    return None
