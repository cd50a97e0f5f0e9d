"""The transmission control block: the variables of RFC 9293 §3.3.1 that more than one part of the engine needs.

All sequence numbers are absolute (:mod:`tsnetpy.tcp.seqnum`). Windows are in bytes, unscaled.
"""

from typing import Final, final

from tsnetpy.base.instant import MILLISECOND, Instant

from .config import TcpConfig
from .options import MAX_WSCALE, TS_LENGTH, SynOptions
from .seqnum import MASK32
from .states import State
from .stats import TcpStats
from .timers import Timers

DEFAULT_MSS: Final = 536
"""What a peer without the MSS option can take (RFC 9293 §3.7.1); the IPv6 value does not arise behind a tunnel."""
MIN_MSS: Final = 48
"""A smaller offer is raised to this: one-byte segments are an attack (CVE-2019-11479)."""


def window_shift(rcv_buf_max: int) -> int:
    """Return the smallest window scale that can express *rcv_buf_max* (RFC 7323 §2.3)."""
    shift = 0
    while (rcv_buf_max >> shift) > 0xFFFF and shift < MAX_WSCALE:
        shift += 1
    return shift


@final
class Tcb:
    """Shared state of one connection.

    Attributes:
        iss, snd_una, snd_nxt, snd_wnd, snd_wl1, snd_wl2: as in RFC 9293. SND.NXT never moves back.
        max_snd_wnd: the largest window the peer ever offered.
        snd_wscale, rcv_wscale: shift of the peer's and of our window field.
        irs, rcv_nxt: as in RFC 9293; rcv_adv: right edge of the window we promised (RCV.NXT + RCV.WND).
        last_ack_sent: Last.ACK.sent of RFC 7323.
        mss: payload bytes per packet, options subtracted.
        ts_recent, ts_recent_at: TS.Recent and when it was stored; ts_offset is added to our clock.
        fin_queued: the application finished sending; the FIN's number is the end of the send buffer.
        fin_sent: SND.NXT is past the FIN.
        ack_now: an ACK is owed; control_due: something besides data waits (SYN, probe, challenge, reset).
        ready: readiness bits not yet taken.
        error: why the connection ended, or ``None``.
        progress_at: when the peer last acknowledged something or opened its window; after silence, when something
            for it to acknowledge came up.
    """

    __slots__ = (
        "ack_now",
        "config",
        "control_due",
        "error",
        "fin_queued",
        "fin_sent",
        "irs",
        "iss",
        "last_ack_sent",
        "max_snd_wnd",
        "mss",
        "peer_mss",
        "progress_at",
        "rcv_adv",
        "rcv_nxt",
        "rcv_wscale",
        "ready",
        "sack_on",
        "snd_nxt",
        "snd_una",
        "snd_wl1",
        "snd_wl2",
        "snd_wnd",
        "snd_wscale",
        "state",
        "stats",
        "timers",
        "ts_offset",
        "ts_on",
        "ts_recent",
        "ts_recent_at",
        "wscale_on",
    )

    def __init__(self, config: TcpConfig, iss: int, now: Instant, ts_offset: int) -> None:
        self.config = config
        self.state = State.CLOSED
        self.stats = TcpStats()
        self.timers = Timers()
        self.iss = iss
        self.snd_una = iss
        self.snd_nxt = iss
        self.snd_wnd = 0
        self.snd_wl1 = 0
        self.snd_wl2 = 0
        self.max_snd_wnd = 0
        self.snd_wscale = 0
        self.irs = 0
        self.rcv_nxt = 0
        self.rcv_adv = 0
        self.last_ack_sent = 0
        self.wscale_on = config.window_scaling
        self.ts_on = config.timestamps
        self.sack_on = config.sack
        self.rcv_wscale = window_shift(config.rcv_buf_max)
        self.peer_mss = DEFAULT_MSS
        self.mss = min(config.mss, DEFAULT_MSS)
        self.ts_recent = 0
        self.ts_recent_at: Instant = now
        self.ts_offset = ts_offset
        self.fin_queued = False
        self.fin_sent = False
        self.ack_now = False
        self.control_due = False
        self.ready = 0
        self.error: str | None = None
        self.progress_at: Instant = now

    def clock(self, now: Instant) -> int:
        """Return our timestamp for *now*: milliseconds, 32 bits."""
        return (now // MILLISECOND + self.ts_offset) & MASK32

    def negotiate(self, offer: SynOptions, now: Instant) -> None:
        """Settle the options from what the peer's SYN or SYN-ACK carried; ours were offered if configured."""
        if offer.mss:
            self.peer_mss = max(offer.mss, MIN_MSS)
        if offer.wscale >= 0 and self.wscale_on:
            self.snd_wscale = offer.wscale
        else:
            self.wscale_on = False
            self.rcv_wscale = 0
        self.sack_on = self.sack_on and offer.sack_permitted
        self.ts_on = self.ts_on and offer.has_ts
        if self.ts_on:
            self.ts_recent = offer.ts_val
            self.ts_recent_at = now
        self.limit_mss(self.config.mss)

    def limit_mss(self, mss: int) -> None:
        """Set the payload size per packet from the smaller of *mss* and the peer's (RFC 6691)."""
        room = min(mss, self.peer_mss)
        if self.ts_on:
            room -= TS_LENGTH
        self.mss = max(room, 8)
