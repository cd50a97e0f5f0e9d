"""One key pair: what a finished handshake leaves behind."""

from typing import final

from tsnetpy.accel import TransportKey, ops
from tsnetpy.base.instant import Instant
from tsnetpy.base.packet import PeerId

from .constants import REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME
from .replay import ReplayWindow


@final
class Session:
    """Keys, indices, counter and replay window of one session.

    Attributes:
        peer: whose session this is.
        local_index, remote_index: what the peer writes into messages to us, and we into messages to the peer.
        initiator: True if this side began the handshake.
        created: when the keys were derived.
        counter: nonce of the next message we send.
        dead: True once the session left its peer's slots; its index is free then.
    """

    __slots__ = (
        "counter",
        "created",
        "dead",
        "initiator",
        "local_index",
        "peer",
        "receive_key",
        "remote_index",
        "replay",
        "send_key",
    )

    def __init__(
        self,
        peer: PeerId,
        local_index: int,
        remote_index: int,
        send_key: bytes,
        receive_key: bytes,
        initiator: bool,
        now: Instant,
    ) -> None:
        self.peer = peer
        self.local_index = local_index
        self.remote_index = remote_index
        self.send_key: TransportKey = ops.transport_key(send_key)
        self.receive_key: TransportKey = ops.transport_key(receive_key)
        self.initiator = initiator
        self.created = now
        self.counter = 0
        self.replay = ReplayWindow()
        self.dead = False

    def __repr__(self) -> str:
        return f"<Session {self.local_index:08x} initiator={self.initiator}>"

    def can_send(self, n: int, now: Instant) -> bool:
        """Tell whether *n* more messages may go out under these keys."""
        return now - self.created < REJECT_AFTER_TIME and self.counter + n <= REJECT_AFTER_MESSAGES
