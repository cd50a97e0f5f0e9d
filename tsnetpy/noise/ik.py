"""Noise_IK_25519_ChaChaPoly_BLAKE2s: the handshake of the control protocol (ts2021).

The framing around the two messages and the records after them belong to :mod:`tsnetpy.ts2021`. The initiator knows the
responder's static key; the responder learns the initiator's from message 1.
"""

from typing import Final, final

from tsnetpy.base.packet import Buffer
from tsnetpy.crypto import dh
from tsnetpy.crypto.errors import CryptoError

from .core import KEY_BYTES, TAG_BYTES, SymmetricState

PROTOCOL_NAME: Final = b"Noise_IK_25519_ChaChaPoly_BLAKE2s"
MESSAGE_1_BYTES: Final = 32 + 48 + 16
"""Message 1 with an empty payload: ephemeral, sealed static, tag."""
MESSAGE_2_BYTES: Final = 32 + 16
"""Message 2 with an empty payload: ephemeral, tag."""

_STATIC_END: Final = 2 * KEY_BYTES + TAG_BYTES


@final
class IkInitiator:
    """The side that speaks first.

    Args:
        prologue: bytes that both sides must agree on; they bind the handshake to its context.
        static_private: our static key.
        remote_static: the responder's static public key, known beforehand.
        ephemeral_private: a fresh key from :func:`tsnetpy.crypto.dh.generate`, used for this handshake only.
    """

    __slots__ = ("_ephemeral", "_remote_static", "_static", "_symmetric")

    def __init__(self, prologue: bytes, static_private: bytes, remote_static: bytes, ephemeral_private: bytes) -> None:
        self._symmetric = SymmetricState(PROTOCOL_NAME)
        self._symmetric.mix_hash(prologue)
        self._symmetric.mix_hash(remote_static)
        self._static = static_private
        self._ephemeral = ephemeral_private
        self._remote_static = remote_static

    @property
    def handshake_hash(self) -> bytes:
        """The transcript hash; after message 2 it is the channel binding."""
        return self._symmetric.h

    def write_message_1(self, payload: bytes = b"") -> bytes:
        """Return message 1 (tokens e, es, s, ss): 96 bytes plus the payload.

        Raises:
            CryptoError: the responder's static key is degenerate.
        """
        state = self._symmetric
        ephemeral_public = dh.public_key(self._ephemeral)
        state.mix_hash(ephemeral_public)
        state.mix_key(dh.shared(self._ephemeral, self._remote_static))
        sealed_static = state.encrypt_and_hash(dh.public_key(self._static))
        state.mix_key(dh.shared(self._static, self._remote_static))
        return ephemeral_public + sealed_static + state.encrypt_and_hash(payload)

    def read_message_2(self, message: Buffer) -> bytes:
        """Return the payload of message 2 (tokens e, ee, se).

        Raises:
            CryptoError: too short or not authentic. The handshake is over then.
        """
        _need(message, KEY_BYTES + TAG_BYTES)
        state = self._symmetric
        remote_ephemeral = bytes(message[:KEY_BYTES])
        state.mix_hash(remote_ephemeral)
        state.mix_key(dh.shared(self._ephemeral, remote_ephemeral))
        state.mix_key(dh.shared(self._static, remote_ephemeral))
        return state.decrypt_and_hash(bytes(message[KEY_BYTES:]))

    def split(self) -> tuple[bytes, bytes]:
        """Return ``(send_key, receive_key)``, once, after message 2."""
        self._ephemeral = b""
        send, receive = self._symmetric.split()
        return send, receive


@final
class IkResponder:
    """The side that answers.

    Args:
        prologue: as on the other side.
        static_private: our static key.

    Attributes:
        remote_static: the initiator's static public key; 32 bytes after message 1, empty before.
    """

    __slots__ = ("_remote_ephemeral", "_static", "_symmetric", "remote_static")

    def __init__(self, prologue: bytes, static_private: bytes) -> None:
        self._symmetric = SymmetricState(PROTOCOL_NAME)
        self._symmetric.mix_hash(prologue)
        self._symmetric.mix_hash(dh.public_key(static_private))
        self._static = static_private
        self._remote_ephemeral = b""
        self.remote_static = b""

    @property
    def handshake_hash(self) -> bytes:
        """The transcript hash; after message 2 it is the channel binding."""
        return self._symmetric.h

    def read_message_1(self, message: Buffer) -> bytes:
        """Return the payload of message 1; :attr:`remote_static` is set.

        Raises:
            CryptoError: too short or not authentic. The handshake is over then.
        """
        _need(message, _STATIC_END + TAG_BYTES)
        state = self._symmetric
        self._remote_ephemeral = bytes(message[:KEY_BYTES])
        state.mix_hash(self._remote_ephemeral)
        state.mix_key(dh.shared(self._static, self._remote_ephemeral))
        remote_static = state.decrypt_and_hash(bytes(message[KEY_BYTES:_STATIC_END]))
        state.mix_key(dh.shared(self._static, remote_static))
        payload = state.decrypt_and_hash(bytes(message[_STATIC_END:]))
        self.remote_static = remote_static
        return payload

    def write_message_2(self, ephemeral_private: bytes, payload: bytes = b"") -> bytes:
        """Return message 2: 48 bytes plus the payload. *ephemeral_private* is fresh, for this handshake only."""
        if not self.remote_static:
            raise CryptoError("message 1 comes first")
        state = self._symmetric
        ephemeral_public = dh.public_key(ephemeral_private)
        state.mix_hash(ephemeral_public)
        state.mix_key(dh.shared(ephemeral_private, self._remote_ephemeral))
        state.mix_key(dh.shared(ephemeral_private, self.remote_static))
        return ephemeral_public + state.encrypt_and_hash(payload)

    def split(self) -> tuple[bytes, bytes]:
        """Return ``(send_key, receive_key)``, once, after message 2."""
        receive, send = self._symmetric.split()
        return send, receive


def _need(message: Buffer, size: int) -> None:
    if len(message) < size:
        raise CryptoError(f"handshake message of {len(message)} bytes, needs {size}")
