"""What an implementation of the per-byte work offers.

Rules: bytes and ints only, no callbacks, none of our objects; a batch goes in and a batch comes out, so that the cost
of crossing into native code is paid once for many packets.
"""

from collections.abc import Sequence
from typing import Final, Protocol

from tsnetpy.base.packet import Buffer

ABI: Final = 1
"""Number of this interface; a native implementation must carry the same one."""


class TransportKey(Protocol):
    """One direction's key of a WireGuard session, made ready for batches. It never prints."""

    def seal_batch(
        self, receiver: int, counter: int, packets: Sequence[Buffer], mtu: int
    ) -> list[tuple[bytearray, int]]:
        """Seal *packets* as transport messages, in order.

        Args:
            receiver: the peer's index of this session.
            counter: nonce of the first packet; each next one uses the next.
            packets: plaintexts; an empty one is a keepalive.
            mtu: plaintexts are zero-filled to a multiple of 16 bytes, but not past this.

        Returns:
            Buffers ready for one ``UDP_SEGMENT`` call each, with the segment size: all datagrams of a buffer have that
            size, only the last may be shorter; at most 64 datagrams and 65,507 bytes.
        """
        ...

    def open_batch(self, datagrams: Sequence[Buffer]) -> list[tuple[int, bytes]]:
        """Open transport messages (at least 32 bytes each; type and receiver already looked at).

        Returns:
            Counter and plaintext, padding included, of every authentic message, in order; forgeries are absent.
        """
        ...


class PacketOps(Protocol):
    """The whole interface."""

    @property
    def name(self) -> str:
        """``"pure"`` or ``"native"``."""
        ...

    def checksum(self, data: Buffer, initial: int = 0) -> int:
        """Return the RFC 1071 one's complement sum of *data*, folded to 16 bits, not complemented.

        *initial* is any sum of 16-bit words to start from. An odd last byte is padded with a zero byte.
        """
        ...

    def transport_key(self, key: bytes) -> TransportKey:
        """Make a 32-byte ChaCha20-Poly1305 key ready.

        Raises:
            CryptoError: wrong length.
        """
        ...

    def split_tcp(self, header: bytes, payload: bytes, mss: int) -> list[bytes]:
        """Cut a TCP super-segment into IP packets; see :func:`tsnetpy.accel.segments.split_tcp`."""
        ...
