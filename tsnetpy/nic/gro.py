"""Generic receive offload: joins in-order TCP segments of one batch into super-segments.

The table of open runs lives for one batch only, so joining adds no delay and needs no timer. Nothing behind this GRO
ever cuts a packet up again, so the rules are looser than a kernel's, where every merge must be reversible:

* payload sizes may vary, PSH does not end a run, and the acknowledgement and window may advance (the last ones count);
* timestamps may advance: the run keeps the first TSval, which RFC 7323 §4.3 wants for TS.Recent, and the last TSecr;
* FIN may end a run. SYN, RST, URG, ECE, CWR, pure ACKs, fragments and anything unusual pass singly, and close the run
  of their flow first, so that order within a flow is kept;
* traffic class (which carries the ECN marks) and hop limit must agree.
"""

import struct
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from tsnetpy.accel.segments import raw_sum
from tsnetpy.base.addr import IpBytes
from tsnetpy.base.packet import PROTO_TCP, Buffer, PeerId
from tsnetpy.base.stats import Drops

from .parse import parse
from .rx import RxPacket

MAX_RUN_BYTES: Final = 65535
"""Payload bytes of one super-segment."""

_ACK: Final = 0x10
_PSH: Final = 0x08
_FIN: Final = 0x01
_MERGEABLE: Final = 0xFF & ~(_PSH | _FIN)

# version and class, length, fragment field, ttl and protocol, addresses, ports, seq, ack, offset and flags, window
_TCP4: Final = struct.Struct("!HHxxHHxx8sIIIHH")
_TCP6: Final = struct.Struct("!IHH32sIIIHH")
_TS_ONLY: Final = b"\x01\x01\x08\x0a"
_NOBODY: Final[frozenset[IpBytes]] = frozenset()


