"""BLAKE2s (RFC 7693) in the three forms that WireGuard and ts2021 use: plain, keyed, and as HMAC with HKDF on top."""

import hmac
from hashlib import blake2s as _blake2s
from typing import Final

from tsnetpy.base.packet import Buffer

HASH_BYTES: Final = 32
_BLOCK: Final = 64
_IPAD: Final = bytes(0x36 ^ i for i in range(256))
_OPAD: Final = bytes(0x5C ^ i for i in range(256))


def blake2s(data: Buffer) -> bytes:
    """Return the 32-byte BLAKE2s hash of *data*."""
    return _blake2s(data).digest()


def blake2s_mac(key: bytes, data: Buffer, size: int = 16) -> bytes:
    """Return keyed BLAKE2s of *data*, *size* bytes long (not a truncation: the size is part of the function)."""
    return _blake2s(data, digest_size=size, key=key).digest()


def hmac_blake2s(key: bytes, data: Buffer) -> bytes:
    """Return RFC 2104 HMAC over BLAKE2s (32 bytes), which is *not* keyed BLAKE2s."""
    if len(key) > _BLOCK:
        key = _blake2s(key).digest()
    key = key.ljust(_BLOCK, b"\0")
    inner = _blake2s(key.translate(_IPAD))
    inner.update(data)
    return _blake2s(key.translate(_OPAD) + inner.digest()).digest()


def hkdf(chaining_key: bytes, input_key_material: Buffer, n: int) -> tuple[bytes, ...]:
    """Return *n* (1 to 3) keys of 32 bytes: HKDF as the Noise protocol framework, section 4.3, defines it."""
    secret = hmac_blake2s(chaining_key, input_key_material)
    out: list[bytes] = []
    last = b""
    for i in range(1, n + 1):
        last = hmac_blake2s(secret, last + bytes((i,)))
        out.append(last)
    return tuple(out)


def equal(a: Buffer, b: Buffer) -> bool:
    """Compare two secrets in a time that does not depend on where they differ."""
    return hmac.compare_digest(a, b)
