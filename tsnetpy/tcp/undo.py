"""Was the retransmission needless? Three ways to find out, and what to put back.

Eifel (RFC 3522): the echoed timestamp is older than the retransmission, so the original arrived. DSACK (RFC 2883,
RFC 3708): everything that was sent again had been there already. F-RTO (RFC 5682): after a timeout, let new data show
whether the old is still arriving. Delay spikes are common here: a path moves from a relay to a direct one and back.
"""

from typing import Final, final

from tsnetpy.base.instant import Instant

F_RTO_OFF: Final = 0
F_RTO_FIRST: Final = 1
"""The first packet was sent again; the next ACK decides whether to try new data (RFC 5682 §2.1 step 2)."""
F_RTO_NEW_DATA: Final = 2
"""Up to two packets of new data may go out; the ACK after that decides (step 3)."""


@final
class Undo:
    """What one episode of loss recovery changed.

    Attributes:
        marker: SND.UNA when the episode began, -1 when there is nothing to undo.
        cwnd, ssthresh: as they were.
        resent: retransmitted bytes not yet reported as duplicates.
        first_resent_at: when the first retransmission left, -1 before.
        low, high: what was sent again lies between these.
        f_rto: one of the F_RTO constants.
        f_rto_room: bytes of new data that F-RTO still admits.
    """

    __slots__ = ("cwnd", "f_rto", "f_rto_room", "first_resent_at", "high", "low", "marker", "resent", "ssthresh")

    def __init__(self) -> None:
        self.marker = -1
        self.cwnd = 0
        self.ssthresh = 0
        self.resent = 0
        self.low = 0
        self.high = 0
        self.first_resent_at: Instant = -1
        self.f_rto: int = F_RTO_OFF
        self.f_rto_room = 0

    def begin(self, una: int, cwnd: int, ssthresh: int) -> None:
        """An episode begins; remember what it is going to change."""
        self.marker = una
        self.cwnd = cwnd
        self.ssthresh = ssthresh
        self.resent = 0
        self.first_resent_at = -1
        self.f_rto = F_RTO_OFF

    def on_resent(self, start: int, end: int, now: Instant) -> None:
        """start..end was sent again."""
        if self.first_resent_at < 0:
            self.first_resent_at = now
            self.low = start
            self.high = end
        elif start < self.low:
            self.low = start
        if end > self.high:
            self.high = end
        self.resent += end - start

    def on_dsack(self, start: int, end: int) -> bool:
        """The peer had start..end twice; return True when that holds for all that was sent again."""
        if self.marker < 0 or self.first_resent_at < 0 or start < self.low or end > self.high:
            return False
        self.resent -= end - start
        return self.resent <= 0

    def original_arrived(self, echo: Instant) -> bool:
        """Tell whether an ACK that echoes *echo* answers the original and not the retransmission (RFC 3522 §3.2)."""
        return self.marker >= 0 and 0 <= echo < self.first_resent_at

    def forget(self) -> None:
        """The episode was undone, or can no longer be."""
        self.marker = -1
        self.f_rto = F_RTO_OFF
