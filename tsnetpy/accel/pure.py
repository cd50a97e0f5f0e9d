"""The pure-Python implementation, which is also the specification of the native one."""

import struct
from collections.abc import Sequence
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
_HEADER: Final = struct.Struct("<IIQ")  # type and reserved zeros, receiver, counter
_COUNTER: Final = struct.Struct("<Q")
_NONCE: Final = struct.Struct("<4xQ")
_ZEROS: Final = bytes(16)


def padded_size(length: int, mtu: int) -> int:
    """Return what a plaintext of *length* bytes is zero-filled to: a multiple of 16, but not past *mtu*.

    Of a packet larger than *mtu* only the part after the last full *mtu* counts, as in wireguard-go.
    """
    if mtu <= 0:
        return (length + 15) & ~15
    last = length % mtu if length > mtu else length
    return length - last + min((last + 15) & ~15, mtu)


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
        encrypt_into = self._aead.encrypt_into
        make_nonce = _NONCE.pack
        put_header = _HEADER.pack_into
        runs: list[tuple[bytearray, int]] = []
        total = len(packets)
        start = 0
        while start < total:
            # Find the run that fits one buffer: equal sizes, and perhaps a shorter datagram that ends it.
            length = len(packets[start])
            padded = padded_size(length, mtu)
            size = padded + _OVERHEAD
            limit = min(total, start + MAX_DATAGRAMS, start + max(1, MAX_BATCH_BYTES // size))
            end = start + 1
            last = size
            while end < limit:
                other = len(packets[end])
                if other != length:
                    other = padded_size(other, mtu) + _OVERHEAD
                    if other > size:
                        break
                    if other < size:
                        last = other
                        end += 1
                        break
                end += 1
            out = bytearray(size * (end - start - 1) + last)
            view = memoryview(out)
            at = 0
            for packet in packets[start:end]:
                put_header(out, at, _TRANSPORT, receiver, counter)
                if len(packet) != length or padded != length:
                    packet_len = len(packet)
                    fill = padded_size(packet_len, mtu) - packet_len
                    if fill:
                        packet = b"".join((packet, _ZEROS[:fill]))
                    stop = at + packet_len + fill + _OVERHEAD
                else:
                    stop = at + size
                encrypt_into(make_nonce(counter), packet, None, view[at + _HEADER_BYTES : stop])
                counter += 1
                at = stop
            runs.append((out, size))
            start = end
        return runs

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
