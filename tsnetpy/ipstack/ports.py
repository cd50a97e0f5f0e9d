"""Port numbers and initial sequence numbers that an outsider cannot guess (RFC 6056, RFC 6528)."""

from collections.abc import Callable
from typing import final

from tsnetpy.base.addr import IpBytes
from tsnetpy.base.entropy import Entropy
from tsnetpy.base.instant import Instant
from tsnetpy.crypto.hash import blake2s_mac

from .errors import AddressInUse, InvalidPort


def check_port(port: int, *, zero: bool) -> None:
    """Refuse numbers that are no port; 0 only passes if *zero* is true.

    Raises:
        InvalidPort: it is none.
    """
    if not (0 if zero else 1) <= port <= 65535:
        raise InvalidPort(f"no port: {port}")


def flow_name(local: IpBytes, local_port: int, remote: IpBytes, remote_port: int) -> bytes:
    """Return what names a connection in keyed hashes."""
    return local + local_port.to_bytes(2, "big") + remote + remote_port.to_bytes(2, "big")


@final
class PortAllocator:
    """Picks ephemeral ports: a random start, then upwards to the first free one (RFC 6056 §3.3.1)."""

    __slots__ = ("_entropy", "_first", "_span")

    def __init__(self, entropy: Entropy, first: int, last: int) -> None:
        self._entropy = entropy
        self._first = first
        self._span = last - first + 1

    def pick(self, is_free: Callable[[int], bool]) -> int:
        """Return a port for which *is_free* holds.

        Raises:
            AddressInUse: every port of the range is taken.
        """
        start = self._entropy.u32() % self._span
        for step in range(self._span):
            port = self._first + (start + step) % self._span
            if is_free(port):
                return port
        raise AddressInUse("no ephemeral port is free", hint="close some connections to this destination")


@final
class IsnGenerator:
    """Initial sequence numbers: a 4-microsecond clock plus a keyed hash of the connection's name (RFC 6528 §3)."""

    __slots__ = ("_secret",)

    def __init__(self, entropy: Entropy) -> None:
        self._secret = entropy.bytes(32)

    def iss(self, local: IpBytes, local_port: int, remote: IpBytes, remote_port: int, now: Instant) -> int:
        """Return the 32-bit number for a new connection."""
        return (now // 4000 + self._hash(b"I", local, local_port, remote, remote_port)) & 0xFFFFFFFF

    def timestamp_offset(self, local: IpBytes, local_port: int, remote: IpBytes, remote_port: int) -> int:
        """Return what to add to our timestamp clock here, so that uptime does not show (RFC 7323 §5.4)."""
        return self._hash(b"T", local, local_port, remote, remote_port)

    def _hash(self, use: bytes, local: IpBytes, local_port: int, remote: IpBytes, remote_port: int) -> int:
        name = use + flow_name(local, local_port, remote, remote_port)
        return int.from_bytes(blake2s_mac(self._secret, name, 4), "big")
