"""CUBIC: the window grows as a cubic function of the time since the last loss, whatever the round trip (RFC 9438).

The formulas are in packets and seconds there and in bytes and seconds here. Slow start ends by :mod:`HyStart++
<tsnetpy.tcp.congestion.hystart>` or by loss.
"""

from math import cbrt
from typing import Final, final

from tsnetpy.base.instant import SECOND, Duration, Instant

from .base import INFINITE_SSTHRESH, CongestionControl
from .hystart import GROWTH_DIVISOR, HyStart

_C: Final = 0.4
"""Packets per cubic second (§4.1.1)."""
_BETA: Final = 0.7
_ALPHA: Final = 3 * (1 - _BETA) / (1 + _BETA)
"""What makes W_est as aggressive as Reno on average (§4.3)."""
_MAX_SLOW_START_STEP: Final = 65_536
_NO_EPOCH: Final = -1
_NO_CURVE: Final[tuple[float, float, float, Instant]] = (0.0, 0.0, 0.0, _NO_EPOCH)


@final
class Cubic(CongestionControl):
    """State of RFC 9438 §4.1.2, windows in bytes."""

    __slots__ = (
        "_before",
        "_epoch",
        "_estimate",
        "_fraction",
        "_hystart",
        "_k",
        "_last_ack",
        "_plateau",
        "_prior",
    )

    def __init__(self, mss: int, initial_packets: int) -> None:
        super().__init__(mss, initial_packets)
        self._hystart: HyStart | None = None  # made when it is needed: most connections carry little
        self._plateau = 0.0  # W_max
        self._prior = 0.0  # cwnd_prior
        self._estimate = 0.0  # W_est
        self._k = 0.0
        self._fraction = 0.0  # bytes of growth not yet in cwnd
        self._epoch: Instant = _NO_EPOCH
        self._last_ack: Instant = 0
        self._before = _NO_CURVE

    def on_ack(self, acked: int, now: Instant, srtt: Duration, rtt: Duration, new_round: bool) -> None:
        """Slow start with HyStart++, then the larger of the cubic curve and what Reno would have."""
        if self.cwnd < self.ssthresh:
            step = min(acked, _MAX_SLOW_START_STEP, self.ssthresh - self.cwnd)
            if self.ssthresh == INFINITE_SSTHRESH:
                hystart = self._hystart
                if hystart is None:
                    hystart = self._hystart = HyStart()
                if hystart.on_ack(rtt, new_round, now):
                    self.ssthresh = self.cwnd
                    self._hystart = None
                elif hystart.conservative:
                    step = min(acked, _MAX_SLOW_START_STEP) // GROWTH_DIVISOR
            self.cwnd += step
            return
        if acked <= 0:
            return
        mss = self.mss
        cwnd = float(self.cwnd)
        if self._epoch == _NO_EPOCH:
            self._epoch = now
            if self._plateau > cwnd:
                self._k = cbrt((self._plateau - cwnd) / mss / _C)
            else:
                self._k = 0.0
                self._plateau = cwnd
            self._estimate = cwnd
            self._fraction = 0.0
        elif now - self._last_ack > srtt << 1:
            self._epoch += now - self._last_ack  # time in which nothing was limited by the window does not count (§5.8)
        self._last_ack = now
        if acked > self.cwnd:
            acked = self.cwnd  # one ACK is worth one window at most
        t = (now - self._epoch) / SECOND
        d = t - self._k
        curve = self._plateau + _C * mss * d * d * d
        alpha = _ALPHA if self._estimate < self._prior else 1.0
        self._estimate += alpha * mss * acked / cwnd
        if curve < self._estimate:
            if self._estimate > cwnd:
                self.cwnd = int(self._estimate)
            return
        d += srtt / SECOND
        target = self._plateau + _C * mss * d * d * d
        if target > 1.5 * cwnd:
            target = 1.5 * cwnd
        if target > cwnd:
            self._fraction += (target - cwnd) * acked / cwnd
            whole = int(self._fraction)
            self._fraction -= whole
            self.cwnd += whole

    def on_congestion(self, flight: int, now: Instant, keep: float = 0.0) -> None:
        """Multiplicative decrease, with fast convergence (§4.6, §4.7)."""
        self._before = (self._plateau, self._prior, self._k, self._epoch)
        cwnd = float(min(self.cwnd, max(flight, self.mss)))
        self._prior = cwnd
        self._plateau = cwnd * (1 + _BETA) / 2 if cwnd < self._plateau else cwnd
        self.ssthresh = max(int(cwnd * _BETA), int(self.cwnd * keep), 2 * self.mss)
        self.cwnd = self.ssthresh
        self._epoch = _NO_EPOCH

    def undo(self, cwnd: int, ssthresh: int) -> None:
        """Put back the curve as well (§4.9)."""
        super().undo(cwnd, ssthresh)
        self._plateau, self._prior, self._k, self._epoch = self._before

    def on_idle(self) -> None:
        """After idleness the curve starts anew from wherever the window then is."""
        super().on_idle()
        self._epoch = _NO_EPOCH
