"""X25519 (RFC 7748)."""

from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from tsnetpy.base.entropy import Entropy

from .errors import CryptoError

KEY_BYTES: Final = 32


def clamp(private: bytes) -> bytes:
    """Return *private* with the bits fixed that RFC 7748 section 5 fixes."""
    scalar = bytearray(private)
    scalar[0] &= 248
    scalar[31] = (scalar[31] & 127) | 64
    return bytes(scalar)


def generate(entropy: Entropy) -> bytes:
    """Return a new private key, clamped."""
    return clamp(entropy.bytes(KEY_BYTES))


def public_key(private: bytes) -> bytes:
    """Return the public half of *private*.

    Raises:
        CryptoError: *private* does not have 32 bytes.
    """
    _check(private)
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def shared(private: bytes, public: bytes) -> bytes:
    """Return the Diffie-Hellman result of *private* and the other side's *public*.

    Raises:
        CryptoError: the result is all zero (a low-order public key, RFC 7748 section 6.1), or a length is wrong.
    """
    _check(private)
    _check(public)
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise CryptoError("Diffie-Hellman result is zero") from None


def _check(key: bytes) -> None:
    if len(key) != KEY_BYTES:
        raise CryptoError(f"an X25519 key has {KEY_BYTES} bytes, not {len(key)}")
