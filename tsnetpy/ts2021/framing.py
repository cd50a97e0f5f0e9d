"""Messages of the long poll: u32 **little-endian** length, then JSON, plain or zstd (reference, section 5)."""

from typing import Final, final

import zstandard

from tsnetpy.base.errors import RemoteProtocolError
from tsnetpy.base.packet import Buffer

MAX_FRAME_BYTES: Final = 64 * 1024 * 1024
"""Largest message taken, on the wire and unpacked. A map of 10,000 nodes has about 20 MiB."""
_LENGTH_BYTES: Final = 4
_MAX_WINDOW: Final = 64 * 1024 * 1024


@final
class MapFrameReader:
    """Cuts the response body of a map poll into messages.

    Args:
        compressed: the request said ``Compress: "zstd"``.
        max_bytes: bound for one message before and after unpacking; a zip bomb ends the stream, not the process.
    """

    __slots__ = ("_buffer", "_decompressor", "_max")

    def __init__(self, compressed: bool, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._buffer = bytearray()
        self._max = max_bytes
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW) if compressed else None

    @property
    def mid_message(self) -> bool:
        """True if the body would end inside a message now."""
        return bool(self._buffer)

    def feed(self, data: Buffer) -> list[bytes]:
        """Take a piece of the body; return the JSON of every message that is now complete.

        Raises:
            RemoteProtocolError: a message beyond the bound, or one that does not unpack. The stream is over then.
        """
        self._buffer += data
        messages: list[bytes] = []
        used = 0
        while len(self._buffer) - used >= _LENGTH_BYTES:
            size = int.from_bytes(self._buffer[used : used + _LENGTH_BYTES], "little")
            if size > self._max:
                raise RemoteProtocolError(f"map message of {size} bytes")
            end = used + _LENGTH_BYTES + size
            if end > len(self._buffer):
                break
            messages.append(self._unpack(bytes(self._buffer[used + _LENGTH_BYTES : end])))
            used = end
        del self._buffer[:used]
        return messages

    def _unpack(self, payload: bytes) -> bytes:
        if self._decompressor is None:
            return payload
        try:
            announced = zstandard.frame_content_size(payload)
            if announced > self._max:
                raise RemoteProtocolError(f"map message unpacks to {announced} bytes")
            # Frames without an announced size are bounded by max_output_size; those with one were checked above.
            return self._decompressor.decompress(payload, max_output_size=self._max)
        except zstandard.ZstdError as error:
            raise RemoteProtocolError("map message does not unpack") from error


@final
class MapFrameWriter:
    """Makes the messages of a map poll's response body."""

    __slots__ = ("_compressor",)

    def __init__(self, compressed: bool) -> None:
        self._compressor = zstandard.ZstdCompressor(level=1) if compressed else None

    def frame(self, message: bytes) -> bytes:
        """Return *message* (JSON) with its length in front, packed if the client asked for it."""
        payload = message if self._compressor is None else self._compressor.compress(message)
        return len(payload).to_bytes(_LENGTH_BYTES, "little") + payload
