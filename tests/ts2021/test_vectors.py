"""The handshake's and records' known answers (computed by two implementations that interoperate with Headscale)."""

import pytest

from tsnetpy.base.errors import DecodeError, RemoteProtocolError
from tsnetpy.crypto.dh import clamp, public_key
from tsnetpy.ts2021.client import ClientEngine
from tsnetpy.ts2021.handshake import parse_initiation
from tsnetpy.ts2021.records import RecordOpener, RecordSealer
from tsnetpy.ts2021.server import ServerEngine

MACHINE, MACHINE_EPHEMERAL, SERVER, SERVER_EPHEMERAL = (
    clamp(bytes(range(start, start + 32))) for start in (0x01, 0x21, 0x41, 0x61)
)
INITIATION = bytes.fromhex(
    "00710100605869aff450549732cbaaed5e5df9b30a6da31cb0e5742bad5ad4a1a768f1a67b822e8514e6389169bdfd10"
    "afecae5bded9cda3f0157ac1d03cd3620b3bb73a86dbdc7b50c6c11427b648f55eac7b00072ed72ce95bb3932e4fe4904b"
    "a64e5b84"
)
RESPONSE = bytes.fromhex(
    "020030244fe3b963e899dd295baffce248d3530f3a9a7479ba063002680ebfe7adad49a9aef8e21aa2397cbf77d4532e13ee76"
)
HASH = "a0aa60be62494d5fe9df38f93f4afc42b98d725b3b72fefbe682a9d1d3e03e2a"
K1 = bytes.fromhex("9d8a0c9bfad81a7ac34484c53c3b9e730edd3c0249faac7826a8cf9f4b9713b1")
HELLO_0 = bytes.fromhex("04001507243be7982fab9bbb554647607dd6488c8e819717")
HELLO_1 = bytes.fromhex("040015303e51d30d9bf270255ab7459bccd972fa86c024ae")


def client(server_public: bytes = b"", version: int = 113) -> ClientEngine:
    return ClientEngine(version, MACHINE, server_public or public_key(SERVER), MACHINE_EPHEMERAL)


def test_handshake_vector() -> None:
    engine = client()
    assert engine.initiation == INITIATION
    server = ServerEngine(SERVER, INITIATION, SERVER_EPHEMERAL)
    assert server.response == RESPONSE
    assert server.version == 113
    assert server.machine_key == public_key(MACHINE)
    assert engine.receive_data(RESPONSE) == b""
    assert engine.established
    assert engine.handshake_hash.hex() == server.handshake_hash.hex() == HASH


def test_record_vector() -> None:
    sealer = RecordSealer(K1)
    assert sealer.seal(b"hello") == HELLO_0
    assert sealer.seal(b"hello") == HELLO_1
    assert RecordOpener(K1).open(HELLO_0 + HELLO_1) == b"hellohello"


@pytest.mark.parametrize("position", [0, 1, 2, 3, 4, 5, 37, 60, 100])
def test_a_damaged_initiation_is_refused(position: int) -> None:
    damaged = bytearray(INITIATION)
    damaged[position] ^= 1
    with pytest.raises(RemoteProtocolError):
        ServerEngine(SERVER, damaged, SERVER_EPHEMERAL)


def test_an_initiation_for_another_server_is_refused() -> None:
    engine = client(public_key(SERVER_EPHEMERAL))
    with pytest.raises(RemoteProtocolError):
        ServerEngine(SERVER, engine.initiation, SERVER_EPHEMERAL)


@pytest.mark.parametrize("length", [0, 4, 100, 102])
def test_an_initiation_has_one_length(length: int) -> None:
    with pytest.raises(DecodeError):
        parse_initiation((INITIATION + b"\0")[:length])


@pytest.mark.parametrize("position", [0, 1, 2, 3, 20, 50])
def test_a_damaged_response_is_refused(position: int) -> None:
    damaged = bytearray(RESPONSE)
    damaged[position] ^= 8
    engine = client()
    with pytest.raises(RemoteProtocolError):
        engine.receive_data(damaged)
    assert not engine.established


def test_a_low_order_server_key_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        client(bytes(32))


def test_secrets_do_not_print() -> None:
    engine = client()
    engine.receive_data(RESPONSE)
    for thing in (engine, RecordSealer(K1), RecordOpener(K1)):
        assert K1.hex() not in repr(thing)
        assert MACHINE.hex() not in repr(thing)
