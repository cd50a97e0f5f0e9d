"""MAC1, MAC2 and cookies: who may make us compute Diffie-Hellman (whitepaper section 5.4.7)."""

from typing import Final, final

from tsnetpy.base.entropy import Entropy
from tsnetpy.base.instant import Instant
from tsnetpy.base.packet import Buffer
from tsnetpy.crypto.aead import XAead
from tsnetpy.crypto.errors import CryptoError
from tsnetpy.crypto.hash import blake2s, blake2s_mac, equal

from .constants import COOKIE_REFRESH_TIME
from .messages import MACS_BYTES, CookieReply

_LABEL_MAC1: Final = b"mac1----"
_LABEL_COOKIE: Final = b"cookie--"
_MAC_BYTES: Final = 16
_NO_MAC: Final = bytes(_MAC_BYTES)


@final
class CookieChecker:
    """Our side as the receiver of handshake messages: checks MACs and makes cookie replies.

    Args:
        static_public: our static key.
        entropy: for the secret and the nonces.
    """

    __slots__ = ("_entropy", "_mac1_key", "_reply_cipher", "_secret", "_secret_since")

    def __init__(self, static_public: bytes, entropy: Entropy) -> None:
        self._mac1_key = blake2s(_LABEL_MAC1 + static_public)
        self._reply_cipher = XAead(blake2s(_LABEL_COOKIE + static_public))
        self._entropy = entropy
        self._secret = b""
        self._secret_since: Instant = 0

    def check_mac1(self, message: Buffer) -> bool:
        """Tell whether *message* (initiation or response, whole) comes from somebody who knows our public key."""
        expected = blake2s_mac(self._mac1_key, message[:-MACS_BYTES])
        return equal(expected, message[-MACS_BYTES:-_MAC_BYTES])

    def check_mac2(self, message: Buffer, source: bytes, now: Instant) -> bool:
        """Tell whether *message* proves that its sender can receive at *source*."""
        if not self._secret or now - self._secret_since > COOKIE_REFRESH_TIME:
            return False
        expected = blake2s_mac(self._cookie(source), message[:-_MAC_BYTES])
        return equal(expected, message[-_MAC_BYTES:])

    def reply(self, message: Buffer, sender_index: int, source: bytes, now: Instant) -> bytes:
        """Return the cookie reply to *message*: a cookie for *source*, readable only for who sent the message."""
        if not self._secret or now - self._secret_since > COOKIE_REFRESH_TIME:
            self._secret = self._entropy.bytes(32)
            self._secret_since = now
        nonce = self._entropy.bytes(24)
        mac1 = bytes(message[-MACS_BYTES:-_MAC_BYTES])
        return CookieReply(sender_index, nonce, self._reply_cipher.seal(nonce, self._cookie(source), mac1)).encode()

    def _cookie(self, source: bytes) -> bytes:
        return blake2s_mac(self._secret, source)


@final
class CookieGenerator:
    """Our side as the sender of handshake messages to one peer: adds the MACs and reads cookie replies."""

    __slots__ = ("_cookie", "_cookie_since", "_last_mac1", "_mac1_key", "_reply_cipher")

    def __init__(self, peer_static: bytes) -> None:
        self._mac1_key = blake2s(_LABEL_MAC1 + peer_static)
        self._reply_cipher = XAead(blake2s(_LABEL_COOKIE + peer_static))
        self._cookie = b""
        self._cookie_since: Instant = 0
        self._last_mac1 = b""

    def add_macs(self, message: bytes, now: Instant) -> bytes:
        """Return *message* with MAC1, and with MAC2 if a fresh cookie is at hand (else zeros)."""
        self._last_mac1 = blake2s_mac(self._mac1_key, message)
        message += self._last_mac1
        if not self._cookie or now - self._cookie_since >= COOKIE_REFRESH_TIME:
            self._cookie = b""
            return message + _NO_MAC
        return message + blake2s_mac(self._cookie, message)

    def consume_reply(self, reply: CookieReply, now: Instant) -> bool:
        """Take the cookie out of *reply*; tell whether it answers the last message that we sent."""
        if not self._last_mac1:
            return False
        try:
            cookie = self._reply_cipher.open(reply.nonce, reply.sealed_cookie, self._last_mac1)
        except CryptoError:
            return False
        self._cookie = cookie
        self._cookie_since = now
        self._last_mac1 = b""  # one reply per message: a replayed reply is void
        return True
