"""What recovery and sender ask of a congestion control. Windows in bytes, never in packets."""

from abc import ABC, abstractmethod
from typing import Final

from tsnetpy.base.instant import Duration, Instant

INFINITE_SSTHRESH: Final = 1 << 40


class CongestionControl(ABC):
    """State shared by all algorithms; subclasses say how the window moves.

    Attributes:
        cwnd: congestion window in bytes.
        ssthresh: slow start threshold in bytes.
        mss: payload bytes per packet.
        initial_window: RFC 6928 window in bytes.
    """

    __slots__ = ("cwnd", "initial_window", "mss", "ssthresh")

    def __init__(self, mss: int, initial_packets: int) -> None:
        self.mss = mss
        self.initial_window = initial_packets * mss
        self.cwnd = self.initial_window
        self.ssthresh = INFINITE_SSTHRESH

    @abstractmethod
    def on_ack(self, acked: int, now: Instant, srtt: Duration, rtt: Duration, new_round: bool) -> None:
        """Learn from an ACK, and grow the window.

        Args:
            acked: bytes that count for growth, 0 when the window was not in full use.
            now: when the ACK arrived.
            srtt: smoothed round trip, 0 if unknown.
            rtt: this ACK's own, unambiguous round trip, 0 if there is none.
            new_round: a round trip has passed since the last ACK with this flag.
        """

    @abstractmethod
    def on_congestion(self, flight: int, now: Instant, keep: float = 0.0) -> None:
        """Loss was detected with *flight* bytes outstanding: set ssthresh and shrink to it.

        *keep* is the least share to keep, if the loss was a rare one (:mod:`.tolerance`).
        """

    def on_timeout(self, flight: int, now: Instant) -> None:
        """The first retransmission timeout of a window: ssthresh as for loss, then one packet (RFC 5681 §3.1)."""
        self.on_congestion(flight, now)
        self.cwnd = self.mss

    def undo(self, cwnd: int, ssthresh: int) -> None:
        """The last congestion was none: go back to what the windows were (RFC 4015 §3.2)."""
        self.cwnd = max(self.cwnd, cwnd)
        self.ssthresh = max(self.ssthresh, ssthresh)

    def on_idle(self) -> None:
        """Nothing was sent for longer than an RTO: fall back to the restart window (RFC 5681 §4.1).

        The threshold remembers three quarters of what was reached (RFC 7661 §4.3), so that slow start leads back there.
        """
        if self.cwnd > self.initial_window:
            if self.ssthresh != INFINITE_SSTHRESH:
                self.ssthresh = max(self.ssthresh, self.cwnd * 3 >> 2)
            self.cwnd = self.initial_window

    def set_mss(self, mss: int, initial_packets: int) -> None:
        """The packet size changed; the window stays what it is in bytes, but holds one packet at least."""
        self.mss = mss
        self.initial_window = initial_packets * mss
        if self.cwnd < mss:
            self.cwnd = mss
