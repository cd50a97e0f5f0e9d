"""The pure-Python implementation, which is also the specification of the native one."""

import struct
from collections.abc import Sequence
from itertools import repeat
from typing import Final, final

from tsnetpy.base.packet import Buffer
from tsnetpy.crypto.aead import Aead
from tsnetpy.crypto.errors import InvalidTag

from . import segments

MAX_DATAGRAMS: Final = 64
"""The kernel's ``UDP_MAX_SEGMENTS``."""
MAX_BATCH_BYTES: Final = 65_507
"""What one UDP datagram over IPv4, and therefore one ``UDP_SEGMENT`` call, may carry."""

_TRANSPORT: Final = 4
_HEADER_BYTES: Final = 16
_OVERHEAD: Final = 32
_HEADER: Final = struct.Struct("<QQ")  # type, reserved zeros and receiver in one, counter
_COUNTER: Final = struct.Struct("<Q")
_NONCE: Final = struct.Struct("<4xQ")
_ZEROS: Final = bytes(16)
_FRAMES: Final = 64


def padded_size(length: int, mtu: int) -> int:
    """Return what a plaintext of *length* bytes is zero-filled to: a multiple of 16, but not past *mtu*.

    Of a packet larger than *mtu* only the part after the last full *mtu* counts, as in wireguard-go.
    """
    if mtu <= 0:
        return (length + 15) & ~15
    last = length % mtu if length > mtu else length
    return length - last + min((last + 15) & ~15, mtu)


def _padded(packet: Buffer, mtu: int) -> Buffer:
    fill = padded_size(len(packet), mtu) - len(packet)
    return b"".join((packet, _ZEROS[:fill])) if fill else packet


def _find_run(lengths: list[int], start: int, mtu: int) -> tuple[int, int, int]:
    """Return where the run from *start* ends that fits one buffer, and the sizes of its datagrams and of the last one.

    A run is datagrams of equal size, and perhaps a shorter one that ends it.
    """
    length = lengths[start]
    size = last = padded_size(length, mtu) + _OVERHEAD
    limit = min(len(lengths), start + MAX_DATAGRAMS, start + max(1, MAX_BATCH_BYTES // size))
    if lengths[start:limit].count(length) == limit - start:
        return limit, size, size
    end = start + 1
    while end < limit and last == size:
        last = padded_size(lengths[end], mtu) + _OVERHEAD
        if last > size:
            return end, size, size
        end += 1
    return end, size, last


_frames: Final[dict[int, tuple[bytearray, tuple[slice, ...]]]] = {}


def _frame(size: int) -> tuple[bytearray, tuple[slice, ...]]:
    """Return what stands between the headers of datagrams of *size* bytes, and where each one's ciphertext goes."""
    known = _frames.get(size)
    if known is None:
        places = (slice(at + _HEADER_BYTES, at + size) for at in range(0, size * MAX_DATAGRAMS, size))
        known = (bytearray(size - _HEADER_BYTES), tuple(places))
        if len(_frames) >= _FRAMES:
            _frames.clear()
        _frames[size] = known
    return known


@final
class PureTransportKey:
    """See :class:`._api.TransportKey`."""

    __slots__ = ("_aead",)

    def __init__(self, key: bytes) -> None:
        self._aead = Aead(key)

    def __repr__(self) -> str:
        return "<PureTransportKey redacted>"

    def seal_batch(
        self, receiver: int, counter: int, packets: Sequence[Buffer], mtu: int
    ) -> list[tuple[bytearray, int]]:
        """See :meth:`._api.TransportKey.seal_batch`."""
        total = len(packets)
        if total == 1:
            return [self._seal_one(receiver, counter, packets[0], mtu)]
        encrypt_into = self._aead.encrypt_into
        runs: list[tuple[bytearray, int]] = []
        lengths = [*map(len, packets)]
        start = 0
        while start < total:
            end, size, last = _find_run(lengths, start, mtu)
            run = packets[start:end]
            if lengths[start:end].count(size - _OVERHEAD) < len(run):
                run = [_padded(packet, mtu) for packet in run]
            # All headers at once, each with room for its ciphertext behind it. A place that reaches past the end, in a
            # run that ends with a shorter datagram, is cut off there by the slice.
            counters = range(counter, counter + len(run))
            gap, places = _frame(size)
            out = gap.join([*map(_HEADER.pack, repeat(_TRANSPORT | receiver << 32), counters), b""])
            if last != size:
                del out[last - size :]
            rooms = map(memoryview(out).__getitem__, places)
            for packet, nonce, room in zip(run, map(_NONCE.pack, counters), rooms):
                encrypt_into(nonce, packet, None, room)
            runs.append((out, size))
            counter = counters.stop
            start = end
        return runs

    def _seal_one(self, receiver: int, counter: int, packet: Buffer, mtu: int) -> tuple[bytearray, int]:
        packet = _padded(packet, mtu)
        size = len(packet) + _OVERHEAD
        out = bytearray(size)
        _HEADER.pack_into(out, 0, _TRANSPORT | receiver << 32, counter)
        self._aead.encrypt_into(_NONCE.pack(counter), packet, None, memoryview(out)[_HEADER_BYTES:])
        return out, size

    def open_batch(self, datagrams: Sequence[Buffer]) -> list[tuple[int, bytes]]:
        """See :meth:`._api.TransportKey.open_batch`."""
        decrypt = self._aead.decrypt
        get_counter = _COUNTER.unpack_from
        make_nonce = _NONCE.pack
        opened: list[tuple[int, bytes]] = []
        for datagram in datagrams:
            counter: int = get_counter(datagram, 8)[0]
            try:
                opened.append((counter, decrypt(make_nonce(counter), datagram[_HEADER_BYTES:], None)))
            except InvalidTag:
                continue
        return opened


@final
class PureOps:
    """See :class:`._api.PacketOps`."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """``"pure"``."""
        return "pure"

    def checksum(self, data: Buffer, initial: int = 0) -> int:
        """See :meth:`._api.PacketOps.checksum`."""
        total = initial + segments.raw_sum(data)
        # Arithmetic modulo 65535 has two names for zero; only an all-zero input sums to 0 (RFC 1071).
        return total % 65535 or (0xFFFF if total else 0)

    def transport_key(self, key: bytes) -> PureTransportKey:
        """See :meth:`._api.PacketOps.transport_key`."""
        return PureTransportKey(key)

    def split_tcp(self, header: bytes, payload: bytes, mss: int) -> list[bytes]:
        """See :meth:`._api.PacketOps.split_tcp`."""
        return segments.split_tcp(header, payload, mss)
