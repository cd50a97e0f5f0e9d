"""The five timers of a peer, as plain deadlines, and the events that arm and cancel them (whitepaper section 6).

What happens when one is due is the device's business.
"""

from typing import final

from tsnetpy.base.instant import Duration, Instant, earliest

from .constants import KEEPALIVE_TIMEOUT, REJECT_AFTER_TIME, REKEY_TIMEOUT


@final
class PeerTimers:
    """Deadlines by their names in wireguard-go; ``None`` is "not pending".

    Attributes:
        retransmit_handshake: our initiation has not been answered.
        new_handshake: we sent data and have heard nothing since: the session may be dead at the other end.
        send_keepalive: we received data and have sent nothing since: the other side must not think us dead.
        zero_key_material: nothing renewed the session for three lifetimes: forget all keys.
        persistent_keepalive: keep a NAT mapping open.
        need_another_keepalive: data came in while send_keepalive was already pending.
        handshake_attempts: retries of the current handshake.
        sent_last_minute_handshake: the rekey on receive has happened for this session.
    """

    __slots__ = (
        "handshake_attempts",
        "need_another_keepalive",
        "new_handshake",
        "persistent_keepalive",
        "retransmit_handshake",
        "send_keepalive",
        "sent_last_minute_handshake",
        "zero_key_material",
    )

    def __init__(self) -> None:
        self.retransmit_handshake: Instant | None = None
        self.new_handshake: Instant | None = None
        self.send_keepalive: Instant | None = None
        self.zero_key_material: Instant | None = None
        self.persistent_keepalive: Instant | None = None
        self.need_another_keepalive = False
        self.handshake_attempts = 0
        self.sent_last_minute_handshake = False

    def next_deadline(self) -> Instant | None:
        """Return the earliest of the five."""
        due = earliest(self.retransmit_handshake, self.new_handshake)
        due = earliest(due, self.send_keepalive)
        due = earliest(due, self.zero_key_material)
        return earliest(due, self.persistent_keepalive)

    def stop(self) -> None:
        """Cancel everything."""
        self.retransmit_handshake = None
        self.new_handshake = None
        self.send_keepalive = None
        self.zero_key_material = None
        self.persistent_keepalive = None
        self.need_another_keepalive = False
        self.handshake_attempts = 0
        self.sent_last_minute_handshake = False

    def initiation_sent(self, now: Instant, jitter: Duration) -> None:
        """Wait for the response."""
        self.retransmit_handshake = now + REKEY_TIMEOUT + jitter

    def handshake_complete(self) -> None:
        """Both sides hold the keys."""
        self.retransmit_handshake = None
        self.handshake_attempts = 0
        self.sent_last_minute_handshake = False

    def session_derived(self, now: Instant) -> None:
        """There are keys that must go some day."""
        self.zero_key_material = now + 3 * REJECT_AFTER_TIME

    def data_sent(self, now: Instant, jitter: Duration) -> None:
        """A message with content went out; something must come back."""
        if self.new_handshake is None:
            self.new_handshake = now + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + jitter

    def data_received(self, now: Instant) -> None:
        """A message with content came in; something must go back."""
        if self.send_keepalive is None:
            self.send_keepalive = now + KEEPALIVE_TIMEOUT
        else:
            self.need_another_keepalive = True

    def packet_sent(self) -> None:
        """Any authenticated message went out."""
        self.send_keepalive = None

    def packet_received(self) -> None:
        """Any authenticated message came in."""
        self.new_handshake = None

    def packet_traversed(self, now: Instant, interval: Duration) -> None:
        """Any authenticated message went either way; *interval* is that of the persistent keepalive, 0 for off."""
        self.persistent_keepalive = now + interval if interval else None
