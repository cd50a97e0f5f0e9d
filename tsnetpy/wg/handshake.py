"""Making and reading handshake messages: who may, with which keys, and what session comes out.

Slots, timers and output are :mod:`.device`'s.
"""

from collections.abc import Hashable
from typing import Final, final

from tsnetpy.base.entropy import Entropy
from tsnetpy.base.instant import Instant
from tsnetpy.base.packet import Buffer, PeerId
from tsnetpy.crypto import dh
from tsnetpy.crypto.errors import CryptoError
from tsnetpy.noise.ikpsk2 import IkPsk2Initiator, IkPsk2Responder

from .constants import HANDSHAKE_INITIATION_SPACING
from .cookies import CookieChecker
from .load import LoadMeter, SourceLimiter
from .messages import Initiation, Response
from .peer import Peer
from .session import Session

ADMITTED: Final = ""


@final
class Handshaker:
    """The device's identity in handshakes.

    Args:
        private_key: static private key.
        entropy: for ephemeral keys, cookie secrets and nonces.

    Attributes:
        public_key: the static public key.
        cookie_reply: what :meth:`admit` wants sent back to the source, after it answered ``"cookie"``.
    """

    __slots__ = ("_checker", "_entropy", "_limiter", "_load", "_private", "cookie_reply", "public_key")

    def __init__(self, private_key: bytes, entropy: Entropy) -> None:
        self._private = private_key
        self._entropy = entropy
        self.public_key: bytes = dh.public_key(private_key)
        self._checker = CookieChecker(self.public_key, entropy)
        self._load = LoadMeter()
        self._limiter = SourceLimiter()
        self.cookie_reply = b""

    def __repr__(self) -> str:
        return f"<Handshaker {self.public_key[:4].hex()}…>"

    def same_key(self, private_key: bytes) -> bool:
        """Tell whether *private_key* is the one in use."""
        return private_key == self._private

    def admit(self, message: Buffer, sender_index: int, source: Hashable, now: Instant) -> str:
        """Decide whether *message* (initiation or response) is worth its Diffie-Hellman.

        Returns:
            :data:`ADMITTED`, or the reason for dropping it; ``"cookie"`` means that :attr:`cookie_reply` is to be sent.
        """
        if not self._checker.check_mac1(message):
            return "mac1"
        if not self._load.note(now):
            return ADMITTED
        place = source_bytes(source)
        if not self._checker.check_mac2(message, place, now):
            self.cookie_reply = self._checker.reply(message, sender_index, place, now)
            return "cookie"
        if not self._limiter.allow(source_host(source), now):
            return "rate_limited"
        return ADMITTED

    def create_initiation(self, peer: Peer, index: int, wall_ns: int, now: Instant) -> bytes:
        """Begin a handshake with *peer*, replacing one that is under way; return the whole message.

        Raises:
            CryptoError: the peer's key is degenerate.
        """
        noise = IkPsk2Initiator(
            self._private,
            self.public_key,
            peer.key,
            dh.generate(self._entropy),
            peer.psk,
            self._static_shared(peer),
        )
        ephemeral, sealed_static, sealed_timestamp = noise.write_initiation(peer.clock.next(wall_ns))
        peer.handshake = noise
        peer.handshake_index = index
        return peer.cookies.add_macs(Initiation(index, ephemeral, sealed_static, sealed_timestamp).encode(), now)

    def open_initiation(self, message: Initiation) -> tuple[PeerId, IkPsk2Responder]:
        """Return who claims to send *message*, and the handshake so far.

        Raises:
            CryptoError: not authentic.
        """
        noise = IkPsk2Responder(self._private, self.public_key)
        return noise.read_static(message.ephemeral, message.sealed_static), noise

    def accept_initiation(self, peer: Peer, noise: IkPsk2Responder, message: Initiation, now: Instant) -> str:
        """Check that *message* is *peer*'s and new; return :data:`ADMITTED` or the reason for dropping it."""
        try:
            timestamp = noise.read_timestamp(message.sealed_timestamp, self._static_shared(peer))
        except CryptoError:
            return "handshake"
        if timestamp <= peer.remote_timestamp:
            return "initiation_replay"
        last = peer.last_initiation_consumed
        if last is not None and now - last < HANDSHAKE_INITIATION_SPACING:
            return "initiation_flood"
        peer.remote_timestamp = timestamp
        peer.last_initiation_consumed = now
        return ADMITTED

    def create_response(
        self, peer: Peer, noise: IkPsk2Responder, remote_index: int, local_index: int, now: Instant
    ) -> tuple[bytes, Session]:
        """Answer an accepted initiation; return the whole message and the new session.

        Raises:
            CryptoError: the peer's ephemeral key is degenerate.
        """
        ephemeral, sealed_empty, send, receive = noise.write_response(dh.generate(self._entropy), peer.psk)
        message = Response(local_index, remote_index, ephemeral, sealed_empty).encode()
        session = Session(peer.key, local_index, remote_index, send, receive, False, now)
        return peer.cookies.add_macs(message, now), session

    def consume_response(self, peer: Peer, message: Response, now: Instant) -> Session | None:
        """Finish the handshake that we began with *peer*; ``None`` if *message* is not authentic."""
        noise = peer.handshake
        if noise is None:
            return None
        try:
            send, receive = noise.read_response(message.ephemeral, message.sealed_empty)
        except CryptoError:
            return None
        peer.handshake = None
        return Session(peer.key, peer.handshake_index, message.sender, send, receive, True, now)

    def _static_shared(self, peer: Peer) -> bytes:
        if not peer.static_shared:
            peer.static_shared = dh.shared(self._private, peer.key)
        return peer.static_shared


def source_bytes(source: Hashable) -> bytes:
    """Return a stable encoding of a path, to bind a cookie to; it never leaves this process."""
    return source if isinstance(source, bytes) else repr(source).encode()


def source_host(source: Hashable) -> Hashable:
    """Return what rate limits apply to: the host of ``("udp", ip, port)``, else the path itself.

    A host is an IPv4 address or an IPv6 /64: whoever has one address of such a network has all of them.
    """
    if isinstance(source, tuple) and len(source) == 3 and source[0] == "udp":
        ip = source[1]
        return ("udp", ip[:8] if isinstance(ip, bytes) else ip)
    return source


def source_peer(source: Hashable) -> PeerId:
    """Return the peer that the path ``("derp", region, node key)`` names, or no bytes."""
    if isinstance(source, tuple) and len(source) == 3 and source[0] == "derp" and isinstance(source[2], bytes):
        return source[2]
    return b""
