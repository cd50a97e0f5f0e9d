"""Options that an application may change while a connection runs: cork, Nagle, keep-alive, user timeout."""

import pytest

from tests.tcp.kit import Pipe, Script, blob, payload_of
from tsnetpy.base.instant import MILLISECOND, SECOND
from tsnetpy.tcp import Segment, State, TcpConfig
from tsnetpy.tcp.flags import ACK, FIN

MSS = 1000
CONFIG = TcpConfig(mss=MSS, timestamps=False)


def corked(config: TcpConfig = CONFIG) -> Script:
    script = Script.established(config, options=bytes.fromhex("020403e8"))
    script.conn.set_cork(True)
    return script


def sizes(segments: list[Segment]) -> list[int]:
    return [segment.payload_len for segment in segments]


@pytest.mark.checklist(81)
def test_a_cork_lets_full_packets_out_only() -> None:
    script = corked()
    script.conn.send(bytes(700), script.now)
    assert script.out() == []
    script.conn.send(bytes(700), script.now)
    assert sizes(script.out()) == [1000]
    script.conn.send(bytes(3700), script.now)
    (segment,) = script.out()
    assert (segment.payload_len, segment.gso_size) == (4000, 1000)
    script.feed(1, 5001)
    assert script.out() == []


@pytest.mark.checklist(81)
def test_uncorking_lets_the_rest_go() -> None:
    script = corked()
    script.conn.send(b"abc", script.now)
    script.conn.send(b"def", script.now)
    assert script.out() == []
    script.conn.set_cork(False)
    (segment,) = script.out()
    assert payload_of(segment) == b"abcdef"
    assert script.wait(100 * MILLISECOND) == []


@pytest.mark.checklist(81)
@pytest.mark.parametrize("in_flight", [False, True])
def test_a_cork_holds_for_200_ms_at_most(in_flight: bool) -> None:
    script = corked()
    if in_flight:
        script.conn.send(bytes(MSS), script.now)
        assert sizes(script.out()) == [MSS]
        script.feed(1, 1)  # a window update; the packet stays in flight
    script.wait(50 * MILLISECOND)
    script.conn.send(b"late", script.now)
    assert script.out() == []
    if in_flight:
        script.feed(1, 1001)
    ((when, segment),) = script.wait(500 * MILLISECOND)[:1]
    assert (when, payload_of(segment)) == (200 * MILLISECOND, b"late")
    # And the next write is held anew.
    script.feed(1, 1 + len(b"late") + MSS * in_flight)
    script.conn.send(b"again", script.now)
    assert script.out() == []
    assert [when for when, _ in script.wait(300 * MILLISECOND)] == [200 * MILLISECOND]


@pytest.mark.checklist(81, 80)
def test_a_fin_takes_along_what_the_cork_held() -> None:
    script = corked()
    script.conn.send(b"end", script.now)
    script.conn.shutdown(script.now)
    (segment,) = script.out()
    assert payload_of(segment) == b"end"
    assert segment.flags & FIN


@pytest.mark.checklist(81)
def test_a_cork_over_a_closed_window_does_not_stop_the_probes() -> None:
    script = corked()
    script.feed(1, 1, wnd=0)
    script.conn.send(b"abc", script.now)
    sent = script.wait(2 * SECOND)
    assert sent
    assert all(segment.payload_len == 0 for _, segment in sent)
    script.feed(1, 1, wnd=5000)
    script.conn.set_cork(False)
    assert [payload_of(segment) for segment in script.out()] == [b"abc"]


@pytest.mark.checklist(81)
def test_corked_writes_arrive_whole() -> None:
    pipe = Pipe()
    pipe.open()
    pipe.a.set_cork(True)
    data = blob(100_000)
    assert pipe.transfer(data, chunk=777)[0] == data
    short = [packet for packet in pipe.data_sent(0) if len(packet.payload) < 1208]
    assert len(short) == 1


@pytest.mark.checklist(79)
def test_nagle_may_be_switched() -> None:
    script = Script.established(CONFIG, options=bytes.fromhex("020403e8"))
    script.conn.set_nodelay(False)
    script.conn.send(b"a", script.now)
    assert sizes(script.out()) == [1]
    script.conn.send(b"b", script.now)
    assert script.out() == []
    script.conn.set_nodelay(True)
    assert sizes(script.out()) == [1]
    assert CONFIG.nodelay  # other connections share that object


@pytest.mark.checklist(146)
def test_keepalive_may_be_switched_while_idle() -> None:
    script = Script.established(CONFIG)
    assert script.wait(3600 * SECOND) == []
    script.feed(1, 1, ACK)
    script.conn.set_keepalive(10 * SECOND, 2 * SECOND, 3, script.now)
    probes = script.wait(15 * SECOND)
    assert [when // SECOND for when, _ in probes] == [10, 12, 14]
    assert all(segment.seq == 0 for _, segment in probes)
    script.conn.set_keepalive(0, SECOND, 1, script.now)
    assert script.wait(3600 * SECOND) == []
    assert script.state() is State.ESTABLISHED
    script.conn.set_keepalive(10 * SECOND, 2 * SECOND, 3, script.now)
    script.wait(60 * SECOND)
    assert script.conn.error == "timeout"


@pytest.mark.checklist(95)
def test_a_user_timeout_set_in_mid_flight_counts() -> None:
    script = Script.established(CONFIG)
    script.conn.send(b"anybody?", script.now)
    start = script.now
    script.wait(5 * SECOND)
    script.conn.set_user_timeout(8 * SECOND)
    while script.conn.error is None:
        script.wait(SECOND // 4)
    assert 8 * SECOND <= script.now - start < 9 * SECOND
    assert script.conn.error == "timeout"


def test_a_window_is_not_paced_before_the_round_trip_was_sampled() -> None:
    """SACK measures the least round trip even where Karn's algorithm lets nothing be sampled."""
    script = Script.established(CONFIG, options=bytes.fromhex("020403e8"))
    sender = script.conn._sender
    sender.rtt.srtt = 0
    sender.rtt.min_rtt = 10 * MILLISECOND
    sender.cc.cwnd = 30 * MSS
    script.conn.send(bytes(20 * MSS), script.now)
    assert sum(sizes(script.out())) == 20 * MSS
