"""The packetdrill runner, on scripts of our own: what must pass passes, and what must fail fails for its reason."""

import re
from pathlib import Path
from random import Random

import pytest

from tsnetpy.base.instant import MILLISECOND
from tsnetpy.testing.packetdrill import VARIANTS, Variant, run_all, run_text, table
from tsnetpy.testing.packetdrill.__main__ import main
from tsnetpy.testing.packetdrill.asserts import check
from tsnetpy.testing.packetdrill.parser import parse
from tsnetpy.testing.packetdrill.script import Call, ScriptError, TcpSpec, TimeKind, Unsupported
from tsnetpy.testing.packetdrill.script import Packet as ScriptPacket

SERVER = """
`../common/defaults.sh`

 0   socket(..., SOCK_STREAM, IPPROTO_TCP) = 3
+0   setsockopt(3, SOL_SOCKET, SO_REUSEADDR, [1], 4) = 0
+0   bind(3, ..., ...) = 0
+0   listen(3, 5) = 0
+.05 < S 0:0(0) win 30000 <mss 1200,sackOK,nop,nop,nop,wscale 6>
+0   > S. 0:0(0) ack 1 <mss 1460,nop,nop,sackOK,nop,wscale 8>
+.05 < . 1:1(0) ack 1 win 600
+0   accept(3, ..., ...) = 4
"""


def with_server(*lines: str) -> str:
    """Return a script that goes on after a handshake."""
    return SERVER + "\n".join(lines) + "\n"


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(
            (
                "+0 write(4, ..., 6000) = 6000",
                "+0 > P. 1:6001(6000) ack 1",
                "+.05 < . 1:1(0) ack 6001 win 600",
                "+0 < P. 1:2401(2400) ack 6001 win 600",
                "+0 > . 6001:6001(0) ack 2401",
                "+0 read(4, ..., 5000) = 2400",
            ),
            id="both ways",
        ),
        pytest.param(
            (
                "+0 write(4, ..., 4800) = 4800",
                "+0 > . 1:2401(2400) ack 1",
                "+0 > P. 2401:4801(2400) ack 1",
                "+.05 < . 1:1(0) ack 1 win 600 <sack 1201:2401,nop,nop>",
                "+0 < . 1:1(0) ack 1 win 600 <sack 1201:3601,nop,nop>",
                "+0 < . 1:1(0) ack 1 win 600 <sack 1201:4801,nop,nop>",
                "+0 > . 1:1201(1200) ack 1",
                "+.05 < . 1:1(0) ack 4801 win 600",
            ),
            id="a hole is repeated",
        ),
        pytest.param(
            (
                "+0 < . 1201:2401(1200) ack 1 win 600",
                "+0 > . 1:1(0) ack 1 <nop,nop,sack 1201:2401>",
                "+0 < . 1:1201(1200) ack 1 win 600",
                "+0 > . 1:1(0) ack 2401",
                "+0 ioctl(4, SIOCINQ, [2400]) = 0",
                "+0...0.100 read(4, ..., 2400) = 2400",
            ),
            id="we report a hole",
        ),
        pytest.param(
            (
                "+0...0.100 read(4, ..., 100) = 10",
                "+.1 < P. 1:11(10) ack 1 win 600",
                "* > . 1:1(0) ack 11",
                "+0 fcntl(4, F_SETFL, O_RDWR|O_NONBLOCK) = 0",
                "+0 read(4, ..., 100) = -1 EAGAIN (Resource temporarily unavailable)",
                "+0 shutdown(4, SHUT_WR) = 0",
                "+0 > F. 1:1(0) ack 11",
                "+0 < F. 11:11(0) ack 2 win 600",
                "+0 > . 2:2(0) ack 12",
                "+0 write(4, ..., 1) = -1 EPIPE (Broken pipe)",
            ),
            id="blocking and closing",
        ),
    ],
)
def test_correct_scripts_pass(lines: tuple[str, ...], variant: Variant) -> None:
    text = with_server(*lines).replace("0...0.100 read(4, ..., 2400)", "0 read(4, ..., 2400)")
    result = run_text(text, variant=variant)
    assert result.status == "pass", result


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (("+0 > . 1:1(0) ack 1",), "nothing was sent"),
        (("+0 write(4, ..., 10) = 11",), "write gives 10, not 11"),
        (("+0 write(4, ..., 10) = 10", "+0 > P. 1:10(9) ack 1"), r"sent P\. 1:11\(10\)"),
        (("+0 write(4, ..., 10) = 10", "+.2 > P. 1:11(10) ack 1"), "not at 0.3000"),
        (("+0 read(4, ..., 10) = 10",), "read blocks"),
        (("+0...0.100 read(4, ..., 10) = 10",), "still blocks"),
        (("+0...0.100 read(4, ..., 10) = 10", "+.05 < P. 1:11(10) ack 1 win 600"), "returned at 0.1500, not at 0.2000"),
        (("+0 %{ assert tcpi_snd_cwnd == 11, tcpi_snd_cwnd }%",), "tcpi_snd_cwnd = 10"),
        (("+0 shutdown(4, SHUT_WR) = 0", "+0 > F. 1:1(0) ack 1 <nop,nop,sack 1:2>"), "expected <sack 1:2>"),
        (("+0 write(5, ..., 10) = 10",), "descriptor 5 is not open"),
        (("+0 getsockopt(4, SOL_TCP, TCP_MAXSEG, [1000], [4]) = 0",), "gives 1200, not 1000"),
    ],
)
def test_wrong_scripts_fail_and_say_why(lines: tuple[str, ...], reason: str) -> None:
    result = run_text(with_server(*lines))
    assert result.status == "fail"
    assert result.line >= 12
    assert re.search(reason, result.reason), result.reason


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("+0 epoll_create(1) = 5", "system call epoll_create"),
        ("+0 setsockopt(4, SOL_TCP, TCP_CORK, [1], 4) = 0", "socket option TCP_CORK"),
        ("+0 %{ import os }%", "Python statement Import"),
        ("+0 %{ assert tcpi_wishes == 1 }%", "tcpi_wishes is not offered"),
        ("+0 `rm -rf /tmp/nothing`", "command"),
        ("+0 < 80 > 81 . 1:1(0) ack 1 win 5", "port numbers"),
        ("+0 < ipv4 1.1.1.1 > 2.2.2.2: . 1:1(0) ack 1 win 5", "inside ipv4"),
        ("+0 frobnicate", "not understood"),
    ],
)
def test_what_the_runner_cannot_do_is_skipped_with_the_reason(line: str, reason: str) -> None:
    result = run_text(with_server(line))
    assert result.status == "skip"
    assert reason in result.reason


