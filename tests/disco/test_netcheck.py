"""Netcheck's plan and report on a virtual clock, and the choice of endpoints."""

import pytest

from tests.disco.kit import CountingEntropy, ep
from tsnetpy.base.addr import Endpoint, parse_ip
from tsnetpy.base.instant import MILLISECOND, SECOND, Duration, Instant
from tsnetpy.disco import endpoints as eps
from tsnetpy.disco.netcheck import NetCheck, Probe, StunTarget

OURS = ep("203.0.113.7:41641")


def target(region: int, text: str) -> StunTarget:
    return StunTarget(region, ep(text))


def run(
    check: NetCheck, now: Instant, answer: dict[Endpoint, tuple[Duration, Endpoint]]
) -> tuple[Instant, list[Probe]]:
    """Drive *check* to its end; servers in *answer* reply after a delay with an address."""
    sent: list[Probe] = []
    replies: list[tuple[Instant, bytes, Endpoint]] = []
    while not check.is_done:
        for probe in check.take_probes(now):
            sent.append(probe)
            if probe.server in answer:
                delay, mapped = answer[probe.server]
                replies.append((now + delay, probe.txid, mapped))
        replies.sort()
        deadline = check.next_deadline()
        assert deadline is not None
        if replies and replies[0][0] <= deadline:
            now, txid, mapped = replies.pop(0)
            check.handle_response(txid, mapped, now)
        else:
            now = deadline
            check.handle_deadline(now)
    return now, sent


def test_one_region_ends_with_the_last_useful_answer() -> None:
    check = NetCheck(CountingEntropy())
    v4, v6 = target(900, "192.0.2.1:3478"), target(900, "[2001:db8::1]:3478")
    ours6 = ep("[2001:db8::7]:41641")
    answers = {v4.server: (5 * MILLISECOND, OURS), v6.server: (3 * MILLISECOND, ours6)}
    check.start([v4, v6], 0, 0)
    end, sent = run(check, 0, answers)
    assert end == 5 * MILLISECOND
    assert len(sent) == 2
    report = check.report
    assert report.udp
    assert report.latency() == {900: 3 * MILLISECOND}
    assert (report.global_v4, report.global_v6) == ((OURS,), (ours6,))
    assert report.mapping_varies is None
    info = report.net_info(900, os_has_ipv6=True)
    assert info.derp_latency == {"900-v4": 0.005, "900-v6": 0.003}
    assert (info.udp, info.ipv6, info.preferred_derp) == (True, True, 900)


def test_dead_family_does_not_hold_up_a_near_region() -> None:
    check = NetCheck(CountingEntropy())
    v4, v6 = target(900, "192.0.2.1:3478"), target(900, "[2001:db8::1]:3478")
    check.start([v4, v6], 0, 0)
    end, _ = run(check, 0, {v4.server: (5 * MILLISECOND, OURS)})
    assert end == 55 * MILLISECOND
    check = NetCheck(CountingEntropy())
    check.start([v4, v6], 0, 0)
    assert len(check.take_probes(0)) == 2
    check.server_failed(v6.server)
    check.server_failed(v4.server)
    assert check.is_done
    assert not check.report.udp


def test_blocked_udp_ends_after_three_seconds_and_three_tries() -> None:
    check = NetCheck(CountingEntropy())
    check.start([target(1, "192.0.2.1:3478"), target(2, "192.0.2.2:3478")], 0, 0)
    end, sent = run(check, 0, {})
    assert end == 3 * SECOND
    assert len(sent) == 6
    assert not check.report.udp
    assert check.report.net_info(7, os_has_ipv6=False).udp is False


def test_lost_probe_is_repeated() -> None:
    check = NetCheck(CountingEntropy())
    server = target(1, "192.0.2.1:3478")
    check.start([server], 0, 0)
    check.take_probes(0)
    assert check.next_deadline() == 100 * MILLISECOND
    (second,) = check.take_probes(100 * MILLISECOND)
    assert check.handle_response(second.txid, OURS, 130 * MILLISECOND)
    assert check.is_done
    assert check.report.latency() == {1: 30 * MILLISECOND}
    assert not check.handle_response(second.txid, OURS, 131 * MILLISECOND)
    assert not check.handle_response(b"forged......", OURS, 131 * MILLISECOND)


