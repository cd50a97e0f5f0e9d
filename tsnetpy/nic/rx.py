"""What the NIC hands up: one object per packet or, after GRO, per super-segment."""

from typing import final

from tsnetpy.base.addr import Endpoint, IpBytes
from tsnetpy.base.packet import PROTO_TCP, PeerId


@final
class RxPacket:
    """One received IP packet with its headers parsed and lengths checked, or a run of TCP segments merged into one.

    Attributes:
        peer: who sent it through the tunnel.
        src, dst: raw addresses; ``addrs`` is both laid end to end, as on the wire.
        proto: the transport protocol (behind an IPv6 Fragment header).
        ports: source port in the high 16 bits, destination port in the low ones; 0 for protocols without ports and
            for fragments other than the first.
        tos, ttl: traffic class and hop limit of the first packet.
        packets: how many packets were merged.
        seq, ack, flags, wnd, options, payload: TCP only (and only if this is no fragment). After a merge: the first
            sequence number, the last acknowledgement and window, all flags together, and the first packet's options
            (with the last TSecr if they are timestamps).
        raw: the whole IP packet if this is not TCP, or is a fragment; else ``b""``.
        offset: where the transport header starts in *raw*.
        end: where the transport payload ends in *raw* (a UDP length may be shorter than the packet).
        fragment: True if this is one part of a larger packet; then ``frag_id``, ``frag_offset`` (bytes) and
            ``frag_more`` say which.
        problem: code << 16 | pointer if this is an IPv6 packet that must be answered with a "parameter problem" and is
            of no other use; else -1.
    """

    __slots__ = (
        "ack",
        "addrs",
        "dst",
        "end",
        "flags",
        "frag_id",
        "frag_more",
        "frag_offset",
        "fragment",
        "last_options",
        "next_seq",
        "offset",
        "options",
        "packets",
        "parts",
        "payload",
        "payload_len",
        "peer",
        "ports",
        "problem",
        "proto",
        "raw",
        "run_class",
        "run_hops",
        "seq",
        "src",
        "tos",
        "ttl",
        "wnd",
    )

    def __init__(self, peer: PeerId, addrs: bytes, proto: int, ports: int, tos: int, ttl: int) -> None:
        half = len(addrs) >> 1
        self.peer = peer
        self.addrs = addrs
        self.src: IpBytes = addrs[:half]
        self.dst: IpBytes = addrs[half:]
        self.proto = proto
        self.ports = ports
        self.tos = tos
        self.ttl = ttl
        self.packets = 1
        self.seq = 0
        self.ack = 0
        self.flags = 0
        self.wnd = 0
        self.options = b""
        self.payload = b""
        self.raw = b""
        self.offset = 0
        self.end = 0
        self.fragment = False
        self.frag_id = 0
        self.frag_offset = 0
        self.frag_more = False
        self.problem = -1
        # The open run, while GRO is still joining.
        self.parts: list[bytes | bytearray | memoryview] | None = None
        self.payload_len = 0
        self.next_seq = -1
        self.run_class = 0
        self.run_hops = 0
        self.last_options = b""

    @property
    def src_port(self) -> int:
        """Source port, 0 if there is none."""
        return self.ports >> 16

    @property
    def dst_port(self) -> int:
        """Destination port, 0 if there is none."""
        return self.ports & 0xFFFF

    @property
    def source(self) -> Endpoint:
        """Source address and port."""
        return Endpoint(self.src, self.ports >> 16)

    @property
    def destination(self) -> Endpoint:
        """Destination address and port."""
        return Endpoint(self.dst, self.ports & 0xFFFF)

    def transport(self) -> bytes:
        """Return transport header and payload of a packet that is not TCP (for a fragment: its piece of them)."""
        return self.raw[self.offset : self.end]

    def __repr__(self) -> str:
        if self.proto == PROTO_TCP and not self.raw:
            size = len(self.payload)
            return f"<RxPacket TCP {self.source} > {self.destination} seq={self.seq} len={size} packets={self.packets}>"
        return f"<RxPacket proto={self.proto} {self.source} > {self.destination} len={self.end - self.offset}>"
