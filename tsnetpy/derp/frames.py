"""DERP frames: type, 32-bit length, payload (data path reference, section 3.2)."""

from typing import Final, final

from tsnetpy.base.errors import DecodeError
from tsnetpy.base.packet import Buffer

MAGIC: Final = b"DERP\xf0\x9f\x94\x91"
PROTOCOL_VERSION: Final = 2

SERVER_KEY: Final = 0x01
CLIENT_INFO: Final = 0x02
SERVER_INFO: Final = 0x03
SEND_PACKET: Final = 0x04
RECV_PACKET: Final = 0x05
KEEP_ALIVE: Final = 0x06
NOTE_PREFERRED: Final = 0x07
PEER_GONE: Final = 0x08
PING: Final = 0x12
PONG: Final = 0x13
HEALTH: Final = 0x14
RESTARTING: Final = 0x15

GONE_DISCONNECTED: Final = 0
GONE_NOT_HERE: Final = 1

KEY_BYTES: Final = 32
HEADER_BYTES: Final = 5
MAX_PACKET: Final = 65_536
MAX_FRAME: Final = 1 << 20
"""Longest payload that a client accepts."""
MAX_CLIENT_INFO: Final = 256 << 10


def encode(kind: int, payload: Buffer = b"") -> bytes:
    """Return one frame."""
    return b"".join((bytes((kind,)), len(payload).to_bytes(4, "big"), payload))


def encode_packet(kind: int, key: bytes, data: Buffer) -> bytes:
    """Return a SendPacket (*key* is the destination) or a RecvPacket (*key* is the source)."""
    return b"".join((bytes((kind,)), (KEY_BYTES + len(data)).to_bytes(4, "big"), key, data))


def encode_packets(kind: int, key: bytes, datagrams: list[memoryview]) -> bytes:
    """Return a run of packet frames for one key, back to back, joined in one go."""
    parts: list[Buffer] = []
    head = b""
    size = -1
    for datagram in datagrams:
        if len(datagram) != size:
            size = len(datagram)
            head = bytes((kind,)) + (KEY_BYTES + size).to_bytes(4, "big") + key
        parts.append(head)
        parts.append(datagram)
    return b"".join(parts)


def encode_peer_gone(key: bytes, reason: int) -> bytes:
    """Return a PeerGone frame."""
    return encode(PEER_GONE, key + bytes((reason,)))


@final
class FrameDecoder:
    """Cuts a byte stream into frames; pieces may come in any sizes.

    Attributes:
        max_payload: a longer frame is an error, found as soon as its header is there.
    """

    __slots__ = ("_buffer", "_needed", "max_payload")

    def __init__(self, max_payload: int = MAX_FRAME) -> None:
        self._buffer = bytearray()
        # Bytes that must be held before looking again is of use: a big frame that drips in is not copied each time.
        self._needed = HEADER_BYTES
        self.max_payload = max_payload

    @property
    def buffered(self) -> int:
        """Bytes of an unfinished frame that are held."""
        return len(self._buffer)

    def feed(self, data: Buffer) -> list[tuple[int, bytes]]:
        """Take bytes and return the frames that are complete now: type and payload.

        Raises:
            DecodeError: a frame is longer than :attr:`max_payload`; the stream cannot go on.
        """
        frames: list[tuple[int, bytes]] = []
        held = self._buffer
        if held:
            held += data
            if len(held) < self._needed:
                return frames
            whole = bytes(held)  # a view would forbid shrinking the buffer below
        else:
            whole = bytes(data)
        at, end = 0, len(whole)
        self._needed = HEADER_BYTES
        while end - at >= HEADER_BYTES:
            size = int.from_bytes(whole[at + 1 : at + HEADER_BYTES], "big")
            if size > self.max_payload:
                raise DecodeError(f"DERP frame of {size} bytes")
            stop = at + HEADER_BYTES + size
            if stop > end:
                self._needed = HEADER_BYTES + size
                break
            frames.append((whole[at], whole[at + HEADER_BYTES : stop]))
            at = stop
        if held:
            if at:
                del held[:at]
        elif at < end:
            held += whole[at:]
        return frames
