"""Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s with WireGuard's prologue (WireGuard whitepaper, section 5.4).

These classes produce and consume the cryptographic fields; message layout and MACs are :mod:`tsnetpy.wg`'s. The
responder works in steps, because it must know who calls before it may spend more on the call.
"""

from typing import Final, final

from tsnetpy.base.packet import Buffer
from tsnetpy.crypto import dh
from tsnetpy.crypto.errors import CryptoError

from .core import SymmetricState

CONSTRUCTION: Final = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
IDENTIFIER: Final = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
NO_PSK: Final = bytes(32)
"""WireGuard mixes 32 zero bytes in where no pre-shared key is configured."""


def _start(responder_static: bytes) -> SymmetricState:
    state = SymmetricState(CONSTRUCTION)
    state.mix_hash(IDENTIFIER)
    state.mix_hash(responder_static)
    return state


@final
class IkPsk2Initiator:
    """Our side of a handshake that we began.

    Args:
        static_private, static_public: our static key pair.
        remote_static: the peer's static public key.
        ephemeral_private: a fresh key, for this handshake only.
        psk: pre-shared key, 32 bytes.
        static_shared: ``dh.shared(static_private, remote_static)`` if the caller keeps it: it never changes.
    """

    __slots__ = ("_ephemeral", "_psk", "_remote_static", "_static", "_static_public", "_static_shared", "_symmetric")

    def __init__(
        self,
        static_private: bytes,
        static_public: bytes,
        remote_static: bytes,
        ephemeral_private: bytes,
        psk: bytes = NO_PSK,
        static_shared: bytes | None = None,
    ) -> None:
        self._symmetric = _start(remote_static)
        self._static = static_private
        self._static_public = static_public
        self._remote_static = remote_static
        self._ephemeral = ephemeral_private
        self._psk = psk
        self._static_shared = static_shared

    @property
    def symmetric(self) -> SymmetricState:
        """Chaining key and hash, for tests against vectors."""
        return self._symmetric

    def write_initiation(self, timestamp: bytes) -> tuple[bytes, bytes, bytes]:
        """Return ephemeral public key (32), sealed static key (48) and sealed *timestamp* (28 bytes).

        Raises:
            CryptoError: the peer's static key is degenerate.
        """
        state = self._symmetric
        ephemeral_public = dh.public_key(self._ephemeral)
        state.mix_hash(ephemeral_public)
        state.mix_key(ephemeral_public)  # psk handshakes mix e into the key too (Noise section 9.2)
        state.mix_key(dh.shared(self._ephemeral, self._remote_static))
        sealed_static = state.encrypt_and_hash(self._static_public)
        static_shared = self._static_shared
        state.mix_key(dh.shared(self._static, self._remote_static) if static_shared is None else static_shared)
        return ephemeral_public, sealed_static, state.encrypt_and_hash(timestamp)

    def read_response(self, remote_ephemeral: bytes, sealed_empty: Buffer) -> tuple[bytes, bytes]:
        """Return ``(send_key, receive_key)``. A forged response leaves the handshake as it was.

        Raises:
            CryptoError: not authentic.
        """
        state = self._symmetric.copy()
        state.mix_hash(remote_ephemeral)
        state.mix_key(remote_ephemeral)
        state.mix_key(dh.shared(self._ephemeral, remote_ephemeral))
        state.mix_key(dh.shared(self._static, remote_ephemeral))
        state.mix_key_and_hash(self._psk)
        if state.decrypt_and_hash(sealed_empty):
            raise CryptoError("a response carries no payload")
        send, receive = state.split()
        self._ephemeral = b""
        self._symmetric.forget()
        return send, receive


@final
class IkPsk2Responder:
    """Our side of a handshake that a peer began: call the three methods in order."""

    __slots__ = ("_remote_ephemeral", "_remote_static", "_static", "_symmetric")

    def __init__(self, static_private: bytes, static_public: bytes) -> None:
        self._symmetric = _start(static_public)
        self._static = static_private
        self._remote_ephemeral = b""
        self._remote_static = b""

    @property
    def symmetric(self) -> SymmetricState:
        """Chaining key and hash, for tests against vectors."""
        return self._symmetric

    def read_static(self, remote_ephemeral: bytes, sealed_static: Buffer) -> bytes:
        """Return the initiator's static public key.

        Raises:
            CryptoError: not authentic.
        """
        state = self._symmetric
        state.mix_hash(remote_ephemeral)
        state.mix_key(remote_ephemeral)
        state.mix_key(dh.shared(self._static, remote_ephemeral))
        self._remote_ephemeral = remote_ephemeral
        self._remote_static = state.decrypt_and_hash(sealed_static)
        return self._remote_static

    def read_timestamp(self, sealed_timestamp: Buffer, static_shared: bytes | None = None) -> bytes:
        """Return the 12-byte TAI64N timestamp; the initiation is authentic after this.

        Raises:
            CryptoError: not authentic.
        """
        if static_shared is None:
            static_shared = dh.shared(self._static, self._remote_static)
        self._symmetric.mix_key(static_shared)
        return self._symmetric.decrypt_and_hash(sealed_timestamp)

    def write_response(self, ephemeral_private: bytes, psk: bytes = NO_PSK) -> tuple[bytes, bytes, bytes, bytes]:
        """Return ephemeral public key (32), sealed empty payload (16), send key and receive key.

        Raises:
            CryptoError: the initiator's ephemeral key is degenerate.
        """
        state = self._symmetric
        ephemeral_public = dh.public_key(ephemeral_private)
        state.mix_hash(ephemeral_public)
        state.mix_key(ephemeral_public)
        state.mix_key(dh.shared(ephemeral_private, self._remote_ephemeral))
        state.mix_key(dh.shared(ephemeral_private, self._remote_static))
        state.mix_key_and_hash(psk)
        sealed_empty = state.encrypt_and_hash(b"")
        receive, send = state.split()
        return ephemeral_public, sealed_empty, send, receive
