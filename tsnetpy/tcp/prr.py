"""Proportional rate reduction: the window shrinks during recovery in step with what arrives (RFC 6937, and its bis).

Without it a halved window stops sending for half a round trip and then bursts.
"""

from typing import final


@final
class RateReduction:
    """One recovery's account: so many bytes arrived, so many may be sent.

    Attributes:
        delivered: bytes that reached the peer since recovery began; sent: bytes sent meanwhile.
    """

    __slots__ = ("_base", "delivered", "sent")

    def __init__(self) -> None:
        self.delivered = 0
        self.sent = 0
        self._base = 1

    def start(self, flight: int) -> None:
        """Recovery begins with *flight* bytes outstanding (RecoverFS)."""
        self.delivered = 0
        self.sent = 0
        self._base = max(flight, 1)

    def window(self, delivered: int, pipe: int, ssthresh: int, mss: int, safe: bool) -> int:
        """Return cwnd after an ACK.

        Args:
            delivered: bytes that this ACK newly acknowledged or reported.
            pipe: bytes in the network.
            ssthresh: where the reduction ends.
            mss: packet size.
            safe: SND.UNA moved and no further loss came up: room to speed up again (SafeACK).
        """
        self.delivered += delivered
        if pipe > ssthresh:
            room = (self.delivered * ssthresh + self._base - 1) // self._base - self.sent
        else:
            room = max(self.delivered - self.sent, delivered)
            if safe:
                room += mss
            room = min(ssthresh - pipe, room)
        if self.sent == 0 and room < mss:
            room = mss  # the fast retransmission itself
        return pipe + max(room, 0)
