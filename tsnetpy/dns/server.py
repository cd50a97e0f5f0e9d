"""A DNS server as a function: query bytes in, answer bytes out; and the framing of DNS over a byte stream."""

from typing import Final, final

from tsnetpy.base.errors import DecodeError

from .codec import QR, UDP_PAYLOAD_BYTES, Answer, Query, Rcode, decode_query, encode_answer
from .magic import MagicTable
from .resolver import decide

TTL_S: Final = 5
SOA_TTL_S: Final = 10
MAX_STREAM_QUERY_BYTES: Final = 4096
"""Longest query taken from a stream; no honest one comes near."""


def answer(query: bytes, table: MagicTable, now_wall_s: int, *, tcp: bool = False) -> bytes:
    """Answer one DNS message.

    Args:
        query: the message, without the length prefix of a stream.
        table: the names to answer from.
        now_wall_s: Unix time in seconds; the serial number of SOA records.
        tcp: the answer travels over a stream. Over UDP it is kept within 512 bytes by name compression, so that no
            answer of this server is ever truncated.

    Returns:
        The answer. Anything unreadable is answered FORMERR.
    """
    try:
        asked = decode_query(query)
    except DecodeError:
        # Not even an identifier to mirror: zeros.
        return _encode(Query(0, 0, None), Answer(Rcode.FORMERR), now_wall_s, tcp)
    question = asked.question
    if question is None or asked.flags & QR:
        return _encode(asked, Answer(Rcode.FORMERR), now_wall_s, tcp)
    return _encode(asked, decide(question.name, question.qtype, table), now_wall_s, tcp)


def _encode(query: Query, said: Answer, now_wall_s: int, tcp: bool) -> bytes:
    message = encode_answer(query, said, ttl_s=TTL_S, soa_ttl_s=SOA_TTL_S, serial=now_wall_s, compress=False)
    if not tcp and len(message) > UDP_PAYLOAD_BYTES:
        return encode_answer(query, said, ttl_s=TTL_S, soa_ttl_s=SOA_TTL_S, serial=now_wall_s, compress=True)
    return message


def frame_message(message: bytes) -> bytes:
    """Return *message* with the length prefix of DNS over TCP (RFC 1035 §4.2.2)."""
    return len(message).to_bytes(2, "big") + message


@final
class MessageFramer:
    """Cuts a byte stream into DNS messages; one per connection."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the stream and return the messages that are now complete.

        Raises:
            DecodeError: the next message claims to be longer than any query; close the connection.
        """
        buffer = self._buffer
        buffer += data
        messages: list[bytes] = []
        while len(buffer) >= 2:
            length = buffer[0] << 8 | buffer[1]
            if length > MAX_STREAM_QUERY_BYTES:
                raise DecodeError("DNS message over a stream is too long")
            if len(buffer) < 2 + length:
                break
            messages.append(bytes(buffer[2 : 2 + length]))
            del buffer[: 2 + length]
        return messages