def test_datagrams_and_icmp() -> None:
    script = """
     0 socket(..., SOCK_DGRAM, IPPROTO_UDP) = 3
    +0 connect(3, ..., ...) = 0
    +0 write(3, ..., 100) = 100
    +0 > udp (100)
    +0 < udp (3000)
    +0 read(3, ..., 4000) = 3000
    +0 < icmp unreachable port_unreachable [udp (100)]
    +0 write(3, ..., 100) = -1 ECONNREFUSED (Connection refused)
    +0...0.010 read(3, ..., 10) = 10
    +.01 < udp (10)
    """
    for variant in VARIANTS:
        assert run_text(script, variant=variant).status == "pass", variant.name


CLIENT = """
 0 socket(..., SOCK_STREAM, IPPROTO_TCP) = 3
+0 fcntl(3, F_SETFL, O_RDWR|O_NONBLOCK) = 0
+0 connect(3, ..., ...) = -1 EINPROGRESS (Operation now in progress)
"""


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("sysctl -q net.ipv4.tcp_timestamps=0", "mss 1460,nop,nop,sackOK,nop,wscale 8"),
        ("../set_sysctls.py /proc/sys/net/ipv4/tcp_sack=0 \\\n /proc/sys/net/ipv4/tcp_fastopen=0", None),
        ("sysctl net.ipv4.tcp_window_scaling=0; # a comment", "mss 1460,sackOK,TS val 9 ecr 0"),
    ],
)
def test_settings_come_from_the_commands(command: str, options: str | None) -> None:
    options = options or "mss 1460,nop,nop,TS val 9 ecr 0,nop,wscale 8"
    for chosen, status in ((options, "pass"), ("mss 1460", "fail")):
        assert run_text(f"`{command}`\n{CLIENT}+0 > S 0:0(0) <{chosen}>").status == status


def test_unknown_settings_skip_the_script() -> None:
    for command in (
        "sysctl net.ipv4.tcp_wishes=1",
        "sysctl net.ipv4.tcp_congestion_control=wish",
        "ip route",
    ):
        assert run_text(f"`{command}`\n{CLIENT}").status == "skip"
    assert run_text("--wish=1\n" + CLIENT).reason == "unsupported: option --wish"


