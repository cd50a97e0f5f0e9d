"""A ts2021 engine as an anyio byte stream, for either side."""

from collections.abc import Callable, Mapping
from typing import Any, Final, final

import anyio
from anyio.abc import ByteStream

from tsnetpy.base.errors import RemoteProtocolError
from tsnetpy.ts2021.client import ClientEngine
from tsnetpy.ts2021.server import ServerEngine

_READ_BYTES: Final = 64 * 1024


@final
class NoiseStream(ByteStream):
    """Plaintext in and out; records on *stream*.

    Make it with :meth:`connect` or :meth:`accept`. One task may receive while another sends.
    """

    def __init__(self, stream: ByteStream, engine: ClientEngine | ServerEngine, plaintext: bytes = b"") -> None:
        self._stream = stream
        self._engine = engine
        self._pending = bytearray(plaintext)

    @classmethod
    async def connect(cls, stream: ByteStream, engine: ClientEngine, leftover: bytes = b"") -> "NoiseStream":
        """Finish the client's handshake on *stream* (upgraded; *leftover* has been read already).

        Raises:
            RemoteProtocolError: the server refuses, or is not the one with that key.
            anyio.BrokenResourceError: the transport failed.
        """
        plaintext = engine.receive_data(leftover) if leftover else b""
        while not engine.established:
            try:
                data = await stream.receive(_READ_BYTES)
            except anyio.EndOfStream:
                engine.receive_eof()
                raise RemoteProtocolError("the server closed the connection during the handshake") from None
            plaintext += engine.receive_data(data)
        return cls(stream, engine, plaintext)

    @classmethod
    async def accept(
        cls, stream: ByteStream, engine: ServerEngine, *, challenge: str = "", leftover: bytes = b""
    ) -> "NoiseStream":
        """Answer the handshake on *stream* (the ``101`` is sent; *leftover* followed the request).

        Args:
            stream: upgraded transport.
            engine: made from the request's initiation.
            challenge: a ``chalpub:`` key to send as early payload, or ``""`` for none.
            leftover: bytes that the HTTP parser has read already.

        Raises:
            anyio.BrokenResourceError: the transport failed.
        """
        await stream.send(engine.response + (engine.early_payload(challenge) if challenge else b""))
        return cls(stream, engine, engine.receive_data(leftover) if leftover else b"")

    @property
    def engine(self) -> ClientEngine | ServerEngine:
        """The engine inside (early payload, channel binding, the client's machine key)."""
        return self._engine

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Return the next plaintext.

        Raises:
            anyio.EndOfStream: the peer closed between records.
            RemoteProtocolError: a record is not authentic, or the stream ended inside one.
        """
        while not self._pending:
            try:
                data = await self._stream.receive(_READ_BYTES)
            except anyio.EndOfStream:
                if isinstance(self._engine, ClientEngine):
                    self._engine.receive_eof()
                raise
            self._pending += self._engine.receive_data(data)
        out = bytes(self._pending[:max_bytes])
        del self._pending[:max_bytes]
        return out

    async def send(self, item: bytes) -> None:
        """Seal and send *item*. A send that is cancelled half-way ends the stream's usefulness."""
        if item:
            await self._stream.send(self._engine.send(item))

    async def send_eof(self) -> None:
        """Send the transport's end of stream (Noise has none of its own)."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close the transport."""
        await self._stream.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """Those of the transport."""
        return self._stream.extra_attributes
