"""What stays of a connection in TIME-WAIT answers as the connection did."""

import pytest

from tests.tcp.kit import Script
from tsnetpy.base.instant import MILLISECOND, SECOND
from tsnetpy.tcp import State, TimeWait
from tsnetpy.tcp.flags import ACK, FIN, RST, SYN
from tsnetpy.tcp.options import encode_syn, parse_segment

ISN, PEER_ISN = 7000, 0xFFFFFF00


def resting(ts_on: bool = True) -> TimeWait:
    return TimeWait(ISN + 2, PEER_ISN + 0x200, 500, ts_on, 3000, 40, 10 * SECOND, 10 * SECOND)


def test_it_is_what_the_connection_was() -> None:
    script = Script.established()
    script.conn.shutdown(script.now)
    script.out()
    (last,) = script.feed(1, 2, ACK | FIN)
    assert script.state() is State.TIME_WAIT
    state = script.conn.time_wait()
    assert state.until == script.now + script.conn.tcb.config.time_wait
    again = state.receive_segment((script.PEER_ISN + 1) & 0xFFFFFFFF, ACK | FIN, 0, script.now)
    assert again is not None
    assert (again.seq, again.ack) == (script.conn.tcb.snd_nxt & 0xFFFFFFFF, (script.PEER_ISN + 2) & 0xFFFFFFFF)
    assert (again.flags, again.wnd) == (last.flags, last.wnd)


def test_a_repeated_fin_is_acknowledged_and_starts_the_wait_over() -> None:
    state = resting()
    answer = state.receive_segment(0xFF, ACK | FIN, 0, 4 * SECOND)
    assert answer is not None
    assert (answer.seq, answer.ack, answer.flags) == (ISN + 2, 0x100, ACK)
    options = parse_segment(answer.options)
    assert (options.ts_val, options.ts_ecr) == (4040, 3000)
    assert state.until == 14 * SECOND


@pytest.mark.parametrize(("flags", "seq"), [(RST, 0x100), (RST | ACK, 0x100), (ACK, 0x100)])
def test_resets_and_proper_acks_get_no_answer(flags: int, seq: int) -> None:
    state = resting()
    assert state.receive_segment(seq, flags, 0, SECOND) is None
    assert state.until == 10 * SECOND


def test_other_segments_are_challenged_at_a_limited_rate_and_old_data_always() -> None:
    state = resting(ts_on=False)
    assert state.receive_segment(5, ACK, 0, SECOND) is not None
    assert state.receive_segment(5, ACK, 0, SECOND + MILLISECOND) is None
    answer = state.receive_segment(5, ACK, 100, SECOND + MILLISECOND)
    assert answer is not None
    assert answer.options == b""
    assert state.receive_segment(5, SYN, 0, 2 * SECOND) is not None


def test_a_new_syn_must_be_newer() -> None:
    state = resting()
    newer, older = (encode_syn(1220, 7, True, True, ts, 0) for ts in (3001, 2999))
    assert state.accepts_new_syn(1, newer)
    assert not state.accepts_new_syn(1, older)
    plain = resting(ts_on=False)
    assert plain.accepts_new_syn(0x101, newer)
    assert not plain.accepts_new_syn(0xFF, newer)
