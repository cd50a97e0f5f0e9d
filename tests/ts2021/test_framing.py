"""Messages of the map stream: cut anywhere, packed or plain, and bounded."""

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tsnetpy.base.errors import RemoteProtocolError
from tsnetpy.ts2021.framing import MapFrameReader, MapFrameWriter


@given(
    messages=st.lists(st.binary(max_size=3000), max_size=5),
    size=st.integers(1, 4000),
    compressed=st.booleans(),
)
def test_round_trip_in_pieces(messages: list[bytes], size: int, compressed: bool) -> None:
    writer = MapFrameWriter(compressed)
    stream = b"".join(writer.frame(message) for message in messages)
    reader = MapFrameReader(compressed)
    got = [message for at in range(0, len(stream), size) for message in reader.feed(stream[at : at + size])]
    assert got == messages
    assert not reader.mid_message


def test_lengths_are_little_endian() -> None:
    assert MapFrameWriter(compressed=False).frame(b"{}") == b"\x02\0\0\0{}"
    reader = MapFrameReader(compressed=False)
    assert reader.feed(b"\x02\0\0") == []
    assert reader.mid_message
    assert reader.feed(b"\0{}") == [b"{}"]


def test_a_frame_without_an_announced_size_unpacks() -> None:
    # Go's streaming encoder leaves the content size out.
    packed = zstandard.ZstdCompressor(write_content_size=False).compress(b"{}" * 1000)
    assert MapFrameReader(compressed=True).feed(len(packed).to_bytes(4, "little") + packed) == [b"{}" * 1000]


@pytest.mark.parametrize("announce", [True, False])
def test_a_zip_bomb_is_refused(announce: bool) -> None:
    packed = zstandard.ZstdCompressor(write_content_size=announce).compress(bytes(100_000))
    with pytest.raises(RemoteProtocolError):
        MapFrameReader(compressed=True, max_bytes=50_000).feed(len(packed).to_bytes(4, "little") + packed)


def test_a_long_frame_is_refused_before_it_arrives() -> None:
    with pytest.raises(RemoteProtocolError):
        MapFrameReader(compressed=False, max_bytes=100).feed(b"\x65\0\0\0")


def test_garbage_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        MapFrameReader(compressed=True).feed(b"\x04\0\0\0abcd")
