"""Key material as types, with Tailscale's text forms (control protocol reference, section 1).

Private keys never print: ``repr`` and ``str`` are redacted, and only :meth:`PrivateKey.text` gives the secret out. The
public half is computed in :mod:`tsnetpy.crypto.dh`, since this package does no cryptography.
"""

from typing import ClassVar, Self

from .errors import DecodeError


class _Key:
    __slots__ = ("raw",)
    PREFIX: ClassVar[str] = ""

    def __init__(self, raw: bytes) -> None:
        if len(raw) != 32:
            raise DecodeError(f"a key has 32 bytes, not {len(raw)}")
        self.raw = bytes(raw)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the key in *text* (prefix and 64 hex digits).

        Raises:
            DecodeError: wrong prefix, length or digits. The message never repeats the input.
        """
        if not text.startswith(cls.PREFIX):
            raise DecodeError(f"key does not start with {cls.PREFIX!r}")
        digits = text[len(cls.PREFIX) :]
        try:
            raw = bytes.fromhex(digits)
        except ValueError:
            raw = b""
        if len(raw) != 32 or len(digits) != 64:
            raise DecodeError(f"{cls.PREFIX} needs 64 hex digits after it")
        return cls(raw)

    @classmethod
    def zero(cls) -> Self:
        """Return the all-zero key, which on the wire means "none"."""
        return cls(bytes(32))

    @property
    def is_zero(self) -> bool:
        """True for 32 zero bytes."""
        return not any(self.raw)

    def text(self) -> str:
        """Return prefix and lower-case hex digits."""
        return self.PREFIX + self.raw.hex()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and type(other) is type(self) and other.raw == self.raw

    def __hash__(self) -> int:
        return hash(self.raw)


class PublicKey(_Key):
    """A public key; ``str`` is its text form."""

    __slots__ = ()

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.raw[:4].hex()}…>"


class PrivateKey(_Key):
    """An X25519 private key, clamped; it never prints."""

    __slots__ = ()
    PREFIX: ClassVar[str] = "privkey:"

    def __init__(self, raw: bytes) -> None:
        super().__init__(raw)
        if any(self.raw):
            clamped = bytearray(self.raw)
            clamped[0] &= 248
            clamped[31] = (clamped[31] & 127) | 64
            self.raw = bytes(clamped)

    def __str__(self) -> str:
        return f"<{type(self).__name__} redacted>"

    def __repr__(self) -> str:
        return str(self)


class NodePublic(PublicKey):
    """A node's WireGuard public key, which is also its DERP address."""

    __slots__ = ()
    PREFIX: ClassVar[str] = "nodekey:"


class MachinePublic(PublicKey):
    """The Noise static public key of one installation (or of a coordination server)."""

    __slots__ = ()
    PREFIX: ClassVar[str] = "mkey:"


class DiscoPublic(PublicKey):
    """A disco public key: new at each process start."""

    __slots__ = ()
    PREFIX: ClassVar[str] = "discokey:"


class ChallengePublic(PublicKey):
    """The node-key challenge in the control protocol's early payload."""

    __slots__ = ()
    PREFIX: ClassVar[str] = "chalpub:"


class NodePrivate(PrivateKey):
    """The private half of :class:`NodePublic`."""

    __slots__ = ()


class MachinePrivate(PrivateKey):
    """The private half of :class:`MachinePublic`."""

    __slots__ = ()


class DiscoPrivate(PrivateKey):
    """The private half of :class:`DiscoPublic`; never stored."""

    __slots__ = ()
