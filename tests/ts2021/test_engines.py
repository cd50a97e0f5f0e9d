"""Client against server through a stream that is cut anywhere."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ts2021.test_vectors import MACHINE, MACHINE_EPHEMERAL, SERVER, SERVER_EPHEMERAL, client
from tsnetpy.base.errors import DecodeError, LocalProtocolError, RemoteProtocolError
from tsnetpy.crypto.dh import public_key
from tsnetpy.ts2021.client import EARLY_MAGIC, MAX_EARLY_BYTES, ClientEngine
from tsnetpy.ts2021.handshake import error_frame
from tsnetpy.ts2021.records import INVALID_COUNTER, MAX_PLAINTEXT_BYTES, RecordOpener, RecordSealer
from tsnetpy.ts2021.server import ServerEngine

CHALLENGE = "chalpub:" + "5a" * 32


def pair() -> tuple[ClientEngine, ServerEngine]:
    engine = client()
    return engine, ServerEngine(SERVER, engine.initiation, SERVER_EPHEMERAL)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """*data* in pieces of the given sizes, over and over."""
    pieces = []
    at = turn = 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        pieces.append(data[at : at + size])
        at += size
        turn += 1
    return pieces


@given(
    sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=8),
    messages=st.lists(st.binary(max_size=10_000), max_size=6),
)
def test_any_chunking_carries_the_same_bytes(sizes: list[int], messages: list[bytes]) -> None:
    engine, server = pair()
    engine.receive_data(server.response)
    to_server = b"".join(engine.send(message) for message in messages)
    assert b"".join(server.receive_data(piece) for piece in cut(to_server, sizes)) == b"".join(messages)


@given(sizes=st.lists(st.integers(1, 300), min_size=1, max_size=8), early=st.booleans(), body=st.binary(max_size=9000))
def test_the_early_payload_is_taken_out(sizes: list[int], early: bool, body: bytes) -> None:
    engine, server = pair()
    http = b"\0\0\x12\x04\0\0\0\0\0" + body  # how HTTP/2 starts: a SETTINGS frame
    stream = server.response + (server.early_payload(CHALLENGE) if early else b"") + server.send(http)
    assert b"".join(engine.receive_data(piece) for piece in cut(stream, sizes)) == http
    assert (engine.early is not None and engine.early.node_key_challenge == CHALLENGE) is early
    engine.receive_eof()


def test_the_early_payload_as_headscale_splits_it() -> None:
    engine, server = pair()
    engine.receive_data(server.response)
    body = json.dumps({"nodeKeyChallenge": CHALLENGE}).encode()
    out = b""
    for piece in (EARLY_MAGIC, len(body).to_bytes(4, "big"), body, b"\0\0\0\x04\0\0\0\0\0"):
        out += engine.receive_data(server.send(piece))
    assert out == b"\0\0\0\x04\0\0\0\0\0"
    assert engine.early is not None


def test_an_early_payload_may_not_be_huge_or_malformed() -> None:
    engine, server = pair()
    engine.receive_data(server.response)
    with pytest.raises(RemoteProtocolError):
        engine.receive_data(server.send(EARLY_MAGIC + (MAX_EARLY_BYTES + 1).to_bytes(4, "big")))
    engine, server = pair()
    engine.receive_data(server.response)
    with pytest.raises(DecodeError):
        engine.receive_data(server.send(EARLY_MAGIC + b"\0\0\0\x03abc"))


def test_records_are_cut_at_the_limit() -> None:
    engine, server = pair()
    engine.receive_data(server.response)
    sealed = engine.send(bytes(MAX_PLAINTEXT_BYTES + 1))
    assert len(sealed) == 4096 + 3 + 1 + 16, "Go resets the connection for a longer frame"
    assert engine.send(b"") == b""
    assert server.receive_data(sealed) == bytes(MAX_PLAINTEXT_BYTES + 1)


def test_a_record_beyond_the_limit_is_refused() -> None:
    opener = RecordOpener(bytes(32))
    with pytest.raises(RemoteProtocolError):
        opener.open(b"\x04" + (4094).to_bytes(2, "big"))
    with pytest.raises(RemoteProtocolError):
        RecordOpener(bytes(32)).open(b"\x04\0\x0f")
    with pytest.raises(RemoteProtocolError):
        RecordOpener(bytes(32)).open(b"\x02\0\x30")


def test_an_empty_record_is_legal() -> None:
    # Its 16 bytes are the tag alone.
    sealed = RecordSealer(bytes(32), counter=7)._aead.seal((7).to_bytes(12, "big"), b"")
    assert RecordOpener(bytes(32), counter=7).open(b"\x04\0\x10" + sealed) == b""


def test_a_replayed_or_changed_record_ends_the_connection() -> None:
    engine, server = pair()
    engine.receive_data(server.response)
    record = engine.send(b"once")
    assert server.receive_data(record) == b"once"
    with pytest.raises(RemoteProtocolError):
        server.receive_data(record)
    engine, server = pair()
    engine.receive_data(server.response)
    changed = bytearray(engine.send(b"once"))
    changed[-1] ^= 1
    with pytest.raises(RemoteProtocolError):
        server.receive_data(changed)


def test_the_last_counter_is_never_used() -> None:
    sealer = RecordSealer(bytes(32), counter=INVALID_COUNTER - 1)
    last = sealer.seal(b"x")
    with pytest.raises(LocalProtocolError):
        sealer.seal(b"y")
    opener = RecordOpener(bytes(32), counter=INVALID_COUNTER - 1)
    assert opener.open(last) == b"x"
    with pytest.raises(RemoteProtocolError):
        opener.open(last)


def test_an_error_frame_is_told() -> None:
    engine = client()
    with pytest.raises(RemoteProtocolError, match="unsupported"):
        engine.receive_data(error_frame("unsupported"))


def test_the_end_of_the_stream() -> None:
    engine = client()
    with pytest.raises(RemoteProtocolError, match="key or our version"):
        engine.receive_eof()
    engine, server = pair()
    engine.receive_data(server.response)
    engine.receive_eof()
    engine.receive_data(server.send(b"0123456789")[:-1])
    with pytest.raises(RemoteProtocolError):
        engine.receive_eof()


def test_nothing_is_sent_before_the_handshake() -> None:
    with pytest.raises(LocalProtocolError):
        client().send(b"x")


def test_another_version_breaks_the_handshake() -> None:
    engine = ClientEngine(117, MACHINE, public_key(SERVER), MACHINE_EPHEMERAL)
    tampered = (113).to_bytes(2, "big") + engine.initiation[2:]
    with pytest.raises(RemoteProtocolError):
        ServerEngine(SERVER, tampered, SERVER_EPHEMERAL)
