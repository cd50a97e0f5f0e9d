"""TCP options: MSS (RFC 9293 §3.2), window scale and timestamps (RFC 7323), SACK (RFC 2018).

Parsing is total: a broken length ends it. On a SYN a broken option list makes the segment invalid, because what was
negotiated would be guesswork; on other segments what came before the break still counts.
"""

from struct import Struct
from typing import Final, final

from tsnetpy.base.packet import Buffer

_END: Final = 0
_NOP: Final = 1
_MSS: Final = 2
_WSCALE: Final = 3
_SACK_PERMITTED: Final = 4
_SACK: Final = 5
_TIMESTAMPS: Final = 8

MAX_WSCALE: Final = 14
TS_LENGTH: Final = 12
"""Bytes that timestamps take from every packet: two NOPs and the ten of the option."""
TS_HEAD: Final = 0x0101080A
"""NOP, NOP, kind 8, length 10: how everybody lays timestamps out (RFC 7323 appendix A)."""
TS_LAYOUT: Final = Struct("!III")

_PAIR: Final = Struct("!II")


@final
class SynOptions:
    """What a SYN or SYN-ACK offered. ``mss`` is 0 and ``wscale`` -1 when absent."""

    __slots__ = ("has_ts", "mss", "sack_permitted", "ts_ecr", "ts_val", "wscale")

    def __init__(self) -> None:
        self.mss = 0
        self.wscale = -1
        self.sack_permitted = False
        self.has_ts = False
        self.ts_val = 0
        self.ts_ecr = 0


@final
class SegmentOptions:
    """What any other segment carried; ``sacks`` are (left, right) edges as on the wire."""

    __slots__ = ("has_ts", "sacks", "ts_ecr", "ts_val")

    def __init__(self) -> None:
        self.has_ts = False
        self.ts_val = 0
        self.ts_ecr = 0
        self.sacks: list[tuple[int, int]] = []


def parse_syn(options: Buffer) -> SynOptions | None:
    """Return the options of a SYN, or ``None`` when the list is malformed. The last of a duplicate wins."""
    out = SynOptions()
    at = 0
    end = len(options)
    while at < end:
        kind = options[at]
        if kind == _END:
            break
        if kind == _NOP:
            at += 1
            continue
        if at + 1 >= end:
            return None
        length = options[at + 1]
        if length < 2 or at + length > end:
            return None
        if kind == _MSS and length == 4:
            out.mss = options[at + 2] << 8 | options[at + 3]
        elif kind == _WSCALE and length == 3:
            out.wscale = min(options[at + 2], MAX_WSCALE)  # RFC 7323 §2.3
        elif kind == _SACK_PERMITTED and length == 2:
            out.sack_permitted = True
        elif kind == _TIMESTAMPS and length == 10:
            out.has_ts = True
            out.ts_val, out.ts_ecr = _PAIR.unpack_from(options, at + 2)
        at += length
    return out


def parse_segment(options: Buffer) -> SegmentOptions:
    """Return the options of a segment without SYN; what follows a malformed option is ignored."""
    out = SegmentOptions()
    at = 0
    end = len(options)
    while at < end:
        kind = options[at]
        if kind == _END:
            break
        if kind == _NOP:
            at += 1
            continue
        if at + 1 >= end:
            break
        length = options[at + 1]
        if length < 2 or at + length > end:
            break
        if kind == _TIMESTAMPS and length == 10:
            out.has_ts = True
            out.ts_val, out.ts_ecr = _PAIR.unpack_from(options, at + 2)
        elif kind == _SACK and length >= 10 and (length - 2) % 8 == 0:
            for edge in range(at + 2, at + length, 8):
                left, right = _PAIR.unpack_from(options, edge)
                out.sacks.append((left, right))
        at += length
    return out


def encode_syn(mss: int, wscale: int, sack_permitted: bool, has_ts: bool, ts_val: int, ts_ecr: int) -> bytes:
    """Return the option bytes of a SYN in the usual order (MSS, SACK-permitted, timestamps, window scale).

    Args:
        wscale: our shift, or -1 to leave the option out.
    """
    out = bytearray((_MSS, 4, mss >> 8 & 0xFF, mss & 0xFF))
    if sack_permitted:
        out += bytes((_SACK_PERMITTED, 2))
        if not has_ts:
            out += bytes((_NOP, _NOP))
    elif has_ts:
        out += bytes((_NOP, _NOP))
    if has_ts:
        out += bytes((_TIMESTAMPS, 10)) + _PAIR.pack(ts_val, ts_ecr)
    if wscale >= 0:
        out += bytes((_NOP, _WSCALE, 3, wscale))
    return bytes(out)


def encode_timestamps(ts_val: int, ts_ecr: int) -> bytes:
    """Return the 12 bytes that carry timestamps on every segment after the SYN."""
    return TS_LAYOUT.pack(TS_HEAD, ts_val, ts_ecr)


def encode_sack(blocks: list[tuple[int, int]]) -> bytes:
    """Return a padded SACK option for *blocks* of wire edges (at most 4, at most 3 beside timestamps)."""
    out = bytearray((_NOP, _NOP, _SACK, 2 + 8 * len(blocks)))
    for left, right in blocks:
        out += _PAIR.pack(left, right)
    return bytes(out)
