"""Our real command lines as processes, and a coordinator of our own on loopback for them."""

import contextlib
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import unittest.mock
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import anyio
import anyio.from_thread

from tsnetpy.cli.main import main as cli_main
from tsnetpy.coordinator import admin
from tsnetpy.serve.__main__ import main as serve_main

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMISE_S = 2.0
"""A program that is told to stop is gone within this time."""

Event = dict[str, Any]


class StopWatch:
    """Measures the seconds of one process, without those that it waited for a processor that others had."""

    def __init__(self, pid: int) -> None:
        self._stat = pathlib.Path(f"/proc/{pid}/schedstat")
        self._start = time.monotonic() - self._waited()

    def seconds(self) -> float:
        """Return the seconds since this was made."""
        return time.monotonic() - self._waited() - self._start

    def _waited(self) -> float:
        return int(self._stat.read_text().split()[1]) / 1e9 if self._stat.exists() else 0.0


class Program:
    """``python -m <argv>`` with its output in files."""

    def __init__(
        self,
        directory: pathlib.Path,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
        code: str = "",
    ) -> None:
        serial = len(list(directory.glob("*.out")))
        self.out_file, self.err_file = directory / f"{serial}.out", directory / f"{serial}.err"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TS")}
        run = ["-c", code] if code else ["-m"]
        with self.out_file.open("wb") as out, self.err_file.open("wb") as err:
            self.popen = subprocess.Popen(
                [sys.executable, *run, *argv],
                stdin=stdin,
                stdout=out,
                stderr=err,
                cwd=directory,
                env={**kept, "PYTHONPATH": str(ROOT), "HOME": str(directory), **(env or {})},
            )
        self.argv = argv

    @property
    def out(self) -> str:
        """Its standard output so far."""
        return self.out_file.read_text()

    @property
    def err(self) -> str:
        """Its standard error so far."""
        return self.err_file.read_text()

    @property
    def events(self) -> list[Event]:
        """The complete lines of ``--json`` so far."""
        return [json.loads(line) for line in self.out.splitlines(keepends=True) if line.endswith("\n")]

    def wait_event(self, name: str, timeout: float = 20.0) -> Event:
        """Wait for an event of that name."""
        found: list[Event] = []

        def look() -> bool:
            found[:] = [event for event in self.events if event["event"] == name]
            if not found and self.popen.poll() is not None:
                raise AssertionError(f"{self.argv} ended with {self.popen.returncode}:\n{self.out}\n{self.err}")
            return bool(found)

        eventually(look, timeout)
        return found[0]

    def wait_text(self, text: str, timeout: float = 20.0) -> None:
        """Wait for *text* on standard error."""
        eventually(lambda: text in self.err, timeout)

    def wait(self, timeout: float = 30.0) -> int:
        """Wait for the end; return the exit code."""
        return self.popen.wait(timeout)

    def signal(self, number: signal.Signals) -> tuple[int, float]:
        """Send a signal; return what :meth:`end` does."""
        self.popen.send_signal(number)
        return self.end()

    def end(self) -> tuple[int, float]:
        """Wait for the end; return the exit code and the seconds that the program took to it.

        The time in which it was ready to run and the machine ran others instead does not count: what is promised is
        about the program, and a machine with other work would break any promise.
        """
        watch = StopWatch(self.popen.pid)

        def over() -> bool:
            return os.waitid(os.P_PID, self.popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

        eventually(over, 30)
        took = watch.seconds()  # read before wait(): not yet reaped, it still has its counters
        return self.popen.wait(10), took

    def close(self) -> None:
        """End it, however it is."""
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait(10)


class Run:
    """What a command line did that ran in this process."""

    def __init__(self, program: str, argv: Sequence[str], env: Mapping[str, str]) -> None:
        main = {"tsnetpy": cli_main, "tsnetpy.serve": serve_main}[program]
        out, err = io.StringIO(), io.StringIO()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TS")}
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            unittest.mock.patch.dict(os.environ, {**kept, **env}, clear=True),
        ):
            try:
                self.exit_code = int(main(argv))
            except SystemExit as end:
                self.exit_code = int(str(end.code or 0))
        self.out, self.err = out.getvalue(), err.getvalue()

    @property
    def events(self) -> list[Event]:
        """The lines of ``--json``."""
        return [json.loads(line) for line in self.out.splitlines()]

    def event(self, name: str) -> Event:
        """Return the first event of that name."""
        return next(event for event in self.events if event["event"] == name)


