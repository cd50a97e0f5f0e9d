"""NaCl ``crypto_box`` (X25519, HSalsa20, XSalsa20-Poly1305), as disco and DERP use it.

The tag precedes the ciphertext.
"""

from typing import Final, final

import nacl.bindings as sodium
from nacl.exceptions import CryptoError as SodiumError

from tsnetpy.base.packet import Buffer

from .errors import CryptoError

NONCE_BYTES: Final = 24
OVERHEAD: Final = 16


@final
class Box:
    """The shared key of one private and one public key, computed once."""

    __slots__ = ("_key",)

    def __init__(self, private: bytes, public: bytes) -> None:
        try:
            key: bytes = sodium.crypto_box_beforenm(bytes(public), bytes(private))
        except (SodiumError, ValueError, TypeError):
            # Wrong lengths, or a low-order public key.
            raise CryptoError("these keys make no box") from None
        self._key = key

    def __repr__(self) -> str:
        return "<Box redacted>"

    def seal(self, nonce: bytes, plaintext: Buffer) -> bytes:
        """Return tag and ciphertext (16 bytes longer than *plaintext*) under a 24-byte *nonce*."""
        if len(nonce) != NONCE_BYTES:
            raise CryptoError(f"a box nonce has {NONCE_BYTES} bytes, not {len(nonce)}")
        sealed: bytes = sodium.crypto_box_afternm(bytes(plaintext), nonce, self._key)
        return sealed

    def open(self, nonce: bytes, box: Buffer) -> bytes:
        """Return the plaintext of *box*.

        Raises:
            CryptoError: too short, not authentic, or a wrong nonce length.
        """
        if len(nonce) != NONCE_BYTES:
            raise CryptoError(f"a box nonce has {NONCE_BYTES} bytes, not {len(nonce)}")
        if len(box) < OVERHEAD:
            raise CryptoError("box is shorter than its tag")
        try:
            opened: bytes = sodium.crypto_box_open_afternm(bytes(box), bytes(nonce), self._key)
        except SodiumError:
            raise CryptoError("box is not authentic") from None
        return opened
