"""A short run of the WireGuard soak; ``python -m tests.fuzz.fuzz_wireguard --soak 1000000`` is the long one."""

import pytest

from tests.fuzz.fuzz_wireguard import replay, soak


@pytest.mark.parametrize("seed", [1, 2])
def test_no_datagram_harms_the_device(seed: int) -> None:
    target = soak(seed, 8_000)
    assert target.delivered > 200
    # Reasons are fixed words: a table of them cannot be made to grow from outside.
    assert 15 <= len(target.b.drops.counts) < 30


def test_every_operation_of_the_fuzz_target_runs() -> None:
    dropped: set[str] = set()
    for first in range(256):
        record = bytes((first, 30)) + bytes((first * 7 + i * 13) & 0xFF for i in range(30))
        dropped |= set(replay(record * 2).b.drops.counts)
    assert len(dropped) >= 12
