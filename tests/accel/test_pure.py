"""The pure implementation, which is the specification: layout, padding, golden bytes."""

import json
import struct
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsnetpy.accel import ops
from tsnetpy.accel.pure import MAX_BATCH_BYTES, MAX_DATAGRAMS, PureOps, padded_size
from tsnetpy.base.packet import TxBatch
from tsnetpy.crypto.errors import CryptoError

VECTOR: Final = json.loads((Path(__file__).parent.parent / "data" / "datapath" / "wireguard.json").read_text())
KEY: Final = bytes(range(32))


@pytest.mark.parametrize(
    ("length", "mtu", "padded"),
    [
        (0, 1280, 0),
        (1, 1280, 16),
        (16, 1280, 16),
        (84, 1280, 96),
        (1276, 1280, 1280),
        (1280, 1280, 1280),
        (1279, 1279, 1279),  # not past the MTU
        (1275, 1278, 1278),
        (1300, 1280, 1312),  # larger than the MTU: only the 20 bytes after the last full MTU count
        (2560, 1280, 2560),
        (20, 0, 32),
    ],
)
def test_padding(length: int, mtu: int, padded: int) -> None:
    assert padded_size(length, mtu) == padded


def test_golden_transport_messages_in_one_batch() -> None:
    messages = [m for m in VECTOR["transport"] if m["dir"] == "i->r"]
    key = ops.transport_key(bytes.fromhex(VECTOR["key_initiator_to_responder"]))
    plain = [bytes.fromhex(m["plain"]) for m in messages]
    runs = key.seal_batch(VECTOR["responder_index"], 0, plain, VECTOR["mtu"])
    datagrams = [bytes(d) for data, size in runs for d in TxBatch(data, size).datagrams()]
    assert [d.hex() for d in datagrams] == [m["msg"] for m in messages]
    opened = key.open_batch(datagrams)
    assert [counter for counter, _ in opened] == [m["counter"] for m in messages]
    assert all(got[: len(want)] == want and not any(got[len(want) :]) for (_, got), want in zip(opened, plain))
    assert [len(got) for _, got in opened] == [m["padded_len"] for m in messages]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from([0, 1, 16, 20, 52, 600, 1279, 1280]) | st.integers(0, 1500), max_size=150),
    st.sampled_from([1280, 1420, 1500]),
    st.integers(0, 2**63),
)
def test_batches_obey_the_segmentation_rule_and_open_again(sizes: list[int], mtu: int, counter: int) -> None:
    key = PureOps().transport_key(KEY)
    packets = [bytes([i % 251]) * n for i, n in enumerate(sizes)]
    views = [memoryview(p) if i % 2 else p for i, p in enumerate(packets)]
    runs = key.seal_batch(0xDEADBEEF, counter, views, mtu)
    datagrams: list[memoryview] = []
    for data, size in runs:
        batch = TxBatch(data, size)
        assert batch.count <= MAX_DATAGRAMS
        assert len(data) <= MAX_BATCH_BYTES
        datagrams += batch.datagrams()
    assert len(datagrams) == len(packets)
    for i, datagram in enumerate(datagrams):
        assert struct.unpack_from("<IIQ", datagram) == (4, 0xDEADBEEF, counter + i)
        assert len(datagram) == padded_size(len(packets[i]), mtu) + 32
    opened = key.open_batch(datagrams)
    assert [c for c, _ in opened] == [counter + i for i in range(len(packets))]
    for (_, got), want in zip(opened, packets):
        assert got[: len(want)] == want
        assert not any(got[len(want) :])


def test_forgeries_are_absent_and_the_rest_stays_in_order() -> None:
    key = PureOps().transport_key(KEY)
    ((data, size),) = key.seal_batch(1, 7, [bytes(100)] * 5, 1280)
    datagrams = [bytearray(d) for d in TxBatch(data, size).datagrams()]
    datagrams[1][-1] ^= 1
    datagrams[3][8] ^= 1  # the counter is the nonce
    assert [counter for counter, _ in key.open_batch(datagrams)] == [7, 9, 11]
    assert PureOps().transport_key(bytes(32)).open_batch(datagrams) == []
    assert key.open_batch([bytes(32)]) == []
    assert key.seal_batch(1, 7, [], 1280) == []


@given(st.binary(max_size=3000), st.integers(0, 0xFFFFFFFF))
def test_checksum_agrees_with_the_loop_of_rfc_1071(data: bytes, initial: int) -> None:
    total = initial
    padded = data + b"\0" * (len(data) % 2)
    for at in range(0, len(padded), 2):
        total += padded[at] << 8 | padded[at + 1]
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert ops.checksum(data, initial) == total
    assert ops.checksum(memoryview(data), initial) == total


def test_checksum_knows_both_zeros() -> None:
    assert ops.checksum(bytes(10)) == 0
    assert ops.checksum(b"\xff\xff") == 0xFFFF
    assert ops.checksum(b"\x00\x01\xff\xfe") == 0xFFFF


def test_keys_do_not_print_and_must_have_32_bytes() -> None:
    assert "redacted" in repr(PureOps().transport_key(KEY))
    with pytest.raises(CryptoError):
        PureOps().transport_key(KEY[1:])
