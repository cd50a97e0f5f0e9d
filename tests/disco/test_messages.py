"""Messages, envelope, STUN and the demultiplexer against odd and hostile input."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsnetpy.base.addr import Endpoint, parse_ip
from tsnetpy.base.entropy import SystemEntropy
from tsnetpy.base.errors import DecodeError
from tsnetpy.disco import classify, messages, stun
from tsnetpy.disco.box import MAGIC, DiscoBox, looks_like_disco

endpoints = st.builds(
    Endpoint,
    st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16).filter(lambda ip: any(ip[:10]))),
    st.integers(0, 65535),
)
txids = st.binary(min_size=12, max_size=12)


@given(txids, endpoints, st.lists(endpoints, max_size=10), st.integers(0, 50))
def test_messages_round_trip(txid: bytes, source: Endpoint, listed: list[Endpoint], padding: int) -> None:
    for message in (
        messages.Ping(txid, bytes(range(32)), padding),
        messages.Ping(txid, b""),
        messages.Pong(txid, source),
        messages.CallMeMaybe(tuple(listed)),
        messages.OtherMessage(4, 0, txid),
    ):
        assert messages.decode(messages.encode(message)) == message


@given(st.binary(max_size=200))
def test_decoders_raise_only_decode_error(data: bytes) -> None:
    for decode in (messages.decode, stun.decode_request, stun.decode_response):
        try:
            decode(data)
        except DecodeError:
            continue
    assert classify.classify(data) in range(5)
    assert classify.classify(memoryview(data)) == classify.classify(data)


@given(st.binary(max_size=120))
def test_stun_attributes_never_overrun(body: bytes) -> None:
    message = stun.BINDING_SUCCESS + len(body).to_bytes(2, "big") + stun.MAGIC_COOKIE + bytes(12) + body
    try:
        txid, mapped = stun.decode_response(message)
    except DecodeError:
        return
    assert txid == bytes(12)
    assert len(mapped.ip) in (4, 16)


def test_trailing_bytes_of_pong_and_ping_are_ignored() -> None:
    txid = bytes(range(12))
    pong = messages.Pong(txid, Endpoint(parse_ip("192.0.2.1"), 7))
    assert messages.decode(messages.encode(pong) + b"later fields") == pong
    assert messages.decode(b"\x01\x05" + txid + b"short") == messages.Ping(txid, b"")


@pytest.mark.parametrize("plain", [b"\x03\x01" + bytes(18), b"\x03\x00" + bytes(19), b"\x03\x00"])
def test_odd_call_me_maybe_lists_nothing(plain: bytes) -> None:
    assert messages.decode(plain) == messages.CallMeMaybe(())


def test_call_me_maybe_is_capped() -> None:
    message = messages.decode(b"\x03\x00" + bytes(18) * 500)
    assert isinstance(message, messages.CallMeMaybe)
    assert len(message.endpoints) == messages.MAX_ENDPOINTS


def test_envelope_is_authentic() -> None:
    alice, bob, eve = (DiscoBox(SystemEntropy()) for _ in range(3))
    wire = alice.seal(bob.public, messages.Ping(bytes(12), b""))
    assert bob.open(wire) == messages.Ping(bytes(12), b"")
    for index in (7, 40, 70, len(wire) - 1):
        forged = bytearray(wire)
        forged[index] ^= 1
        with pytest.raises(DecodeError):
            bob.open(forged)
    with pytest.raises(DecodeError):
        eve.open(wire)
    assert not looks_like_disco(wire[:79])
    assert "redacted" in repr(alice)


def test_nonces_differ() -> None:
    alice, bob = DiscoBox(SystemEntropy()), DiscoBox(SystemEntropy())
    message = messages.Ping(bytes(12), b"")
    assert alice.seal(bob.public, message) != alice.seal(bob.public, message)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\x04\0\0\0" + bytes(28), classify.WIREGUARD),
        (b"\x01\0\0\0" + bytes(144), classify.WIREGUARD),
        (b"\x99" + bytes(40), classify.WIREGUARD),
        (b"\x04\0\0\0" + bytes(20), classify.RUNT),
        (b"\x07", classify.RUNT),
        (b"", classify.RUNT),
        (MAGIC + bytes(100), classify.DISCO),
        (stun.encode_request(bytes(12)), classify.STUN),
        (b"\0\x80\x7a\x11" + bytes(4) + MAGIC + bytes(90), classify.GENEVE),
        (b"\0\0\x7a\x12\0\0\x01\0" + bytes(90), classify.GENEVE),
    ],
)
def test_classify(data: bytes, kind: int) -> None:
    assert classify.classify(data) == kind


def test_is_bulk_looks_at_every_datagram() -> None:
    data = b"\x04\0\0\0" + bytes(60)
    assert classify.is_bulk(memoryview(data * 5 + data[:40]), 64)
    assert not classify.is_bulk(memoryview(data * 5 + MAGIC.ljust(64, b"\0") + data), 64)
    assert not classify.is_bulk(memoryview(data + b"\x01" + data[1:]), 64)


def _without_software() -> bytes:
    request = bytearray(stun.encode_request(bytes(12)))
    request[24:32] = b"nailtode"
    return bytes(request)


@pytest.mark.parametrize(
    "request_bytes",
    [
        stun.encode_request(bytes(12)) + b"x",
        stun.encode_request(bytes(12))[:-1] + b"\0",
        _without_software(),
        b"\0\1\0\0" + stun.MAGIC_COOKIE + bytes(12),
    ],
)
def test_stun_server_ignores_foreign_requests(request_bytes: bytes) -> None:
    with pytest.raises(DecodeError):
        stun.decode_request(request_bytes)


def test_stun_client_takes_older_forms() -> None:
    txid = bytes(range(12))
    plain = b"\0\1\0\x08\0\1\x80\x55\xc0\0\2\x01"
    response = stun.BINDING_SUCCESS + len(plain).to_bytes(2, "big") + stun.MAGIC_COOKIE + txid + plain
    assert stun.decode_response(response) == (txid, Endpoint(parse_ip("192.0.2.1"), 0x8055))
    xored = bytearray(stun.encode_response(txid, Endpoint(parse_ip("192.0.2.9"), 99)))
    xored[20] = 0x80
    assert stun.decode_response(xored) == (txid, Endpoint(parse_ip("192.0.2.9"), 99))
