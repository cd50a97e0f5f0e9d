"""The server's end of a ts2021 connection. It answers at once, since the initiation comes whole in a header."""

from typing import final

from tsnetpy.base.packet import Buffer
from tsnetpy.tailcfg.codec import encode
from tsnetpy.tailcfg.register import EarlyNoise

from .client import EARLY_MAGIC
from .handshake import answer
from .records import RecordOpener, RecordSealer


@final
class ServerEngine:
    """Noise over a byte stream, responder side.

    Args:
        server_private: the server's Noise static key, raw.
        initiation: the 101 bytes from the upgrade request.
        ephemeral_private: fresh, for this connection only.

    Attributes:
        response: the 51 bytes to write first.
        version: the client's capability version, bound by the handshake.
        machine_key: the client's machine public key, raw: who is on the line.
        handshake_hash: channel binding.

    Raises:
        RemoteProtocolError: the initiation is malformed, or was made for another key or version.
    """

    __slots__ = ("_opener", "_sealer", "handshake_hash", "machine_key", "response", "version")

    def __init__(self, server_private: bytes, initiation: Buffer, ephemeral_private: bytes) -> None:
        noise, self.version, self.response = answer(server_private, initiation, ephemeral_private)
        self.machine_key = noise.remote_static
        self.handshake_hash = noise.handshake_hash
        send_key, receive_key = noise.split()
        self._sealer = RecordSealer(send_key)
        self._opener = RecordOpener(receive_key)

    def early_payload(self, node_key_challenge: str) -> bytes:
        """Return records with the early payload; *node_key_challenge* is a ``chalpub:`` key. Send before any HTTP/2."""
        body = encode(EarlyNoise(node_key_challenge=node_key_challenge))
        return self._sealer.seal(EARLY_MAGIC + len(body).to_bytes(4, "big") + body)

    def receive_data(self, data: Buffer) -> bytes:
        """Take bytes from the socket; return the plaintext they complete.

        Raises:
            RemoteProtocolError: not authentic or malformed. The connection is over then.
        """
        return self._opener.open(data)

    def send(self, plaintext: Buffer) -> bytes:
        """Return the records to write to the socket for *plaintext*."""
        return self._sealer.seal(plaintext)
