"""Randomness that repeats: for tests only. Keys made from it are known to everybody who knows the seed."""

import hashlib
from typing import final


@final
class SeededEntropy:
    """The same bytes at each run: SHA-256 in counter mode over *seed*."""

    __slots__ = ("_counter", "_pool", "_seed")

    def __init__(self, seed: int | str) -> None:
        self._seed = hashlib.sha256(f"tsnetpy test entropy {seed}".encode()).digest()
        self._counter = 0
        self._pool = b""

    def bytes(self, n: int) -> bytes:
        """Return the next *n* bytes."""
        while len(self._pool) < n:
            self._pool += hashlib.sha256(self._seed + self._counter.to_bytes(8, "big")).digest()
            self._counter += 1
        out, self._pool = self._pool[:n], self._pool[n:]
        return out

    def u32(self) -> int:
        """Return the next 32 bits."""
        return int.from_bytes(self.bytes(4), "big")

    def chance(self, probability: float) -> bool:
        """Return True with *probability*."""
        return probability > 0 and self.u32() < probability * 2**32
