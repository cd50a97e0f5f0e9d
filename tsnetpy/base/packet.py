"""The units that cross package borders on the packet path: slots and plain ints, one per super-segment."""

from typing import Final, TypeAlias, final

from .addr import IpBytes

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Borrowed bytes: valid until the call that received them returns. What an engine keeps, it copies."""

PeerId: TypeAlias = bytes
"""A peer's WireGuard public key (its node key), 32 raw bytes."""

PROTO_ICMP: Final = 1
PROTO_TCP: Final = 6
PROTO_UDP: Final = 17
PROTO_ICMPV6: Final = 58
PROTO_TSMP: Final = 99


@final
class TxPacket:
    """One outbound IP payload of up to 64 KiB, cut into IP packets by ``nic.tso`` at the last moment.

    Attributes:
        src, dst: raw addresses of one family.
        proto: IP protocol number.
        header: the transport header with a zero checksum field (TCP 20-60 bytes, UDP 8, ICMP the first 8).
        payload: pieces of what follows the header, in order.
        payload_len: their total length in bytes.
        gso_size: payload bytes per packet (the MSS) if this may be cut, else 0; for UDP, bytes per datagram.
        ttl: time to live or hop limit.
        tos: traffic class, ECN bits included.
        ident: IP identification, used if the packet has to be fragmented (IPv4 takes the low 16 bits).
        mtu: path MTU towards *dst* if it is known to be below the interface's, else 0.
    """

    __slots__ = ("dst", "gso_size", "header", "ident", "mtu", "payload", "payload_len", "proto", "src", "tos", "ttl")

    def __init__(
        self,
        src: IpBytes,
        dst: IpBytes,
        proto: int,
        header: bytes,
        payload: list[Buffer],
        payload_len: int,
        gso_size: int = 0,
        ttl: int = 64,
        tos: int = 0,
        ident: int = 0,
        mtu: int = 0,
    ) -> None:
        self.src = src
        self.dst = dst
        self.proto = proto
        self.header = header
        self.payload = payload
        self.payload_len = payload_len
        self.gso_size = gso_size
        self.ttl = ttl
        self.tos = tos
        self.ident = ident
        self.mtu = mtu


@final
class TxBatch:
    """Datagrams of one size to one peer, laid end to end, ready for one ``UDP_SEGMENT`` system call.

    Attributes:
        data: all datagrams, back to back (immutable once handed over).
        segment_size: length of each datagram; the last may be shorter.
    """

    __slots__ = ("data", "segment_size")

    def __init__(self, data: bytes | bytearray | memoryview, segment_size: int) -> None:
        self.data = data
        self.segment_size = segment_size

    @property
    def count(self) -> int:
        """How many datagrams the batch holds."""
        return -(-len(self.data) // self.segment_size) if self.segment_size else 0

    def datagrams(self) -> list[memoryview]:
        """Return each datagram as a view."""
        view = memoryview(self.data)
        size = self.segment_size
        return [view[at : at + size] for at in range(0, len(view), size)]
