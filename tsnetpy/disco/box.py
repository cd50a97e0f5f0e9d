"""The envelope of disco messages: magic, sender's disco key, nonce, NaCl box (data path reference, section 2.1)."""

from typing import Final, final

from tsnetpy.base.entropy import Entropy
from tsnetpy.base.errors import DecodeError
from tsnetpy.base.packet import Buffer
from tsnetpy.crypto import dh
from tsnetpy.crypto.box import Box
from tsnetpy.crypto.errors import CryptoError

from .messages import Message, decode, encode

MAGIC: Final = b"TS\xf0\x9f\x92\xac"
_KEY_AT: Final = 6
_NONCE_AT: Final = 38
_BOX_AT: Final = 62
MIN_BYTES: Final = _BOX_AT + 16 + 2
"""Length of the shortest message: envelope, tag, type and version."""

OVERHEAD: Final = _BOX_AT + 16
"""What the envelope adds to a plaintext."""


@final
class DiscoBox:
    """Our disco key pair, and one prepared box per peer's disco key.

    The boxes are cached because X25519 costs forty times what opening a message does. Only keys that the netmap
    names may be used: an unknown sender must be dropped *before* any cryptography.
    """

    __slots__ = ("_boxes", "_entropy", "_private", "public")

    def __init__(self, entropy: Entropy, private: bytes = b"") -> None:
        self._private = private or dh.generate(entropy)
        self._entropy = entropy
        self.public: bytes = dh.public_key(self._private)
        self._boxes: dict[bytes, Box] = {}

    def __repr__(self) -> str:
        return "<DiscoBox redacted>"

    def forget(self, public: bytes) -> None:
        """Drop the prepared box of a disco key that is no longer in use."""
        self._boxes.pop(public, None)

    def seal(self, public: bytes, message: Message) -> bytes:
        """Return *message* sealed for the holder of the disco key *public*.

        Raises:
            CryptoError: *public* is no usable key.
        """
        return self.seal_plain(public, encode(message), self._entropy.bytes(24))

    def seal_plain(self, public: bytes, plain: bytes, nonce: bytes) -> bytes:
        """Return an envelope around *plain* under a given 24-byte *nonce* (never use one twice)."""
        return MAGIC + self.public + nonce + self._box(public).seal(nonce, plain)

    def open(self, data: Buffer) -> Message:
        """Return the message inside the envelope *data*, whose sender the caller knows.

        Raises:
            DecodeError: not an envelope, not authentic, or not a message.
        """
        if not looks_like_disco(data):
            raise DecodeError("not a disco envelope")
        view = memoryview(data)
        try:
            plain = self._box(bytes(view[_KEY_AT:_NONCE_AT])).open(bytes(view[_NONCE_AT:_BOX_AT]), view[_BOX_AT:])
        except CryptoError:
            raise DecodeError("disco message is not authentic") from None
        return decode(plain)

    def _box(self, public: bytes) -> Box:
        box = self._boxes.get(public)
        if box is None:
            box = Box(self._private, public)
            self._boxes[public] = box
        return box


def looks_like_disco(data: Buffer) -> bool:
    """Tell whether *data* starts like a disco envelope and is long enough for one."""
    return len(data) >= MIN_BYTES and data[:_KEY_AT] == MAGIC


def sender_key(data: Buffer) -> bytes:
    """Return the sender's disco key of an envelope for which :func:`looks_like_disco` holds (not yet authenticated)."""
    return bytes(data[_KEY_AT:_NONCE_AT])
