"""Ctrl-C and SIGTERM end every program within 2 s, whatever it was doing, and an ephemeral node is gone afterwards."""

import os
import signal
import socket
import subprocess
import time

import pytest

from tests.loopback.kit import PROMISE_S, Bench, Box, eventually

pytestmark = pytest.mark.loopback

SIGNALS = [signal.SIGINT, signal.SIGTERM]
UP = ("tsnetpy", "up", "--json")


def names(box: Box, hostname: str) -> list[str]:
    return [name for name in box.names() if name.startswith(hostname)]


RUNNING = [UP, ("tsnetpy.serve", "3000", "--json"), ("tsnetpy", "ssh-server", "--json")]


def test_while_running(bench: Bench, box: Box) -> None:
    programs = [
        (bench.start(*argv, "--hostname", "running", env=box.env()), number) for argv in RUNNING for number in SIGNALS
    ]
    for program, _ in programs:
        program.wait_event("running")
    left = len(names(box, "running"))
    assert left == len(programs)
    for program, number in programs:
        code, seconds = program.signal(number)
        assert (code, program.err) == (130, ""), program.argv
        assert seconds < PROMISE_S, program.argv
        left -= 1
        assert len(names(box, "running")) == left, program.argv


@pytest.mark.parametrize("number", SIGNALS)
def test_with_a_state_directory_the_node_stays(bench: Bench, box: Box, number: signal.Signals) -> None:
    state = str(bench.directory / "state")
    program = bench.start(*UP, "--hostname", f"lasting-{number}", "--state", state, env=box.env())
    program.wait_event("running")
    code, seconds = program.signal(number)
    assert code == 130
    assert seconds < PROMISE_S
    assert names(box, f"lasting-{number}")


def test_trio_does_the_same(bench: Bench, box: Box) -> None:
    program = bench.start(*UP, "--hostname", "trio", env={**box.env(), "TSNETPY_BACKEND": "trio"})
    program.wait_event("running")
    code, seconds = program.signal(signal.SIGINT)
    assert (code, program.err) == (130, "")
    assert seconds < PROMISE_S
    assert not names(box, "trio")


def test_while_joining(bench: Bench, box: Box) -> None:
    """Wherever the login stands, no node is left that nobody runs."""
    for moment in (0.0, 0.03, 0.06, 0.1, 0.2):
        program = bench.start(*UP, "--hostname", "joining", env=box.env())
        program.wait_event("joining")
        time.sleep(moment)
        code, seconds = program.signal(signal.SIGINT)
        assert (code, program.err) == (130, "")
        assert seconds < PROMISE_S
        assert not names(box, "joining"), moment


@pytest.mark.parametrize("number", SIGNALS)
def test_while_a_login_is_awaited(bench: Bench, box: Box, number: signal.Signals) -> None:
    program = bench.start(*UP, env=box.env(""))
    program.wait_event("auth-url")
    code, seconds = program.signal(number)
    assert code == 130
    assert seconds < PROMISE_S


@pytest.mark.parametrize("server", ["refuses", "is silent"])
def test_while_the_server_cannot_be_reached(bench: Bench, server: str) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        if server == "is silent":
            sock.listen()
        program = bench.start(
            *UP, env={"TS_CONTROL_URL": f"http://127.0.0.1:{sock.getsockname()[1]}", "TS_AUTHKEY": "k"}
        )
        program.wait_event("joining")
        if server == "refuses":
            program.wait_text("Connection refused; trying again")  # told at once, and not only when the time is up
        else:
            time.sleep(0.3)
        code, seconds = program.signal(signal.SIGINT)
    assert code == 130
    assert seconds < PROMISE_S