def coalesce(
    packets: Iterable[tuple[PeerId, Buffer]],
    drops: Drops,
    verify: bool = True,
    trusted: frozenset[IpBytes] = _NOBODY,
) -> list[RxPacket]:
    """Parse one batch of decrypted IP packets and join what belongs together.

    Args:
        packets: peer and complete IP packet, in order of arrival. The buffers are borrowed.
        drops: counts what was refused.
        verify: check inner checksums. It is the dearest step of receiving (1.3 of about 3 µs a packet).
        trusted: source addresses whose packets are not verified all the same. WireGuard's authentication covers the
            whole packet, so a checksum adds nothing where the peer itself made the packet, that is, for the peer's own
            addresses; packets that a subnet router forwards for others still need it.

    Returns:
        Packets and super-segments; within one flow in order of arrival.
    """
    out: list[RxPacket] = []
    runs: dict[tuple[bytes, int], RxPacket] = {}
    run: RxPacket | None = None
    # What the next packet of `run` looks like if nothing changes but sequence number and checksum, as in bulk data: one
    # comparison then stands for all the checks below, which the packet before it has passed. Length -1 for "not
    # known": a packet from the wire may well be empty.
    same_size = -1
    same_fields = _fields(20, 40)
    same = (b"", 0, b"", b"")
    same_data = 0
    for peer, data in packets:
        size = len(data)
        if (
            size == same_size
            and run is not None
            and same_fields(data) == (same[0], run.next_seq, same[2], same[3])
            and run.peer == peer
            and run.payload_len + same_data <= MAX_RUN_BYTES
        ):
            if run.parts is None:
                run.parts = [run.payload]
            run.parts.append(data[size - same_data :])
            run.payload_len += same_data
            run.packets += 1
            run.next_seq = (run.next_seq + same_data) & 0xFFFFFFFF
            continue
        same_size = -1
        first = data[0] if size >= 40 else 0
        if first == 0x45:
            tos, total, frag, ttl, addrs, ports, seq, ack, offset_flags, wnd = _TCP4.unpack_from(data)
            ip_len = 20
            plain = 40 <= total <= size and not frag & 0xBFFF and ttl & 0xFF == PROTO_TCP
        elif first >> 4 == 6 and size >= 60:
            tos, total, ttl, addrs, ports, seq, ack, offset_flags, wnd = _TCP6.unpack_from(data)
            ip_len = 40
            total += 40
            plain = 60 <= total <= size and ttl >> 8 == PROTO_TCP
        else:
            plain = False
        if not plain:
            half = parse(peer, data, drops, verify and not _is_trusted(data, trusted))
            if half is not None:
                if half.proto == PROTO_TCP:
                    runs.pop((half.addrs, half.ports), None)
                    run = None
                out.append(half)
            continue
        if total < size:  # WireGuard pads plaintexts to a multiple of 16
            data = data[:total]
            size = total

        header_end = ip_len + (offset_flags >> 10 & 0x3C)
        if header_end < ip_len + 20 or header_end > size:
            drops.add("transport_length")
            continue
        if ports < 0x10000 or not ports & 0xFFFF:
            drops.add("port_zero")
            continue
        unproven = verify and (not trusted or addrs[: len(addrs) >> 1] not in trusted)
        if unproven:
            # Summing the whole packet saves a copy; what the pseudo-header does not have is taken out again. A correct
            # IPv4 header sums to zero, and an IPv6 header has only its first 8 bytes besides the addresses.
            words = PROTO_TCP + size - ip_len + raw_sum(data)
            if ip_len == 20:
                if int.from_bytes(data[:20], "big") % 65535:
                    drops.add("ip_checksum")
                    continue
                words += int.from_bytes(addrs, "big")
            else:
                words -= int.from_bytes(data[:8], "big")
            if words % 65535:
                drops.add("tcp_checksum")
                continue

        flags = offset_flags & 0xFF
        length = size - header_end
        mergeable = flags & _MERGEABLE == _ACK and length > 0
        options = bytes(data[ip_len + 20 : header_end])
        if run is None or run.ports != ports or run.addrs != addrs:
            run = runs.get((addrs, ports))
        if (
            mergeable
            and run is not None
            and run.next_seq == seq
            and run.run_hops == ttl
            and run.run_class == tos
            and run.peer == peer
            and (options == run.last_options or _join_options(run, options))
            and (ack - run.ack) & 0xFFFFFFFF < 0x80000000
            and run.payload_len + length <= MAX_RUN_BYTES
        ):
            if run.parts is None:
                run.parts = [run.payload]
            run.parts.append(data[header_end:])
            run.payload_len += length
            run.packets += 1
            run.flags |= flags
            run.ack = ack
            run.wnd = wnd
            run.next_seq = -1 if flags & _FIN else (seq + length) & 0xFFFFFFFF
        else:
            if ip_len == 20:
                rx = RxPacket(peer, addrs, PROTO_TCP, ports, tos & 0xFF, ttl >> 8)
            else:
                rx = RxPacket(peer, addrs, PROTO_TCP, ports, tos >> 20 & 0xFF, ttl & 0xFF)
            rx.seq = seq
            rx.ack = ack
            rx.flags = flags
            rx.wnd = wnd
            rx.options = options
            rx.payload = bytes(data[header_end:])
            out.append(rx)
            if not mergeable or flags & _FIN:
                if run is not None:
                    del runs[addrs, ports]
                    run = None
                continue
            rx.last_options = options
            rx.payload_len = length
            rx.next_seq = (seq + length) & 0xFFFFFFFF
            rx.run_class = tos
            rx.run_hops = ttl
            run = runs[addrs, ports] = rx
        if not unproven:
            same_size, same_data = size, length
            same_fields = _fields(ip_len, header_end)
            same = same_fields(data)

    for rx in out:
        if rx.parts is not None:
            rx.payload = b"".join(rx.parts)
            rx.parts = None
    return out


_Fields: TypeAlias = Callable[[Buffer], tuple[bytes, int, bytes, bytes]]
_known_fields: Final[dict[tuple[int, int], _Fields]] = {}


def _fields(ip_len: int, header_end: int) -> _Fields:
    """Return what takes headers of these lengths apart, around sequence number and checksum (which it leaves out)."""
    known = _known_fields.get((ip_len, header_end))
    if known is None:  # there are two times eleven
        layout = struct.Struct(f"!{ip_len + 4}sI8s2x{header_end - ip_len - 18}s")
        known = _known_fields[ip_len, header_end] = layout.unpack_from
    return known


def _is_trusted(data: Buffer, trusted: frozenset[IpBytes]) -> bool:
    if not trusted or len(data) < 20:
        return False
    if data[0] >> 4 == 4:
        return bytes(data[12:16]) in trusted
    return bytes(data[8:24]) in trusted


def _join_options(run: RxPacket, options: bytes) -> bool:
    """Join the options of the next segment if both carry just timestamps that do not run backwards."""
    if len(options) != 12 or len(run.last_options) != 12:
        return False
    if options[:4] != _TS_ONLY or run.last_options[:4] != _TS_ONLY:
        return False
    step = int.from_bytes(options[4:8], "big") - int.from_bytes(run.last_options[4:8], "big")
    if step & 0xFFFFFFFF >= 0x80000000:
        return False
    run.last_options = options
    run.options = run.options[:8] + options[8:]
    return True
