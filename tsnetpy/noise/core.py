"""The symmetric state of a Noise handshake (revision 34, section 5.2) with X25519, ChaCha20-Poly1305 and BLAKE2s."""

from typing import Final, final

from tsnetpy.base.packet import Buffer
from tsnetpy.crypto.aead import Aead
from tsnetpy.crypto.errors import CryptoError
from tsnetpy.crypto.hash import HASH_BYTES, blake2s, hkdf

TAG_BYTES: Final = 16
KEY_BYTES: Final = 32
_ZERO_NONCE: Final = bytes(12)


@final
class SymmetricState:
    """Chaining key, transcript hash and the current message key.

    Every message key of the IK patterns encrypts at most one message before the next Diffie-Hellman result replaces
    it, so the nonce is always zero here, and :meth:`encrypt_and_hash` refuses a second use.

    Attributes:
        ck: chaining key, 32 bytes.
        h: hash of the handshake so far, 32 bytes. After the handshake: the channel binding.
    """

    __slots__ = ("_key", "ck", "h")

    def __init__(self, protocol_name: bytes) -> None:
        self.h = protocol_name.ljust(HASH_BYTES, b"\0") if len(protocol_name) <= HASH_BYTES else blake2s(protocol_name)
        self.ck = self.h
        self._key: bytes | None = None

    def __repr__(self) -> str:
        return "<SymmetricState redacted>"

    def mix_hash(self, data: Buffer) -> None:
        """Append *data* to the transcript."""
        self.h = blake2s(self.h + bytes(data))

    def mix_key(self, input_key_material: bytes) -> None:
        """Mix a Diffie-Hellman result in; the next message uses a new key."""
        self.ck, self._key = hkdf(self.ck, input_key_material, 2)

    def mix_key_and_hash(self, input_key_material: bytes) -> None:
        """Mix a pre-shared key in (the ``psk`` token)."""
        self.ck, mixed, self._key = hkdf(self.ck, input_key_material, 3)
        self.mix_hash(mixed)

    def encrypt_and_hash(self, plaintext: Buffer) -> bytes:
        """Return *plaintext* sealed with the transcript as associated data; the result joins the transcript."""
        sealed = Aead(self._take_key()).seal(_ZERO_NONCE, plaintext, self.h)
        self.mix_hash(sealed)
        return sealed

    def decrypt_and_hash(self, ciphertext: Buffer) -> bytes:
        """Return the plaintext of *ciphertext*, which joins the transcript.

        Raises:
            CryptoError: not authentic. The state is spoilt then; give it up.
        """
        opened = Aead(self._take_key()).open(_ZERO_NONCE, ciphertext, self.h)
        self.mix_hash(ciphertext)
        return opened

    def split(self) -> tuple[bytes, bytes]:
        """Return the transport keys, initiator to responder and back, and forget the chaining key."""
        first, second = hkdf(self.ck, b"", 2)
        self.forget()
        return first, second

    def forget(self) -> None:
        """Drop the secrets; the transcript hash stays."""
        self.ck = b""
        self._key = None

    def copy(self) -> "SymmetricState":
        """Return an independent copy, to try a message on without spoiling this state."""
        other = SymmetricState(b"")
        other.ck = self.ck
        other.h = self.h
        other._key = self._key
        return other

    def _take_key(self) -> bytes:
        key = self._key
        if key is None:
            raise CryptoError("no message key: a Diffie-Hellman step is missing")
        self._key = None
        return key