BLOCKED_RESOLVER = """
import socket, sys, time
def getaddrinfo(*args, **more):
    print("asked", file=sys.stderr, flush=True)
    time.sleep(60)
socket.getaddrinfo = getaddrinfo
from tsnetpy.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_while_the_name_server_does_not_answer(bench: Bench, backend: str) -> None:
    env = {"TS_CONTROL_URL": "https://control.test", "TS_AUTHKEY": "k", "TSNETPY_BACKEND": backend}
    program = bench.start("up", "--json", env=env, code=BLOCKED_RESOLVER)
    eventually(lambda: "asked" in program.err)
    code, seconds = program.signal(signal.SIGINT)
    assert code == 130
    assert seconds < PROMISE_S


@pytest.mark.parametrize("how", ["hangs", "is gone"])
def test_while_the_server_is_down(bench: Bench, how: str) -> None:
    box = bench.box()
    program = bench.start(*UP, env=box.env())
    program.wait_event("running")
    box.popen.send_signal(signal.SIGSTOP if how == "hangs" else signal.SIGKILL)
    try:
        code, seconds = program.signal(signal.SIGINT)
    finally:
        box.popen.send_signal(signal.SIGCONT)
    assert code == 130
    assert seconds < PROMISE_S


def test_a_second_signal_ends_it_at_once(bench: Bench) -> None:
    box = bench.box()
    program = bench.start(*UP, env=box.env())
    program.wait_event("running")
    box.popen.send_signal(signal.SIGSTOP)
    try:
        program.popen.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert program.popen.poll() is None, "it tries to log out"
        code, seconds = program.signal(signal.SIGINT)
    finally:
        box.popen.send_signal(signal.SIGCONT)
    assert code == 130
    assert seconds < 0.5


def test_nc_with_an_open_standard_input(bench: Bench, box: Box) -> None:
    """Nobody types: a thread waits in read(2), and must keep neither Ctrl-C nor the end of the connection waiting."""
    with socket.create_server(("127.0.0.1", 0)) as backend:
        port = backend.getsockname()[1]
        server = bench.start("tsnetpy.serve", "--tcp", str(port), "--hostname", "raw", "--json", env=box.env())
        name = server.wait_event("running")["name"]
        reader, writer = os.pipe()
        try:
            client = bench.start("tsnetpy", "nc", name, str(port), env=box.env(), stdin=reader)
            accepted = backend.accept()[0]
            with accepted:
                accepted.sendall(b"hello")
                eventually(lambda: client.out == "hello")
                code, seconds = client.signal(signal.SIGINT)
            assert code == 130
            assert seconds < PROMISE_S
            client = bench.start("tsnetpy", "nc", name, str(port), env=box.env(), stdin=reader)
            with backend.accept()[0] as accepted:
                accepted.sendall(b"bye")
            code, seconds = client.end()
            assert code == 0
            assert seconds < PROMISE_S
            assert client.out == "bye"
        finally:
            os.close(reader)
            os.close(writer)


def test_the_coordinator_itself(bench: Bench) -> None:
    box = bench.box()
    program = bench.start(*UP, env=box.env())
    program.wait_event("running")
    code, seconds = box.signal(signal.SIGINT)
    assert (code, box.err) == (0, "")
    assert seconds < PROMISE_S


def test_what_was_sent_arrives_although_the_sender_is_interrupted(bench: Bench, box: Box) -> None:
    """Ctrl-C closes connections in order: the peer reads to the end instead of waiting for a node that is gone."""
    with socket.create_server(("127.0.0.1", 0)) as backend:
        port = backend.getsockname()[1]
        server = bench.start("tsnetpy.serve", "--tcp", str(port), "--hostname", "sink", "--json", env=box.env())
        name = server.wait_event("running")["name"]
        client = bench.start("tsnetpy", "nc", name, str(port), env=box.env(), stdin=subprocess.PIPE)
        with backend.accept()[0] as accepted:
            assert client.popen.stdin is not None
            with client.popen.stdin as typed:
                typed.write(b"x" * 50_000)
                typed.flush()
                accepted.settimeout(30)
                got = len(accepted.recv(1))
                client.popen.send_signal(signal.SIGINT)
                while data := accepted.recv(65536):
                    got += len(data)
                assert client.wait() == 130
            assert got == 50_000
