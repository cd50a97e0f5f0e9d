"""What can go wrong in this package, as types."""

from cryptography.exceptions import InvalidTag as InvalidTag

from tsnetpy.base.errors import TsnetError


class CryptoError(TsnetError):
    """A message is not authentic, a key is unusable, or a Diffie-Hellman result is degenerate."""
