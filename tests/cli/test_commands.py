"""Every command as a user runs it: real processes on loopback, on a tailnet of the embedded coordinator."""

import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.loopback

COORDINATOR = ["tsnetpy", "coordinator"]


class Box:
    """A coordinator's process and the environment that makes commands join it."""

    def __init__(self, state: pathlib.Path) -> None:
        argv = [*COORDINATOR, "serve", "--listen", "127.0.0.1:0", "--state", str(state)]
        self.process = self.start(*argv, "--derp-port", "0", "--stun-port", "0", env={})
        url = re.search(r"http://127\.0\.0\.1:\d+", until(self.process, "coordinator at"))
        assert url is not None
        key = self.start(*COORDINATOR, "keys", "create", "--reusable", "--state", str(state), env={})
        self.env = {"TS_CONTROL_URL": url[0], "TS_AUTHKEY": key.communicate(timeout=30)[0].split()[-1]}

    def start(self, *argv: str, env: dict[str, str] | None = None) -> "subprocess.Popen[str]":
        """Start ``python -m *argv``."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TS_")}
        return subprocess.Popen(
            [sys.executable, "-m", *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean | (self.env if env is None else env),
        )

    def run(self, *argv: str, stdin: str = "") -> tuple[int, str, str]:
        """Run ``python -m tsnetpy *argv`` to its end."""
        process = self.start("tsnetpy", *argv)
        out, err = process.communicate(stdin, timeout=60)
        return process.returncode, out, err


def until(process: "subprocess.Popen[str]", text: str) -> str:
    """Return the standard output of *process* up to the line with *text*."""
    assert process.stdout is not None
    seen = ""
    while text not in seen:
        line = process.stdout.readline()
        assert line, seen
        seen += line
    return seen


def end(process: "subprocess.Popen[str]") -> int:
    """Send SIGTERM; return the exit status."""
    process.terminate()
    process.communicate(timeout=10)
    return process.returncode


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    made = Box(tmp_path_factory.mktemp("coordinator"))
    yield made
    assert end(made.process) == 0


@pytest.fixture(scope="module")
def peer(box: Box) -> Iterator[str]:
    """A node called ``peer`` that serves a word on port 80."""
    process = box.start("tsnetpy.serve", "--hostname", "peer", "--json", "tests.cli.greeting:app")
    until(process, '"running"')
    yield "peer"
    assert end(process) == 130


def test_status_lists_this_node_and_its_peers(box: Box, peer: str) -> None:
    code, out, _ = box.run("status", "--hostname", "looker")
    assert code == 0
    assert re.search(r"^100\.64\.0\.\d+ +looker(-\d)?\.tailnet\.internal +\(this node\)", out)
    assert f"{peer}.tailnet.internal" in out
    code, out, _ = box.run("status", "--json")
    status = json.loads(out.splitlines()[-1])
    assert (status["event"], status["backend_state"], status["accel"]) == ("status", "Running", "pure")
    assert [p["name"] for p in status["peers"]] == ["peer.tailnet.internal"]


def test_ip_prints_addresses_of_both_families_and_of_peers(box: Box, peer: str) -> None:
    _, out, _ = box.run("ip")
    assert re.fullmatch(r"100\.64\.0\.\d+\nfd7a:115c:a1e0::[0-9a-f]+\n", out)
    _, out, _ = box.run("ip", "-6", peer)
    assert re.fullmatch(r"fd7a:115c:a1e0::[0-9a-f]+\n", out)
    code, _, err = box.run("ip", "nobody")
    assert code == 2
    assert "no peer is called 'nobody'" in err
    assert "hint:" in err


def test_ping_becomes_direct_and_stops(box: Box, peer: str) -> None:
    code, out, _ = box.run("ping", peer, "--interval", "0.05")
    assert code == 0
    assert re.search(
        r"pong from peer\.tailnet\.internal \(100\.64\.0\.\d+\) via (127\.0\.0\.1|\[::1\]):\d+ in [0-9.]+ ms", out
    )
    code, out, _ = box.run("ping", "--icmp", "-c", "1", peer)
    assert code == 0
    assert "via the tunnel" in out


def test_ping_of_an_unknown_name_fails_at_once(box: Box) -> None:
    code, _, err = box.run("ping", "nobody")
    assert code == 6
    assert "nobody" in err


def test_nc_carries_both_directions(box: Box, peer: str) -> None:
    request = "GET / HTTP/1.1\r\nHost: peer\r\nConnection: close\r\n\r\n"
    code, out, _ = box.run("nc", peer, "80", stdin=request)
    assert code == 0
    assert out.endswith("greetings\n")
    code, _, err = box.run("nc", peer, "81")
    assert code == 6
    assert "refused" in err


def test_up_stays_until_it_is_told_to_go(box: Box) -> None:
    process = box.start("tsnetpy", "up", "--hostname", "stays", "--json")
    line = until(process, '"running"').splitlines()[-1]
    assert json.loads(line)["name"] == "stays.tailnet.internal"
    assert end(process) == 130


def test_ssh_server_says_where_it_is(box: Box, tmp_path: pathlib.Path) -> None:
    pytest.importorskip("paramiko")
    process = box.start("tsnetpy", "ssh-server", "--hostname", "box", "--state", str(tmp_path), "--json")
    until(process, '"running"')
    assert (tmp_path / "ssh" / "ssh_host_ed25519_key").exists()
    assert end(process) == 130


def test_help_names_every_command_and_the_exit_codes(box: Box) -> None:
    code, out, _ = box.run("--help")
    assert code == 0
    for word in ("up", "status", "ip", "ping", "nc", "ssh-server", "coordinator", "exit codes"):
        assert word in out


def test_flags_that_make_no_sense_are_refused_with_the_reason(box: Box) -> None:
    code, _, err = box.run("status", "--tag", "web")
    assert code == 2
    assert "tag:web" in err
    code, _, err = box.run("status", "--login-server", "ftp://x")
    assert code == 2
    assert "https://" in err
