"""Ed25519 signatures (RFC 8032)."""

from typing import Final

import nacl.bindings as sodium
from nacl.exceptions import CryptoError as SodiumError

from tsnetpy.base.packet import Buffer

from .errors import CryptoError

SEED_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64


def public_key(seed: bytes) -> bytes:
    """Return the 32-byte public key of a 32-byte private *seed*."""
    return _pair(seed)[0]


def sign(seed: bytes, message: Buffer) -> bytes:
    """Return the 64-byte signature of *message*."""
    signed: bytes = sodium.crypto_sign(bytes(message), _pair(seed)[1])
    return signed[:SIGNATURE_BYTES]


def verify(public: bytes, message: Buffer, signature: bytes) -> None:
    """Return if *signature* is *public*'s over *message*.

    Raises:
        CryptoError: it is not.
    """
    if len(public) != 32 or len(signature) != SIGNATURE_BYTES:
        raise CryptoError("signature or key has a wrong length")
    try:
        sodium.crypto_sign_open(signature + bytes(message), public)
    except SodiumError:
        raise CryptoError("signature does not match") from None


def _pair(seed: bytes) -> tuple[bytes, bytes]:
    if len(seed) != SEED_BYTES:
        raise CryptoError(f"an Ed25519 seed has {SEED_BYTES} bytes, not {len(seed)}")
    pair: tuple[bytes, bytes] = sodium.crypto_sign_seed_keypair(bytes(seed))
    return pair