def test_a_dead_way_out_lets_nothing_pass() -> None:
    lines = ("+0 `tc qdisc replace dev tun0 root pfifo limit 0`", "+0 write(4, ..., 10) = 10")
    assert run_text(with_server(*lines, "+0 > P. 1:11(10) ack 1")).reason.endswith("nothing was sent")
    alive = ("+.05 `tc qdisc replace dev tun0 root pfifo`", "* > P. 1:11(10) ack 1")
    assert run_text(with_server(*lines, *alive)).status == "pass"
    # What nobody fetched is neither in flight nor repeated.
    waiting = "+1 %{ assert tcpi_unacked == 0 and tcpi_total_retrans == 0 and tcpi_backoff == 0 }%"
    assert run_text(with_server(*lines, waiting)).status == "pass"


def test_a_dead_way_out_ends_a_connection_by_its_user_timeout() -> None:
    lines = (
        "+0 setsockopt(4, SOL_TCP, TCP_USER_TIMEOUT, [2000], 4) = 0",
        "+1 `tc qdisc replace dev tun0 root pfifo limit 0`",
        "+0 write(4, ..., 10) = 10",
        "+1.9 write(4, ..., 10) = 10",
        "+.7 write(4, ..., 10) = -1 ETIMEDOUT (Connection timed out)",
        "+0 %{ assert tcpi_probes == 4 and tcpi_backoff == 0 }%",
    )
    result = run_text(with_server(*lines))
    assert result.status == "pass", result


def test_tolerance_may_be_widened_from_outside() -> None:
    lines = with_server("+0 write(4, ..., 10) = 10", "+.02 > P. 1:11(10) ack 1")
    assert run_text(lines).status == "fail"
    assert run_text(lines, tolerance=20 * MILLISECOND).status == "pass"


def test_sizes_set_by_socket_option_hold() -> None:
    big = SERVER.replace("listen(3, 5)", "setsockopt(3, SOL_TCP, TCP_MAXSEG, [900], 4) = 0\n+0 listen(3, 5)").replace(
        "<mss 1460", "<mss 900"
    )
    assert run_text(big + "+0 getsockopt(4, SOL_TCP, TCP_MAXSEG, [900], [4]) = 0").status == "pass"
    lines = (
        "+0 setsockopt(4, SOL_SOCKET, SO_SNDBUF, [3000], 4) = 0",
        "+0 getsockopt(4, SOL_SOCKET, SO_SNDBUF, [6000], [4]) = 0",
        "+0...0.050 write(4, ..., 6000) = 6000",
        "+0 > . 1:3601(3600) ack 1",
        "+.05 < . 1:1(0) ack 2401 win 600",
    )
    assert run_text(with_server(*lines)).status == "pass"


def test_poll_compares_the_bits() -> None:
    lines = (
        "+0 poll([{fd=4, events=POLLIN|POLLOUT, revents=POLLOUT}], 1, 0) = 1",
        "+0...0.050 poll([{fd=4, events=POLLIN, revents=POLLIN}], 1, 1000) = 1",
        "+.05 < F. 1:1(0) ack 1 win 600",
        "* > . 1:1(0) ack 2",
    )
    assert run_text(with_server(*lines)).status == "pass"
    wrong = "+0 poll([{fd=4, events=POLLIN|POLLOUT, revents=POLLIN}], 1, 0) = 1"
    assert "poll of descriptor 4" in run_text(with_server(wrong)).reason


def test_scripts_may_start_their_numbers_anywhere() -> None:
    script = """
     0 socket(..., SOCK_STREAM, IPPROTO_TCP) = 3
    +0...0.100 connect(3, ..., ...) = 0
    +0 > S 5000:5000(0) <...>
    +.1 < S. 77:77(0) ack 5001 win 9000 <mss 1000>
    +0 > . 5001:5001(0) ack 78
    +0 write(3, ..., 100) = 100
    +0 > P. 5001:5101(100) ack 78
    """
    for variant in VARIANTS:
        assert run_text(script, variant=variant).status == "pass", variant.name


def test_a_call_that_should_fail_and_does_not_is_noticed() -> None:
    line = "0 socket(..., SOCK_STREAM, IPPROTO_TCP) = -1 EPROTONOSUPPORT (Protocol not supported)"
    assert run_text(line).reason == "socket succeeds"
    assert run_text(with_server("+0 < S 0:0(0) win 1", "+0 close(4) = -1 EBADF (Bad file number)")).status == "fail"