class Box(Program):
    """``python -m tsnetpy coordinator serve`` and its administrator's door."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.state = directory / "box"
        argv = ["tsnetpy", "coordinator", "serve", "--listen", "127.0.0.1:0", "--state", str(self.state)]
        super().__init__(directory, [*argv, "--derp-port", "0", "--stun-port", "0"])
        eventually(lambda: "join with" in self.out)
        self.url = next(word.rstrip(",") for word in self.out.split() if word.startswith("http://"))

    def ask(self, command: str, **members: object) -> Any:
        """Carry out an administrator's command."""

        async def call() -> object:
            return await admin.call(self.state, command, **members)

        with anyio.from_thread.start_blocking_portal() as portal:  # async tests ask, too
            return portal.call(call)

    def key(self, *, reusable: bool = True, ephemeral: bool = False) -> str:
        """Return a new auth key."""
        return str(self.ask("keys.create", reusable=reusable, ephemeral=ephemeral))

    def names(self) -> list[str]:
        """Return the names of all nodes."""
        return [node["name"] for node in self.ask("nodes.list")["nodes"]]

    def env(self, key: str | None = None) -> dict[str, str]:
        """Return the environment that lets a program join."""
        return {"TS_CONTROL_URL": self.url, "TS_AUTHKEY": self.key() if key is None else key}


class Bench:
    """Starts programs in a directory of one test, and ends what the test left behind."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self._programs: list[Program] = []

    def start(
        self, *argv: str, env: Mapping[str, str] | None = None, stdin: int = subprocess.DEVNULL, code: str = ""
    ) -> Program:
        """Start ``python -m <argv>``."""
        program = Program(self.directory, argv, env, stdin, code)
        self._programs.append(program)
        return program

    def both(self, program: str, *argv: str, **env: str) -> tuple["Run", "Run"]:
        """Run a command line to its end twice, for people and with ``--json``, in this process (which is faster)."""
        return Run(program, argv, env), Run(program, (*argv, "--json"), env)

    def box(self) -> Box:
        """Start a coordinator of this test's own."""
        directory = self.directory / "coordinator"
        directory.mkdir()
        box = Box(directory)
        self._programs.append(box)
        return box

    def close(self) -> None:
        """End all."""
        for program in self._programs:
            program.close()


def check_failure(pair: tuple[Run, Run], code: int, kind: str, *words: str) -> None:
    """Both forms end with *code*, tell *words* and a hint, show no traceback, and say the same."""
    for program in pair:
        assert program.exit_code == code, (program.exit_code, program.out, program.err)
        assert "Traceback" not in program.err
    text, (*_, error) = pair[0].err, pair[1].events
    assert (error["event"], error["kind"], error["exit_code"]) == ("error", kind, code)
    assert error["hint"]
    assert f"error: {error['message'].split(':')[0]}" in text
    assert "\nhint: " in text
    for word in words:
        assert word in error["message"] + error["hint"], error
        assert word in text


def eventually(check: Callable[[], bool], timeout: float = 20.0) -> None:
    """Call *check* until it is true."""
    deadline = time.monotonic() + timeout
    while not check():
        if time.monotonic() > deadline:
            raise AssertionError(f"not true within {timeout} s")
        time.sleep(0.01)


@contextlib.contextmanager
def a_bench(directory: pathlib.Path) -> Iterator[Bench]:
    """Yield a bench and clear it afterwards."""
    bench = Bench(directory)
    try:
        yield bench
    finally:
        bench.close()
