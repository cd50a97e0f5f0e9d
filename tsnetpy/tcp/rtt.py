"""Round-trip time and retransmission timeout (RFC 6298)."""

from typing import final

from tsnetpy.base.instant import Duration

from .config import TcpConfig


@final
class RttEstimator:
    """SRTT, RTTVAR and RTO with exponential backoff. All times in nanoseconds."""

    __slots__ = ("_base", "backoff", "max_rto", "min_rtt", "min_var", "rto", "rttvar", "srtt")

    def __init__(self, config: TcpConfig) -> None:
        self.srtt: Duration = 0
        self.rttvar: Duration = 0
        self.min_rtt: Duration = 0
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
            self.min_rtt = rtt
        else:
            delta = rtt - self.srtt
            self.srtt += delta >> 3
            if delta < 0:
                delta = -delta
            self.rttvar += (delta - self.rttvar) >> 2
            if rtt < self.min_rtt:
                self.min_rtt = rtt
        # The floor is on the variance term and not on the sum: a peer may sit on an ACK for 200 ms whatever the path.
        var = self.rttvar << 2
        if var < self.min_var:
            var = self.min_var
        self._base = min(self.srtt + var, self.max_rto)
        self.backoff = 0
        self.rto = self._base

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
