"""Records after the handshake: ``04, u16 n, n bytes`` of ciphertext with its tag (reference, section 3.4).

A frame is at most 4096 bytes, so a record carries at most 4077 bytes of plaintext; Go resets the connection for more.
The nonce is 4 zero bytes and a **big-endian** counter, unlike stock Noise. There is no rekey.
"""

import struct
from typing import Final, final

from tsnetpy.base.errors import LocalProtocolError, RemoteProtocolError
from tsnetpy.base.packet import Buffer
from tsnetpy.crypto.aead import TAG_BYTES, Aead
from tsnetpy.crypto.errors import CryptoError

from .handshake import HEADER_BYTES, RECORD

MAX_FRAME_BYTES: Final = 4096
MAX_CIPHERTEXT_BYTES: Final = MAX_FRAME_BYTES - HEADER_BYTES
MAX_PLAINTEXT_BYTES: Final = MAX_CIPHERTEXT_BYTES - TAG_BYTES
INVALID_COUNTER: Final = (1 << 64) - 1

_HEADER: Final = struct.Struct(">BH")
_NONCE: Final = struct.Struct(">IQ")


@final
class RecordSealer:
    """Turns plaintext into records under one key."""

    __slots__ = ("_aead", "_counter")

    def __init__(self, key: bytes, counter: int = 0) -> None:
        self._aead = Aead(key)
        self._counter = counter

    def seal(self, plaintext: Buffer) -> bytes:
        """Return the records that carry *plaintext*, cut at 4077 bytes; nothing makes no record.

        Raises:
            LocalProtocolError: the key has sealed 2**64 - 1 records.
        """
        view = memoryview(plaintext)
        out = bytearray()
        for start in range(0, len(view), MAX_PLAINTEXT_BYTES):
            if self._counter == INVALID_COUNTER:
                raise LocalProtocolError("record counter is used up")
            sealed = self._aead.seal(_NONCE.pack(0, self._counter), view[start : start + MAX_PLAINTEXT_BYTES])
            self._counter += 1
            out += _HEADER.pack(RECORD, len(sealed))
            out += sealed
        return bytes(out)


@final
class RecordOpener:
    """Collects bytes from the stream and opens whole records under one key. It never buffers more than one frame."""

    __slots__ = ("_aead", "_buffer", "_counter")

    def __init__(self, key: bytes, counter: int = 0) -> None:
        self._aead = Aead(key)
        self._buffer = bytearray()
        self._counter = counter

    @property
    def mid_record(self) -> bool:
        """True if the stream would end inside a record now."""
        return bool(self._buffer)

    def open(self, data: Buffer) -> bytes:
        """Take *data* from the stream; return the plaintext of every record that is now complete.

        Raises:
            RemoteProtocolError: a frame of another type, one too long, or one that is not authentic. The connection is
                over then.
        """
        self._buffer += data
        out = bytearray()
        used = 0
        view = memoryview(self._buffer)
        try:
            while len(view) - used >= HEADER_BYTES:
                kind, size = _HEADER.unpack_from(view, used)
                if kind != RECORD:
                    raise RemoteProtocolError(f"frame type {kind} after the handshake")
                if not TAG_BYTES <= size <= MAX_CIPHERTEXT_BYTES:
                    raise RemoteProtocolError(f"record of {size} bytes")
                end = used + HEADER_BYTES + size
                if end > len(view):
                    break
                out += self._open_one(bytes(view[used + HEADER_BYTES : end]))
                used = end
        finally:
            view.release()
        del self._buffer[:used]
        return bytes(out)

    def _open_one(self, ciphertext: bytes) -> bytes:
        if self._counter == INVALID_COUNTER:
            raise RemoteProtocolError("record counter is used up")
        try:
            plaintext = self._aead.open(_NONCE.pack(0, self._counter), ciphertext)
        except CryptoError as error:
            raise RemoteProtocolError("record is not authentic") from error
        self._counter += 1
        return plaintext
