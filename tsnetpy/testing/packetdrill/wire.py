"""Between the numbers of a script and those on the wire: building injected packets, reading what the stack sent."""

from dataclasses import dataclass
from typing import Final, final

from tsnetpy.base.addr import IpBytes
from tsnetpy.base.instant import Instant
from tsnetpy.base.packet import PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, TxPacket
from tsnetpy.nic import tso
from tsnetpy.tcp.flags import ACK, CWR, ECE, FIN, PSH, RST, SYN, URG
from tsnetpy.wire import tcp as tcp_wire
from tsnetpy.wire import udp as udp_wire

from .script import IcmpSpec, Option, TcpSpec, Unsupported

_MASK: Final = 0xFFFFFFFF
_HUGE_MTU: Final = 1 << 17
_LETTERS: Final = {"F": FIN, "S": SYN, "R": RST, "P": PSH, ".": ACK, "U": URG, "E": ECE, "W": CWR}
_KINDS: Final = {"mss": 2, "wscale": 3, "sackOK": 4, "sack": 5, "TS": 8, "md5": 19, "fastopen": 34, "fastopen_exp": 254}
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}
_FASTOPEN_MAGIC: Final = b"\xf9\x89"

# (type, code) by name
_ICMP4: Final = {
    "net_unreachable": (3, 0),
    "host_unreachable": (3, 1),
    "protocol_unreachable": (3, 2),
    "port_unreachable": (3, 3),
    "frag_needed": (3, 4),
    "source_route_failed": (3, 5),
    "net_unknown": (3, 6),
    "host_unknown": (3, 7),
    "host_isolated": (3, 8),
    "net_prohibited": (3, 9),
    "host_prohibited": (3, 10),
    "packet_filtered": (3, 13),
    "ttl_exceeded": (11, 0),
}
_ICMP6: Final = {
    "net_unreachable": (1, 0),
    "no_route": (1, 0),
    "admin_prohibited": (1, 1),
    "host_prohibited": (1, 1),
    "packet_filtered": (1, 1),
    "host_unreachable": (1, 3),
    "address_unreachable": (1, 3),
    "port_unreachable": (1, 4),
    "packet_too_big": (2, 0),
    "frag_needed": (2, 0),
    "protocol_unreachable": (4, 1),
    "ttl_exceeded": (3, 0),
}

_PATTERN: Final = bytes(range(251)) * 300
"""Payload by stream offset: a prime period, so that a shift by any power of two shows."""


