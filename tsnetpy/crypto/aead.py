"""ChaCha20-Poly1305 (RFC 8439), and its XChaCha20 form for WireGuard's cookies."""

from collections.abc import Callable
from typing import Final, final

import nacl.bindings as sodium
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from nacl.exceptions import CryptoError as SodiumError

from tsnetpy.base.packet import Buffer

from .errors import CryptoError

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
X_NONCE_BYTES: Final = 24


@final
class Aead:
    """One ChaCha20-Poly1305 key, made ready once and used for many messages.

    Attributes:
        encrypt_into: ``(nonce, plaintext, aad | None, out) -> n``. Writes ciphertext and tag; *out* must be exactly
            16 bytes longer than the plaintext. The unchecked form for packet loops: no call in between.
        decrypt: ``(nonce, ciphertext, aad | None) -> plaintext``. Raises :exc:`.errors.InvalidTag`; likewise unchecked.
    """

    __slots__ = ("_cipher", "decrypt", "encrypt_into")

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise CryptoError(f"an AEAD key has {KEY_BYTES} bytes, not {len(key)}")
        self._cipher = ChaCha20Poly1305(key)
        self.encrypt_into: Callable[[bytes, Buffer, bytes | None, Buffer], int] = self._cipher.encrypt_into
        self.decrypt: Callable[[bytes, Buffer, bytes | None], bytes] = self._cipher.decrypt

    def __repr__(self) -> str:
        return "<Aead redacted>"

    def seal(self, nonce: bytes, plaintext: Buffer, aad: bytes = b"") -> bytes:
        """Return ciphertext and tag (16 bytes longer than *plaintext*) under a 12-byte *nonce*."""
        _check_nonce(nonce, NONCE_BYTES)
        return self._cipher.encrypt(nonce, plaintext, aad)

    def open(self, nonce: bytes, ciphertext: Buffer, aad: bytes = b"") -> bytes:
        """Return the plaintext of *ciphertext* (tag included).

        Raises:
            CryptoError: too short, or not authentic.
        """
        _check_nonce(nonce, NONCE_BYTES)
        try:
            return self._cipher.decrypt(nonce, ciphertext, aad)
        except InvalidTag:
            raise CryptoError("message is not authentic") from None

    def seal_into(self, nonce: bytes, plaintext: Buffer, out: bytearray | memoryview, aad: bytes = b"") -> int:
        """Write ciphertext and tag into the start of *out*; return how many bytes that were.

        Raises:
            CryptoError: *out* is too small.
        """
        _check_nonce(nonce, NONCE_BYTES)
        size = len(plaintext) + TAG_BYTES
        if len(out) < size:
            raise CryptoError(f"output needs {size} bytes and has {len(out)}")
        return self._cipher.encrypt_into(nonce, plaintext, aad, memoryview(out)[:size])

    def open_into(self, nonce: bytes, ciphertext: Buffer, out: bytearray | memoryview, aad: bytes = b"") -> int:
        """Write the plaintext into the start of *out*; return how many bytes that were.

        Raises:
            CryptoError: not authentic, or *out* is too small.
        """
        _check_nonce(nonce, NONCE_BYTES)
        size = len(ciphertext) - TAG_BYTES
        if size < 0:
            raise CryptoError("message is shorter than its tag")
        if len(out) < size:
            raise CryptoError(f"output needs {size} bytes and has {len(out)}")
        try:
            return self._cipher.decrypt_into(nonce, ciphertext, aad, memoryview(out)[:size])
        except InvalidTag:
            raise CryptoError("message is not authentic") from None


@final
class XAead:
    """XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03): a 24-byte nonce that may be random."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise CryptoError(f"an AEAD key has {KEY_BYTES} bytes, not {len(key)}")
        self._key = bytes(key)

    def __repr__(self) -> str:
        return "<XAead redacted>"

    def seal(self, nonce: bytes, plaintext: Buffer, aad: Buffer = b"") -> bytes:
        """Return ciphertext and tag under a 24-byte *nonce*."""
        _check_nonce(nonce, X_NONCE_BYTES)
        sealed: bytes = sodium.crypto_aead_xchacha20poly1305_ietf_encrypt(
            bytes(plaintext), bytes(aad), nonce, self._key
        )
        return sealed

    def open(self, nonce: bytes, ciphertext: Buffer, aad: Buffer = b"") -> bytes:
        """Return the plaintext of *ciphertext* (tag included).

        Raises:
            CryptoError: too short, or not authentic.
        """
        _check_nonce(nonce, X_NONCE_BYTES)
        if len(ciphertext) < TAG_BYTES:
            raise CryptoError("message is shorter than its tag")
        try:
            opened: bytes = sodium.crypto_aead_xchacha20poly1305_ietf_decrypt(
                bytes(ciphertext), bytes(aad), nonce, self._key
            )
        except SodiumError:
            raise CryptoError("message is not authentic") from None
        return opened


def _check_nonce(nonce: bytes, size: int) -> None:
    if len(nonce) != size:
        raise CryptoError(f"the nonce has {size} bytes here, not {len(nonce)}")
