"""Anything may arrive, at any time: the engine never raises, and its invariants hold."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tcp.kit import Script
from tsnetpy.base.instant import MILLISECOND, SECOND
from tsnetpy.tcp import State, TcpConfig
from tsnetpy.tcp.flags import ACK, RST
from tsnetpy.tcp.options import encode_sack, encode_timestamps

OFFERS = [bytes.fromhex("020404c4"), bytes.fromhex("020404c40402080a000000640000000001030307")]
NEAR = st.one_of(st.integers(-5, 40_000), st.sampled_from([-70_000, 1 << 31, 300_000, 262_145]))


@settings(max_examples=150, deadline=None)
@given(
    offer=st.sampled_from(OFFERS),
    steps=st.lists(
        st.one_of(
            st.tuples(
                st.just("segment"),
                st.tuples(
                    NEAR,
                    NEAR,
                    st.one_of(st.just(ACK), st.integers(0, 255)),
                    st.sampled_from([0, 1, 500, 65_535]),
                    st.sampled_from([0, 0, 1, 100, 1220, 9000]),
                    st.one_of(
                        st.sampled_from([b"", b"\x05\x02", b"\x08\x0a\x01", encode_timestamps(100, 0)]),
                        st.binary(max_size=40),
                        st.tuples(NEAR, NEAR).map(
                            lambda e: encode_sack([((e[0] - 256) & 0xFFFFFFFF, (e[1] - 256) & 0xFFFFFFFF)])
                        ),
                    ),
                ),
            ),
            st.tuples(st.just("send"), st.integers(0, 20_000)),
            st.tuples(st.just("read"), st.integers(0, 20_000)),
            st.tuples(st.just("wait"), st.sampled_from([1, 40, 250, 5_000])),
            st.tuples(st.sampled_from(["shutdown", "close", "abort", "mtu", "icmp"]), st.just(0)),
        ),
        max_size=40,
    ),
)
@pytest.mark.attack(54)
def test_no_input_breaks_the_engine(offer: bytes, steps: list[tuple[str, object]]) -> None:
    script = Script.established(
        TcpConfig(rcv_buf=20_000, rcv_buf_max=40_000, snd_buf=30_000, snd_buf_max=60_000), options=offer
    )
    conn = script.conn
    tcb = conn.tcb
    shut = False
    for step, argument in steps:
        edge, una = tcb.rcv_adv, tcb.snd_una
        out = []
        if isinstance(argument, tuple):
            seq, ack, flags, wnd, size, options = argument
            out = script.feed(seq, ack, flags, b"\xa5" * size, wnd, options)
            if flags & RST:
                assert len(out) <= 20
        elif isinstance(argument, int):
            if step == "send" and not shut and conn.state not in (State.CLOSED, State.TIME_WAIT):
                assert 0 <= conn.send(bytes(argument), script.now) <= argument
            elif step == "read":
                assert len(conn.read(argument, script.now)) <= argument
            elif step == "wait":
                script.wait(argument * MILLISECOND)
            elif step in ("shutdown", "close", "abort"):
                shut = True
                getattr(conn, step)(script.now)
            elif step == "mtu":
                conn.mtu_changed(576)
            elif step == "icmp":
                conn.icmp_error(True, "unreachable")
            out = script.out()
        assert tcb.rcv_adv >= edge
        assert una <= tcb.snd_una <= tcb.snd_nxt
        assert tcb.rcv_nxt <= tcb.rcv_adv
        assert conn.readable_bytes + conn._receiver.reassembly.size <= 40_000 + 256
        assert conn.info().cwnd >= tcb.mss or tcb.state is State.CLOSED
        for segment in out:
            assert segment.payload_len <= 62_000
            assert len(segment.options) <= 40
            assert 0 <= segment.wnd <= 0xFFFF
    # Left alone after an abort, it ends at once and stays silent.
    conn.abort(script.now)
    script.out()
    assert conn.next_deadline() is None
    assert script.wait(100 * SECOND) == []