def pattern(offset: int, length: int) -> bytes:
    """Return *length* bytes of the stream from *offset* on."""
    start = offset % 251
    if start + length <= len(_PATTERN):
        return _PATTERN[start : start + length]
    whole = _PATTERN * (length // len(_PATTERN) + 2)
    return whole[start : start + length]


def flag_bits(text: str) -> int:
    """Return the control bits for the flags of a script."""
    bits = 0
    for letter in text:
        if letter == "-":
            continue
        if letter not in _LETTERS:
            raise Unsupported(f"TCP flag {letter!r}")
        bits |= _LETTERS[letter]
    return bits


def flag_text(bits: int) -> str:
    """Return control bits as a script writes them."""
    return "".join(letter for letter, bit in _LETTERS.items() if letter != "." and bits & bit) + (
        "." if bits & ACK else ""
    )


def decode_options(data: bytes) -> list[Option]:
    """Return the options in *data*, padding left out; numbers as on the wire."""
    out: list[Option] = []
    at = 0
    while at < len(data):
        kind = data[at]
        if kind == 0:
            break
        if kind == 1:
            at += 1
            continue
        length = data[at + 1] if at + 1 < len(data) else 0
        if length < 2:
            out.append(Option("malformed", (), data[at:]))
            break
        body = data[at + 2 : at + length]
        name = _NAMES.get(kind, f"option {kind}")
        if name in ("mss", "wscale"):
            out.append(Option(name, (int.from_bytes(body, "big"),)))
        elif name in ("TS", "sack"):
            out.append(Option(name, tuple(int.from_bytes(body[i : i + 4], "big") for i in range(0, len(body), 4))))
        else:
            out.append(Option(name, (), body))
        at += length
    return out


@final
@dataclass(slots=True)
class Live:
    """One TCP segment that the stack sent, up to a super-segment."""

    at: Instant
    flags: int
    seq: int
    ack: int
    window: int
    options: list[Option]
    payload: bytes
    gso_size: int
    tos: int


@final
@dataclass(slots=True)
class LiveOther:
    """A datagram or an ICMP message that the stack sent."""

    at: Instant
    proto: int
    body: bytes


@final
class Flow:
    """The one connection of a script: addresses, and what to add to its numbers.

    Attributes:
        peer_isn: where the peer's sequence space starts; ours is learnt from our first SYN.
        peer_start, our_start: what the script calls the number of either SYN, nearly always 0.
    """

    __slots__ = (
        "_ts",
        "local",
        "local_port",
        "our_isn",
        "our_start",
        "peer_isn",
        "peer_start",
        "remote",
        "remote_port",
        "ts_shift",
    )

    def __init__(self, local: IpBytes, remote: IpBytes, peer_isn: int) -> None:
        self.local = local
        self.remote = remote
        self.local_port = 8080
        self.remote_port = 53_055
        self.peer_isn = peer_isn
        self.our_isn: int | None = None
        self.our_start = 0
        self.peer_start = 0
        self.ts_shift: int | None = None
        self._ts: dict[int, int] = {}

    # -- in ------------------------------------------------------------------------------------------------------------

    def build(self, spec: TcpSpec, cut: int, tos: int) -> list[bytes]:
        """Return the IP packets for an injected segment, its data cut at *cut* bytes unless that is 0."""
        flags = flag_bits(spec.flags)
        ack = ((spec.ack or 0) + (self.our_isn or 0)) & _MASK if flags & ACK else 0
        if not isinstance(spec.options, tuple):
            raise Unsupported("<...> in an injected packet")
        header = tcp_wire.encode_header(
            self.remote_port,
            self.local_port,
            (spec.seq + self.peer_isn) & _MASK,
            ack,
            flags,
            spec.win if spec.win is not None else 0,
            self._encode_options(spec.options),
            spec.urg or 0,
        )
        if flags & SYN:
            self.peer_start = spec.seq
        payload = pattern(spec.seq - self.peer_start + (1 if flags & SYN else 0), spec.length)
        unit = TxPacket(self.remote, self.local, PROTO_TCP, header, [payload], len(payload), cut, 64, tos)
        return tso.split(unit, 60_000 if cut else _HUGE_MTU)

    def _encode_options(self, options: tuple[Option, ...]) -> bytes:
        out = bytearray()
        for option in options:
            if option.name in ("nop", "eol"):
                out.append(1 if option.name == "nop" else 0)
                continue
            body = option.blob
            if option.name == "mss":
                body = option.numbers[0].to_bytes(2, "big")
            elif option.name == "wscale":
                body = bytes(option.numbers)
            elif option.name == "TS":
                val, ecr = option.numbers
                body = val.to_bytes(4, "big") + self._live_ts(ecr).to_bytes(4, "big")
            elif option.name == "sack":
                body = b"".join(((n + (self.our_isn or 0)) & _MASK).to_bytes(4, "big") for n in option.numbers)
            elif option.name == "fastopen_exp":
                body = _FASTOPEN_MAGIC + body
            out += bytes((_KINDS[option.name], len(body) + 2)) + body
        return bytes(out)

    def build_udp(self, length: int) -> list[bytes]:
        """Return the IP packets of an injected datagram."""
        header = udp_wire.UdpHeader(self.remote_port, self.local_port, length + 8).encode()
        unit = TxPacket(self.remote, self.local, PROTO_UDP, header, [pattern(0, length)], length)
        return tso.split(unit, _HUGE_MTU)

    def build_icmp(self, spec: IcmpSpec, proto: int) -> list[bytes]:
        """Return an ICMP error from the peer that quotes a segment (or datagram) of ours."""
        v4 = len(self.local) == 4
        known = _ICMP4 if v4 else _ICMP6
        name = spec.code or spec.kind
        if name not in known:
            raise Unsupported(f"ICMP {spec.kind} {spec.code}")
        kind, code = known[name]
        if proto == PROTO_TCP:
            seq = ((spec.quoted_seq or 0) + (self.our_isn or 0)) & _MASK
            quoted = tcp_wire.encode_header(self.local_port, self.remote_port, seq, 0, ACK, 0)
        else:
            quoted = udp_wire.UdpHeader(self.local_port, self.remote_port, 8).encode()
        quote = tso.split(TxPacket(self.local, self.remote, proto, quoted, [], 0), _HUGE_MTU)[0]
        header = bytes((kind, code, 0, 0)) + spec.mtu.to_bytes(4, "big")
        icmp_proto = PROTO_ICMP if v4 else PROTO_ICMPV6
        return tso.split(TxPacket(self.remote, self.local, icmp_proto, header, [quote], len(quote)), _HUGE_MTU)

    # -- out -----------------------------------------------------------------------------------------------------------

    def read(self, unit: TxPacket, now: Instant) -> Live | LiveOther:
        """Return *unit* with the numbers of the script."""
        payload = b"".join(unit.payload)
        if unit.proto != PROTO_TCP:
            return LiveOther(now, unit.proto, unit.header + payload)
        header = tcp_wire.decode(unit.header)
        if header.flags & SYN and self.our_isn is None:
            self.our_isn = header.seq
        seq = (header.seq - (self.our_isn or 0)) & _MASK
        ack = (header.ack - self.peer_isn) & _MASK if header.flags & ACK else 0
        options = decode_options(header.options)
        for at, option in enumerate(options):
            if option.name == "sack":
                options[at] = Option("sack", tuple((n - self.peer_isn) & _MASK for n in option.numbers))
        return Live(now, header.flags, seq, ack, header.window, options, payload, unit.gso_size, unit.tos)

    def note_timestamp(self, script_val: int, live_val: int) -> None:
        """Remember which of our timestamps the script calls *script_val*."""
        self._ts[script_val] = live_val
        if self.ts_shift is None:
            self.ts_shift = live_val - script_val

    def _live_ts(self, ecr: int) -> int:
        known = self._ts.get(ecr)
        if known is not None or not ecr:
            return known or 0
        return (ecr + (self.ts_shift or 0)) & _MASK

    def describe_icmp(self, spec: IcmpSpec) -> tuple[int, int]:
        """Return type and code of an expected ICMP message."""
        known = _ICMP4 if len(self.local) == 4 else _ICMP6
        name = spec.code or spec.kind
        if name not in known:
            raise Unsupported(f"ICMP {spec.kind} {spec.code}")
        return known[name]


def describe(live: Live) -> str:
    """Return *live* as a script would write it."""
    size = len(live.payload)
    text = f"{flag_text(live.flags)} {live.seq}:{live.seq + size}({size})"
    if live.flags & ACK:
        text += f" ack {live.ack}"
    text += f" win {live.window}"
    if live.options:
        text += " <" + ",".join(option_text(o) for o in live.options) + ">"
    return text


def option_text(option: Option) -> str:
    """Return *option* as a script would write it, padding left out."""
    if option.name == "TS":
        return f"TS val {option.numbers[0]} ecr {option.numbers[1]}"
    if option.name == "sack":
        edges = option.numbers
        return "sack " + " ".join(f"{edges[i]}:{edges[i + 1]}" for i in range(0, len(edges) - 1, 2))
    return " ".join([option.name, *map(str, option.numbers), *([option.blob.hex()] if option.blob else [])])
