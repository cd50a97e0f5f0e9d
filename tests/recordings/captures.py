"""Reads the packet captures in ``tests/data/datapath`` (classic pcap, little-endian)."""

import pathlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tsnetpy.base.addr import IpBytes
from tsnetpy.wire import ipv4, ipv6

DATA = pathlib.Path(__file__).parents[1] / "data"
CAPTURES = sorted(path.stem for path in (DATA / "datapath").glob("*.pcap"))
ETHERNET, RAW_IP = 1, 101


@dataclass(frozen=True, slots=True)
class Packet:
    """One captured IP packet."""

    data: bytes
    """From the IP header on; what the capture cut off is zero."""
    src: IpBytes
    dst: IpBytes
    proto: int
    body: bytes
    """What follows the IP header."""
    cut: bool
    header: ipv4.Ipv4Header | ipv6.Ipv6Header


def link_type(name: str) -> int:
    """Return the capture's link type."""
    magic, link = struct.unpack_from("<I16xI", (DATA / "datapath" / f"{name}.pcap").read_bytes())
    assert magic == 0xA1B2C3D4
    return int(link)


def packets(name: str) -> Iterator[Packet]:
    """Yield the IP packets of a capture; there is nothing else in any of them."""
    raw = (DATA / "datapath" / f"{name}.pcap").read_bytes()
    link = link_type(name)
    at = 24
    while at < len(raw):
        kept, full = struct.unpack_from("<II", raw, at + 8)
        frame = raw[at + 16 : at + 16 + kept] + bytes(full - kept)
        at += 16 + kept
        if link == ETHERNET:
            assert frame[12:14] in (b"\x08\x00", b"\x86\xdd")
            frame = frame[14:]
        if frame[0] >> 4 == 4:
            head4 = ipv4.decode(frame)
            assert not head4.more_fragments
            body = frame[head4.header_len : head4.total_length]
            yield Packet(frame, head4.src, head4.dst, head4.proto, body, kept < full, head4)
        else:
            head6 = ipv6.decode(frame)
            body = frame[ipv6.HEADER_LEN : ipv6.HEADER_LEN + head6.payload_length]
            yield Packet(frame, head6.src, head6.dst, head6.next_header, body, kept < full, head6)
    assert at == len(raw)