@pytest.mark.parametrize(("second", "varies"), [(OURS, False), (ep("203.0.113.7:9999"), True)])
def test_hard_nat_shows_by_different_mappings(second: Endpoint, varies: bool) -> None:
    check = NetCheck(CountingEntropy())
    a, b = target(1, "192.0.2.1:3478"), target(2, "192.0.2.2:3478")
    check.start([a, b], 0, 0)
    run(check, 0, {a.server: (MILLISECOND, OURS), b.server: (2 * MILLISECOND, second)})
    assert check.report.mapping_varies is varies
    # An address that one server alone saw is no use to peers, except the first.
    assert check.report.global_v4 == (OURS,)


def test_incremental_check_asks_the_fastest_and_the_home_only() -> None:
    check = NetCheck(CountingEntropy())
    targets = [target(region, f"192.0.2.{region}:3478") for region in range(1, 9)]
    answers = {t.server: (t.region * 10 * MILLISECOND, OURS) for t in targets}
    check.start(targets, 0, 0)
    run(check, 0, answers)
    first = check.report.latency()
    assert {1, 2, 3} <= set(first)
    check.start(targets, 3, 30 * SECOND)
    _, sent = run(check, 30 * SECOND, answers)
    assert {probe.region for probe in sent} == {1, 2, 3}
    check.start(targets, 3, 301 * SECOND)
    _, sent = run(check, 301 * SECOND, answers)
    assert len({probe.region for probe in sent}) == 8


def test_no_servers_is_an_empty_report() -> None:
    check = NetCheck(CountingEntropy())
    check.start([], 0, 0)
    assert check.is_done
    assert check.next_deadline() is None


def ips(*texts: str) -> list[bytes]:
    return [parse_ip(text) for text in texts]


@pytest.mark.parametrize(
    ("given", "usable"),
    [
        (["192.0.2.10", "127.0.0.1", "100.64.0.3", "fd7a:115c:a1e0::3", "fe80::1"], ["192.0.2.10"]),
        (
            ["2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8:0:1::1"],
            ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"],
        ),
        (["127.0.0.1", "::1"], ["127.0.0.1", "::1"]),
        (["127.0.0.1", "169.254.1.1", "fd00::1"], ["169.254.1.1", "fd00::1"]),
        (["10.0.0.1", "169.254.1.1", "fd00::1"], ["10.0.0.1"]),
        (["0.0.0.0"], []),
    ],
)
def test_usable_interface_ips(given: list[str], usable: list[str]) -> None:
    assert eps.usable_interface_ips(ips(*given)) == ips(*usable)


def test_gather_orders_and_deduplicates() -> None:
    found = eps.gather(
        [OURS, ep("192.0.2.10:41641")],
        ips("192.0.2.10", "10.0.0.1", "2001:db8::1"),
        port_v4=41641,
        port_v6=41642,
    )
    assert [(str(t.endpoint), t.kind) for t in found] == [
        ("203.0.113.7:41641", eps.ENDPOINT_STUN),
        ("192.0.2.10:41641", eps.ENDPOINT_STUN),
        ("10.0.0.1:41641", eps.ENDPOINT_LOCAL),
        ("[2001:db8::1]:41642", eps.ENDPOINT_LOCAL),
    ]
    hard = eps.gather([ep("203.0.113.7:999")], [], port_v4=41641, port_v6=0, varies=True, fixed_port=41641)
    assert [(str(t.endpoint), t.kind) for t in hard] == [
        ("203.0.113.7:999", eps.ENDPOINT_STUN),
        ("203.0.113.7:41641", eps.ENDPOINT_STUN4_LOCAL_PORT),
    ]
    assert eps.gather([], ips("10.0.0.1"), port_v4=0, port_v6=0) == []
