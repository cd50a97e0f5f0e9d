"""SSH host keys as PEM, in the form that Tailscale stores (PKCS#8) and the form that the SSH engine loads."""

from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from .errors import CryptoError

KINDS: Final = ("ed25519", "ecdsa", "rsa")
"""The kinds of host key, best first."""


def generate(kind: str) -> str:
    """Return a new private key of *kind* (one of :data:`KINDS`; RSA 2048, ECDSA P-256) as PKCS#8 PEM."""
    key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    if kind == "ed25519":
        key = ed25519.Ed25519PrivateKey.generate()
    elif kind == "ecdsa":
        key = ec.generate_private_key(ec.SECP256R1())
    elif kind == "rsa":
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    else:
        raise CryptoError(f"no such kind of host key: {kind}")
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")


def to_openssh(pem: str) -> tuple[str, str]:
    """Return the private key in OpenSSH's PEM form, and its public line (type and base64).

    Raises:
        CryptoError: *pem* holds no private key of :data:`KINDS`.
    """
    try:
        key = load_pem_private_key(pem.encode("ascii"), None)
    except (ValueError, TypeError, UnicodeEncodeError):
        raise CryptoError("no usable private key") from None
    if not isinstance(key, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise CryptoError("no kind of key that serves as an SSH host key")
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode("ascii")
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")
    return private, public