def test_a_hard_icmp_error_ends_a_connect() -> None:
    script = """
     0 socket(..., SOCK_STREAM, IPPROTO_TCP) = 3
    +0...0.100 connect(3, ..., ...) = -1 ECONNREFUSED (Connection refused)
    +0 > S 0:0(0) <...>
    +.1 < icmp unreachable port_unreachable [0:0(0)]
    """
    assert run_text(script).status == "pass"


def test_the_parser_knows_the_ways_to_write_a_moment() -> None:
    script = parse(
        "--tolerance_usecs=500\n// a comment\n.5 close(3) = 0\n+1.25 < . 1:1(0) ack 1 win 5\n* > . 1:1(0) /* none */\n"
        "+.1~+.2 > S 7:7(0) win 3 <mss 9,TS val 5 ecr 6>\n1~2 > . 1:1(0)\n+0...0.5 read(3, ..., 10) = 10\n`cleanup`"
    )
    assert script.options == {"tolerance_usecs": "500"}
    assert [e.when.kind for e in script.events] == [
        TimeKind.ABSOLUTE,
        TimeKind.RELATIVE,
        TimeKind.ANY,
        TimeKind.RELATIVE_RANGE,
        TimeKind.RANGE,
        TimeKind.RELATIVE,
    ]
    assert script.events[0].when.start == 500_000_000
    syn = script.events[3].action
    assert isinstance(syn, ScriptPacket)
    assert isinstance(syn.spec, TcpSpec)
    assert syn.spec.win == 3
    call = script.events[-1].action
    assert isinstance(call, Call)
    assert call.end == 500_000_000


@pytest.mark.parametrize("text", ["+0 < S 0:5(0)", "+0 foo(", "+0 > . 1:1(0) ack", "`never closed", "+0 %{ assert 1"])
def test_nonsense_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(ScriptError, match="line 2"):
        parse("\n" + text if text[0] != "`" else "+0 close(3) = 0\n" + text)


def test_damaged_scripts_never_raise() -> None:
    lines = (
        "+0 write(4, ..., 4000) = 4000",
        "+0 > P. 1:4001(4000) ack 1",
        "+.05 < . 1:1(0) ack 1 win 600 <sack 1201:2401,nop,nop>",
        "+0 poll([{fd=4, events=POLLIN|POLLOUT, revents=POLLOUT}], 1, 0) = 1",
        "+0 %{ assert tcpi_snd_cwnd == 10, tcpi_snd_cwnd }%",
    )
    tokens = re.split(r"(\W)", "--tolerance_usecs=900\n" + with_server(*lines))
    dice = Random(5)
    seen = set()
    for _ in range(400):
        damaged = list(tokens)
        for _ in range(dice.randrange(1, 4)):
            at = dice.randrange(len(damaged))
            damaged[at : at + 1] = dice.choice([[], [dice.choice(tokens)], [damaged[at], damaged[at]]])
        seen.add(run_text("".join(damaged)).status)
    assert seen == {"pass", "fail", "skip"}


def test_python_blocks_are_evaluated_without_running_python() -> None:
    names = {"tcpi_snd_cwnd": 10, "tcpi_ca_state": 1}
    assert check("assert tcpi_snd_cwnd == 10 and tcpi_ca_state == TCP_CA_Disorder, 'x'", names) is None
    assert check("\nassert 5 < tcpi_snd_cwnd <= 10\nassert (tcpi_ca_state & 2) == 2\n", names) is not None
    for text in ("print(1)", "assert open('x')", "assert tcpi_snd_cwnd.real", "assert [1 for x in y]"):
        with pytest.raises(Unsupported):
            check(text, names)


def test_the_command_line_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "good.pkt").write_text(SERVER)
    (tmp_path / "sub" / "bad.pkt").write_text(with_server("+0 > . 1:1(0) ack 7"))
    (tmp_path / "odd.pkt").write_text(with_server("+0 NAMED(1) = 0"))
    assert main([str(tmp_path), "-D", "NAMED=epoll_create"]) == 1
    out = capsys.readouterr().out
    assert "plain: 1 pass, 1 fail, 1 skip" in out
    assert "epoll_create" in out
    assert main([str(tmp_path / "good.pkt"), "--variant", "all"]) == 0
    results = run_all([tmp_path], VARIANTS)
    assert len(results) == 15
    assert "bad.pkt" in table(results, with_passes=False, with_traces=True)
