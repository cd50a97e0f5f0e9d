"""Reno: RFC 5681 with byte counting (RFC 3465).

Acknowledgments of a peer with receive offload cover up to 64 KiB, so growth counts bytes and not ACKs; one ACK adds at
most 64 KiB in slow start, which also bounds what optimistic or split ACKs can gain.
"""

from typing import Final, final

from tsnetpy.base.instant import Duration, Instant

from .base import CongestionControl

_MAX_SLOW_START_STEP: Final = 65_536


@final
class Reno(CongestionControl):
    """Additive increase, halving on loss."""

    __slots__ = ("_credit",)

    def __init__(self, mss: int, initial_packets: int) -> None:
        super().__init__(mss, initial_packets)
        self._credit = 0

    def on_ack(self, acked: int, now: Instant, srtt: Duration, rtt: Duration, new_round: bool) -> None:
        """Slow start below ssthresh, then one packet per window of acknowledged bytes."""
        if self.cwnd < self.ssthresh:
            step = min(acked, _MAX_SLOW_START_STEP, self.ssthresh - self.cwnd)
            self.cwnd += step
            acked -= step
            if acked <= 0 or self.cwnd < self.ssthresh:
                return
        self._credit += acked
        if self._credit >= self.cwnd:
            self._credit -= self.cwnd
            self.cwnd += self.mss

    def on_congestion(self, flight: int, now: Instant, keep: float = 0.0) -> None:
        """Halve what was in flight (RFC 5681 equation 4)."""
        self.ssthresh = max(flight >> 1, int(self.cwnd * keep), 2 * self.mss)
        self.cwnd = self.ssthresh
        self._credit = 0
