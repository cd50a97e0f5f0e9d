"""Round-trip time and retransmission timeout (RFC 6298), and the least round trip of late."""

from typing import Final, final

from tsnetpy.base.instant import SECOND, Duration, Instant

from .config import TcpConfig

_HALF_WINDOW: Final = 5 * SECOND
"""The least round trip is that of the last 5 to 10 s (RFC 8985 §6.2 step 1 wants a window, BBR takes 10 s)."""


@final
class RttEstimator:
    """SRTT, RTTVAR and RTO with exponential backoff. All times in nanoseconds.

    Attributes:
        srtt, rttvar, rto: as in RFC 6298; srtt is 0 before the first sample.
        min_rtt: the least round trip of the last 5 to 10 s, 0 before the first one. Not for ever, for a connection
            outlives its path: after a walk from a LAN to a mobile network 0.3 ms would say nothing any more.
        backoff: how often the timeout has doubled.
        max_rto, min_var: bounds from the configuration.
    """

    __slots__ = (
        "_base",
        "_half_end",
        "_half_least",
        "backoff",
        "max_rto",
        "min_rtt",
        "min_var",
        "rto",
        "rttvar",
        "srtt",
    )

    def __init__(self, config: TcpConfig) -> None:
        self.srtt: Duration = 0
        self.rttvar: Duration = 0
        self.min_rtt: Duration = 0
        self._half_least: Duration = 0  # of the half of the window under way
        self._half_end: Instant = 0
        self.min_var: Duration = config.rto_min
        self.max_rto: Duration = config.rto_max
        self.backoff = 0
        self._base: Duration = config.rto_initial
        self.rto: Duration = config.rto_initial

    def sample(self, rtt: Duration) -> None:
        """Take in one measurement; it also ends a backoff (RFC 6298 §2, §5.7)."""
        if rtt < 1:
            rtt = 1
        if self.srtt == 0:
            self.srtt = rtt
            self.rttvar = rtt >> 1
        else:
            delta = rtt - self.srtt
            self.srtt += delta >> 3
            if delta < 0:
                delta = -delta
            self.rttvar += (delta - self.rttvar) >> 2
        # The floor is on the variance term and not on the sum: a peer may sit on an ACK for 200 ms whatever the path.
        var = self.rttvar << 2
        if var < self.min_var:
            var = self.min_var
        self._base = min(self.srtt + var, self.max_rto)
        self.backoff = 0
        self.rto = self._base

    def note_least(self, rtt: Duration, now: Instant) -> None:
        """Take one round trip into :attr:`min_rtt`: of any packet, measured on our own clock.

        A minimum over two halves of the window, the older of which is dropped as a whole.
        """
        if rtt < 1:
            rtt = 1
        if now >= self._half_end:
            older = self._half_least if now < self._half_end + _HALF_WINDOW and self._half_end else rtt
            self._half_least = rtt
            self._half_end = now + _HALF_WINDOW
            self.min_rtt = older if older < rtt else rtt
        elif rtt < self._half_least:
            self._half_least = rtt
            if rtt < self.min_rtt:
                self.min_rtt = rtt

    def back_off(self) -> None:
        """Double the timeout after it expired (RFC 6298 §5.5)."""
        self.backoff += 1
        self.rto = min(self._base << min(self.backoff, 16), self.max_rto)

    def forget_backoff(self) -> None:
        """Return to the computed timeout: there was progress."""
        self.backoff = 0
        self.rto = self._base

    def restart_after_syn(self) -> None:
        """Use 3 s if the SYN had to be retransmitted and nothing was measured (RFC 6298 §5.7)."""
        if self.srtt == 0:
            self._base = min(3_000_000_000, self.max_rto)
        self.forget_backoff()
