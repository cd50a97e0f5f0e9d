"""The client's end of a ts2021 connection: bytes from the socket in, plaintext out, and back.

The owner sends :attr:`ClientEngine.initiation` in the upgrade request, then feeds whatever follows the ``101`` answer
into :meth:`ClientEngine.receive_data`, bytes that the HTTP parser had already read included.
"""

from typing import Final, final

from tsnetpy.base.errors import LocalProtocolError, RemoteProtocolError
from tsnetpy.base.packet import Buffer
from tsnetpy.crypto.errors import CryptoError
from tsnetpy.tailcfg.codec import decode
from tsnetpy.tailcfg.register import EarlyNoise

from .handshake import ERROR, HEADER_BYTES, MAX_ERROR_BYTES, RESPONSE, RESPONSE_BYTES, parse_header, start
from .records import RecordOpener, RecordSealer

EARLY_MAGIC: Final = b"\xff\xff\xffTS"
"""Cannot start HTTP/2: as a frame header it would announce 16 MiB."""
EARLY_HEADER_BYTES: Final = 9
MAX_EARLY_BYTES: Final = 64 * 1024


@final
class ClientEngine:
    """Noise over a byte stream, initiator side.

    Args:
        version: capability version; the same number as in all requests.
        machine_private: our Noise static key, raw.
        server_public: the server's, from ``GET /key``, raw.
        ephemeral_private: fresh, for this connection only.

    Attributes:
        initiation: the 101 bytes for the upgrade request.
        early: the server's early payload, if it sent one.
        handshake_hash: channel binding, once established.
    """

    __slots__ = ("_buffer", "_early_done", "_noise", "_opener", "_sealer", "early", "handshake_hash", "initiation")

    def __init__(self, version: int, machine_private: bytes, server_public: bytes, ephemeral_private: bytes) -> None:
        self._noise, self.initiation = start(version, machine_private, server_public, ephemeral_private)
        self._buffer = bytearray()
        self._sealer: RecordSealer | None = None
        self._opener: RecordOpener | None = None
        self._early_done = False
        self.early: EarlyNoise | None = None
        self.handshake_hash = b""

    @property
    def established(self) -> bool:
        """True once the server's response has been read."""
        return self._opener is not None

    def receive_data(self, data: Buffer) -> bytes:
        """Take bytes from the socket; return what they carry for HTTP/2, possibly nothing.

        Raises:
            RemoteProtocolError: refused, not authentic, or malformed. The connection is over then.
        """
        if self._opener is None:
            self._buffer += data
            rest = self._read_response()
            if rest is None:
                return b""
            data = rest
        if self._opener is None:
            return b""
        plaintext = self._opener.open(data)
        return plaintext if self._early_done else self._strip_early(plaintext)

    def receive_eof(self) -> None:
        """Tell the engine that the stream ended.

        Raises:
            RemoteProtocolError: it ended before the handshake or inside a record.
        """
        if self._opener is None:
            # Headscale hides every fault of the handshake behind this one look.
            raise RemoteProtocolError(
                "the server closed the connection during the handshake: its key or our version is refused"
            )
        if self._opener.mid_record or (self._buffer and not self._early_done):
            raise RemoteProtocolError("the connection ended inside a record")

    def send(self, plaintext: Buffer) -> bytes:
        """Return the records to write to the socket for *plaintext*.

        Raises:
            LocalProtocolError: the handshake is not complete.
        """
        if self._sealer is None:
            raise LocalProtocolError("the handshake is not complete")
        return self._sealer.seal(plaintext)

    def _read_response(self) -> bytes | None:
        if len(self._buffer) < HEADER_BYTES:
            return None
        kind, size = parse_header(self._buffer)
        if kind == ERROR:
            if len(self._buffer) < HEADER_BYTES + min(size, MAX_ERROR_BYTES):
                return None
            text = bytes(self._buffer[HEADER_BYTES : HEADER_BYTES + min(size, MAX_ERROR_BYTES)])
            raise RemoteProtocolError(f"the server refuses the handshake: {text.decode('utf-8', 'replace')!r}")
        if kind != RESPONSE or size != RESPONSE_BYTES - HEADER_BYTES:
            raise RemoteProtocolError(f"frame type {kind} of {size} bytes in place of a handshake response")
        if len(self._buffer) < RESPONSE_BYTES:
            return None
        try:
            self._noise.read_message_2(self._buffer[HEADER_BYTES:RESPONSE_BYTES])
        except CryptoError as error:
            raise RemoteProtocolError("the server's handshake response is not authentic") from error
        self.handshake_hash = self._noise.handshake_hash
        send_key, receive_key = self._noise.split()
        self._sealer = RecordSealer(send_key)
        self._opener = RecordOpener(receive_key)
        rest = bytes(self._buffer[RESPONSE_BYTES:])
        self._buffer.clear()
        return rest

    def _strip_early(self, plaintext: bytes) -> bytes:
        # Headscale sends magic, length and JSON in three records, so nothing is decided before nine bytes are there.
        self._buffer += plaintext
        head = self._buffer
        if not EARLY_MAGIC.startswith(head[: len(EARLY_MAGIC)]):
            return self._end_early(0)
        if len(head) < EARLY_HEADER_BYTES:
            return b""
        size = int.from_bytes(head[5:9], "big")
        if size > MAX_EARLY_BYTES:
            raise RemoteProtocolError(f"early payload of {size} bytes")
        if len(head) < EARLY_HEADER_BYTES + size:
            return b""
        self.early = decode(head[EARLY_HEADER_BYTES : EARLY_HEADER_BYTES + size], EarlyNoise)
        return self._end_early(EARLY_HEADER_BYTES + size)

    def _end_early(self, used: int) -> bytes:
        self._early_done = True
        rest = bytes(self._buffer[used:])
        self._buffer.clear()
        return rest
