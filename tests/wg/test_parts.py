"""The small parts: replay window, timestamps, message layouts."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from tsnetpy.base.instant import MILLISECOND, SECOND
from tsnetpy.wg.constants import REJECT_AFTER_MESSAGES
from tsnetpy.wg.messages import CookieReply, Initiation, Response
from tsnetpy.wg.replay import WINDOW, ReplayWindow
from tsnetpy.wg.tai64n import Tai64nClock, stamp


def test_replay_window_is_8128() -> None:
    assert WINDOW == 8128
    window = ReplayWindow()
    assert window.accept(20_000)
    assert window.accept(20_000 - 8128)
    assert not window.accept(20_000 - 8129)
    assert not window.accept(20_000)
    assert not window.accept(20_000 - 8128)


def test_replay_table() -> None:
    # In the spirit of wireguard-go's own table: (counter, accepted), on one window.
    limit = WINDOW + 1
    table = [
        (0, True), (1, True), (1, False), (9, True), (8, True), (7, True), (7, False), (limit, True), (limit - 1, True),
        (limit - 1, False), (limit - 2, True), (2, True), (2, False), (limit + 16, True), (3, False),
        (limit + 16, False), (limit * 4, True), (limit * 4 - (limit - 1), True), (10, False),
        (limit * 4 - limit, False),
        (limit * 4 - (limit + 1), False), (limit * 4 - (limit - 2), True), (limit * 4 + 1 - limit, False), (0, False),
        (REJECT_AFTER_MESSAGES, False), (REJECT_AFTER_MESSAGES - 1, True), (REJECT_AFTER_MESSAGES, False),
        (REJECT_AFTER_MESSAGES - 1, False), (REJECT_AFTER_MESSAGES - 2, True), (REJECT_AFTER_MESSAGES + 1, False),
        (REJECT_AFTER_MESSAGES - 2, False), (REJECT_AFTER_MESSAGES - 3, True), (0, False),
    ]  # fmt: skip
    window = ReplayWindow()
    assert [(counter, window.accept(counter)) for counter, _ in table] == table


@given(st.lists(st.integers(0, 30_000), max_size=300))
def test_replay_window_agrees_with_a_set(counters: list[int]) -> None:
    window, seen, highest = ReplayWindow(), set[int](), 0
    for counter in counters:
        expected = counter not in seen and highest - counter <= WINDOW
        assert window.accept(counter) == expected
        if expected:
            seen.add(counter)
            highest = max(highest, counter)


@given(
    st.lists(
        st.tuples(st.integers(0, 20_000), st.sampled_from([1, 2, 63, 64, 65, 200, WINDOW, WINDOW + 1])), max_size=20
    )
)
def test_a_run_of_counters_counts_as_each_of_them(runs: list[tuple[int, int]]) -> None:
    window, one_by_one, highest = ReplayWindow(), ReplayWindow(), 0
    for first, count in runs:
        taken = window.accept_run(first, count)
        assert taken == (highest < first and count <= WINDOW)
        expected = [one_by_one.accept(counter) for counter in range(first, first + count)]
        if taken:
            assert all(expected)
        else:
            assert [window.accept(counter) for counter in range(first, first + count)] == expected
        highest = max(highest, first + count - 1)
        for counter in (first - 1, first, first + count - 1, first + count, highest - WINDOW, highest - WINDOW - 1):
            if 0 <= counter <= highest:
                assert window.accept(counter) == one_by_one.accept(counter)


def test_a_run_does_not_pass_the_last_counter() -> None:
    window = ReplayWindow()
    assert not window.accept_run(REJECT_AFTER_MESSAGES - 2, 3)
    assert window.accept_run(REJECT_AFTER_MESSAGES - 3, 3)


def test_timestamps_grow_even_if_the_clock_does_not() -> None:
    clock = Tai64nClock()
    wall = 1_700_000_000 * SECOND + 999 * MILLISECOND
    stamps = [clock.next(w) for w in (wall, wall, wall + 1, wall - 3600 * SECOND, wall, wall + 2 * SECOND)]
    assert stamps == sorted(set(stamps))
    assert stamps[-1] == stamp(wall + 2 * SECOND)
    assert all(s[9:] == bytes(3) for s in stamps)


def test_layouts() -> None:
    initiation = Initiation(7, b"e" * 32, b"s" * 48, b"t" * 28).encode()
    assert len(initiation) == 148 - 32
    assert initiation[:8] == struct.pack("<II", 1, 7)
    again = Initiation.decode(initiation)
    assert (again.sender, again.ephemeral, again.sealed_static, again.sealed_timestamp) == (
        7,
        b"e" * 32,
        b"s" * 48,
        b"t" * 28,
    )
    response = Response(7, 8, b"e" * 32, b"m" * 16).encode()
    assert len(response) == 92 - 32
    back = Response.decode(response)
    assert (back.sender, back.receiver, back.ephemeral, back.sealed_empty) == (7, 8, b"e" * 32, b"m" * 16)
    reply = CookieReply(9, b"n" * 24, b"c" * 32).encode()
    assert len(reply) == 64
    assert reply[:8] == struct.pack("<II", 3, 9)
