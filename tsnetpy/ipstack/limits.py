"""Limits that an authenticated peer could otherwise push without end, and the bucket that enforces the rates."""

from dataclasses import dataclass
from typing import final

from tsnetpy.base.instant import SECOND, Instant


@dataclass(slots=True)
class StackLimits:
    """Bounds of one :class:`~tsnetpy.ipstack.stack.Stack`."""

    connections: int = 8192
    """TCP connections in any state."""
    connections_per_peer: int = 5461
    """Two thirds of :attr:`connections`, so that one peer cannot lock out the others."""
    embryos: int = 1024
    """Inbound TCP handshakes in progress, about 6 KiB each."""
    embryos_per_peer: int = 512
    """Half of :attr:`embryos`: a crowd of a few hundred that comes through one peer is ordinary."""
    syn_cookies: bool = True
    """Answer SYNs for which there is no room for an embryo with cookies (RFC 4987), instead of dropping them."""
    cookies_per_second: int = 5000
    cookie_burst: int = 1000
    fragment_bytes: int = 4 << 20
    """Memory of reassembly; when it is exceeded the oldest datagrams go until three quarters are left."""
    fragment_datagrams: int = 64
    fragment_datagrams_per_peer: int = 16
    queue: int = 512
    """Outbound datagrams and control packets, and packets to ourselves, that wait for the next egress."""
    udp_queue_bytes: int = 1 << 20
    """Received datagrams of one UDP socket, each counted with 256 bytes of overhead; the oldest are dropped first."""
    icmp_errors_per_second: int = 100
    icmp_error_burst: int = 50
    echo_replies_per_second: int = 1000
    echo_reply_burst: int = 200
    resets_per_second: int = 1000
    reset_burst: int = 200
    ephemeral_first: int = 32768
    """The port range of RFC 6056 selection, inclusive."""
    ephemeral_last: int = 65535


@final
class TokenBucket:
    """Allows *rate* events per second on average and *burst* at once."""

    __slots__ = ("_burst", "_full_at", "_step")

    def __init__(self, rate: int, burst: int) -> None:
        self._step = SECOND // rate
        self._burst = burst * self._step
        self._full_at: Instant | None = None

    def allow(self, now: Instant) -> bool:
        """Take one token if there is one."""
        full_at = now if self._full_at is None or self._full_at < now else self._full_at
        if full_at + self._step - now > self._burst:
            return False
        self._full_at = full_at + self._step
        return True
