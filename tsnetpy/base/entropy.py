"""Where random bytes come from. Engines never draw their own: the owner hands an :class:`Entropy` in."""

import os  # the one place in the sans-IO core that touches the operating system
from typing import Protocol


class Entropy(Protocol):
    """A source of unpredictable bytes."""

    def bytes(self, n: int) -> bytes:
        """Return *n* random bytes."""
        ...

    def u32(self) -> int:
        """Return a random integer in ``[0, 2**32)``."""
        ...


class SystemEntropy:
    """The operating system's random source; the only one that production code may use."""

    def bytes(self, n: int) -> bytes:
        """Return *n* bytes of :func:`os.urandom`."""
        return os.urandom(n)

    def u32(self) -> int:
        """Return 32 bits of :func:`os.urandom` as an integer."""
        return int.from_bytes(os.urandom(4), "big")
