"""Noise IKpsk2 as WireGuard uses it: the vectors, byte for byte, and forgeries."""

import json
from pathlib import Path
from typing import Final

import pytest

from tsnetpy.crypto import dh
from tsnetpy.crypto.errors import CryptoError
from tsnetpy.noise.core import SymmetricState
from tsnetpy.noise.ikpsk2 import CONSTRUCTION, IDENTIFIER, IkPsk2Initiator, IkPsk2Responder

VECTOR: Final = json.loads((Path(__file__).parent.parent / "data" / "datapath" / "wireguard.json").read_text())


def raw(name: str) -> bytes:
    return bytes.fromhex(VECTOR[name])


def initiator(psk: bytes = bytes(32)) -> IkPsk2Initiator:
    return IkPsk2Initiator(
        raw("initiator_static_private"),
        raw("initiator_static_public"),
        raw("responder_static_public"),
        raw("initiator_ephemeral_private"),
        psk,
    )


def responder() -> IkPsk2Responder:
    return IkPsk2Responder(raw("responder_static_private"), raw("responder_static_public"))


def test_initial_chaining_key_and_hash() -> None:
    state = SymmetricState(CONSTRUCTION)
    assert state.ck.hex() == "60e26daef327efc02ec335e2a025d2d016eb4206f87277f52d38d1988b78cd36"
    state.mix_hash(IDENTIFIER)
    assert state.h.hex() == "2211b361081ac566691243db458ad5322d9c6c662293e8b70ee19c65ba079ef3"


@pytest.mark.parametrize("precomputed", [False, True])
def test_vector_both_roles(precomputed: bool) -> None:
    static_shared = dh.shared(raw("initiator_static_private"), raw("responder_static_public")) if precomputed else None
    ours = IkPsk2Initiator(
        raw("initiator_static_private"),
        raw("initiator_static_public"),
        raw("responder_static_public"),
        raw("initiator_ephemeral_private"),
        static_shared=static_shared,
    )
    ephemeral, static, timestamp = ours.write_initiation(raw("tai64n"))
    assert ephemeral + static + timestamp == raw("initiation")[8:116]
    assert ours.symmetric.h == raw("hash_after_initiation")
    assert ours.symmetric.ck == raw("chaining_after_initiation")

    theirs = responder()
    assert theirs.read_static(ephemeral, static) == raw("initiator_static_public")
    assert theirs.read_timestamp(timestamp, static_shared) == raw("tai64n")
    ephemeral, empty, send, receive = theirs.write_response(raw("responder_ephemeral_private"))
    assert ephemeral + empty == raw("response")[12:60]
    keys = raw("key_initiator_to_responder"), raw("key_responder_to_initiator")
    assert (receive, send) == keys
    assert ours.read_response(ephemeral, empty) == keys


def test_a_forged_response_does_not_spoil_the_handshake() -> None:
    ours, theirs = initiator(), responder()
    ephemeral, static, timestamp = ours.write_initiation(raw("tai64n"))
    theirs.read_static(ephemeral, static)
    theirs.read_timestamp(timestamp)
    ephemeral, empty, send, receive = theirs.write_response(raw("responder_ephemeral_private"))
    for bad_ephemeral, bad_empty in ((bytes(32), empty), (ephemeral, bytes(16)), (empty * 2, empty)):
        with pytest.raises(CryptoError):
            ours.read_response(bad_ephemeral, bad_empty)
    assert ours.read_response(ephemeral, empty) == (receive, send)


def test_psk_must_agree() -> None:
    ours, theirs = initiator(psk=b"p" * 32), responder()
    ephemeral, static, timestamp = ours.write_initiation(raw("tai64n"))
    theirs.read_static(ephemeral, static)
    theirs.read_timestamp(timestamp)
    ephemeral, empty, _, _ = theirs.write_response(raw("responder_ephemeral_private"), b"q" * 32)
    with pytest.raises(CryptoError):
        ours.read_response(ephemeral, empty)


def test_message_keys_are_used_once() -> None:
    state = SymmetricState(CONSTRUCTION)
    with pytest.raises(CryptoError):
        state.encrypt_and_hash(b"before any key")
    state.mix_key(bytes(32))
    state.encrypt_and_hash(b"once")
    with pytest.raises(CryptoError):
        state.encrypt_and_hash(b"twice")
