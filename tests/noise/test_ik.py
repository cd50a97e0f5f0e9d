"""Noise IK: the vector of the control protocol, both roles, and forgeries."""

import pytest

from tsnetpy.crypto import dh
from tsnetpy.crypto.aead import Aead
from tsnetpy.crypto.errors import CryptoError
from tsnetpy.noise.ik import IkInitiator, IkResponder

PROLOGUE = b"Tailscale Control Protocol v113"
MACHINE = dh.clamp(bytes(range(0x01, 0x21)))
MACHINE_EPHEMERAL = dh.clamp(bytes(range(0x21, 0x41)))
SERVER = dh.clamp(bytes(range(0x41, 0x61)))
SERVER_EPHEMERAL = dh.clamp(bytes(range(0x61, 0x81)))

INITIATION = bytes.fromhex(
    "00710100605869aff450549732cbaaed5e5df9b30a6da31cb0e5742bad5ad4a1a768f1a67b822e8514e6389169bdfd10"
    "afecae5bded9cda3f0157ac1d03cd3620b3bb73a86dbdc7b50c6c11427b648f55eac7b00072ed72ce95bb3932e4fe4904b"
    "a64e5b84"
)
RESPONSE = bytes.fromhex(
    "020030244fe3b963e899dd295baffce248d3530f3a9a7479ba063002680ebfe7adad49a9aef8e21aa2397cbf77d4532e13ee76"
)
HASH = bytes.fromhex("a0aa60be62494d5fe9df38f93f4afc42b98d725b3b72fefbe682a9d1d3e03e2a")
K1 = bytes.fromhex("9d8a0c9bfad81a7ac34484c53c3b9e730edd3c0249faac7826a8cf9f4b9713b1")
K2 = bytes.fromhex("5c591b6bc88039fb598c45334d246af59501be8061e51f3950afafc7d1fb28cb")


def test_control_protocol_vector_both_roles() -> None:
    client = IkInitiator(PROLOGUE, MACHINE, dh.public_key(SERVER), MACHINE_EPHEMERAL)
    server = IkResponder(PROLOGUE, SERVER)

    message_1 = client.write_message_1()
    assert message_1 == INITIATION[5:]
    assert server.read_message_1(message_1) == b""
    assert server.remote_static == dh.public_key(MACHINE)

    message_2 = server.write_message_2(SERVER_EPHEMERAL)
    assert message_2 == RESPONSE[3:]
    assert client.read_message_2(message_2) == b""

    assert client.handshake_hash == server.handshake_hash == HASH
    assert client.split() == (K1, K2)
    assert server.split() == (K2, K1)


def test_control_protocol_vector_records() -> None:
    # Record nonces are big-endian in ts2021.
    cipher = Aead(K1)
    assert (
        cipher.seal(bytes(4) + (0).to_bytes(8, "big"), b"hello").hex() == "07243be7982fab9bbb554647607dd6488c8e819717"
    )
    assert (
        cipher.seal(bytes(4) + (1).to_bytes(8, "big"), b"hello").hex() == "303e51d30d9bf270255ab7459bccd972fa86c024ae"
    )


@pytest.mark.parametrize("at", [0, 31, 32, 79, 80, 95])
def test_any_changed_byte_of_message_1_is_refused(at: int) -> None:
    message = bytearray(INITIATION[5:])
    message[at] ^= 1
    server = IkResponder(PROLOGUE, SERVER)
    with pytest.raises(CryptoError):
        server.read_message_1(bytes(message))
    assert server.remote_static == b""


@pytest.mark.parametrize("at", [0, 32, 47])
def test_any_changed_byte_of_message_2_is_refused(at: int) -> None:
    client = IkInitiator(PROLOGUE, MACHINE, dh.public_key(SERVER), MACHINE_EPHEMERAL)
    client.write_message_1()
    message = bytearray(RESPONSE[3:])
    message[at] ^= 1
    with pytest.raises(CryptoError):
        client.read_message_2(bytes(message))


def test_a_different_prologue_does_not_meet() -> None:
    server = IkResponder(b"Tailscale Control Protocol v114", SERVER)
    with pytest.raises(CryptoError):
        server.read_message_1(INITIATION[5:])


def test_payloads_are_carried_and_short_messages_refused() -> None:
    client = IkInitiator(PROLOGUE, MACHINE, dh.public_key(SERVER), MACHINE_EPHEMERAL)
    server = IkResponder(PROLOGUE, SERVER)
    assert server.read_message_1(client.write_message_1(b"one")) == b"one"
    assert client.read_message_2(server.write_message_2(SERVER_EPHEMERAL, b"two")) == b"two"
    with pytest.raises(CryptoError):
        IkResponder(PROLOGUE, SERVER).read_message_1(bytes(95))
    with pytest.raises(CryptoError):
        IkResponder(PROLOGUE, SERVER).write_message_2(SERVER_EPHEMERAL)


def test_a_low_order_ephemeral_is_refused() -> None:
    with pytest.raises(CryptoError):
        IkResponder(PROLOGUE, SERVER).read_message_1(bytes(96))
