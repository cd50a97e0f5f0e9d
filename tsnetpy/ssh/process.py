"""One program of a session: started with pipes or under a PTY, ended with its whole process group.

Everything here blocks and runs in the SSH engine's threads.
"""

import contextlib
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from .account import Account

# A new session's leader takes the first terminal that it opens as its controlling one. Doing that in a fresh
# interpreter instead of between fork and exec keeps this safe in a process that has threads.
_TAKE_TERMINAL = "import os,sys\nos.close(os.open(os.ttyname(0),os.O_RDWR))\nos.execv(sys.argv[1],sys.argv[2:])\n"
_HANGUP_GRACE_S = 1.0
"""The server is to be gone two seconds after Ctrl-C, and under ``nohup`` its sessions ignore SIGHUP as it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSize:
    """Size of a terminal: characters and pixels (RFC 4254 section 6.2)."""

    columns: int = 80
    rows: int = 24
    width: int = 0
    height: int = 0

    def packed(self) -> bytes:
        """Return the kernel's ``struct winsize``."""
        return struct.pack("HHHH", *(max(0, min(v, 65535)) for v in (self.rows, self.columns, self.width, self.height)))


def shell_argv(account: Account, command: str | None) -> list[str]:
    """Return program and arguments (``argv[0]`` second): a login shell, or the shell running *command*."""
    base = account.shell.rpartition("/")[2]
    if command is None:
        return [account.shell, f"-{base}"]
    return [account.shell, base, "-c", command]


class Program:
    """A running program; :meth:`wait` gives the exit status as SSH reports it."""

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        directory: str,
        window: WindowSize | None = None,
        terminal: tuple[int, int] | None = None,
    ) -> None:
        """Start ``argv[0]`` with ``argv[1:]`` as its argument vector.

        Args:
            argv: path of the program, then ``argv[0]``, ``argv[1]``, ...
            env: its whole environment.
            directory: where it starts.
            window: size of its terminal.
            terminal: master and slave of :func:`open_terminal`; without it three pipes are used.

        Raises:
            OSError: it cannot be started.
        """
        self.master: int | None = None
        if terminal is None:
            self._popen = subprocess.Popen(
                argv[1:],
                executable=argv[0],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(env),
                cwd=directory,
                start_new_session=True,
            )
            return
        master, slave = terminal
        try:
            if window is not None:
                fcntl.ioctl(slave, termios.TIOCSWINSZ, window.packed())
            self._popen = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _TAKE_TERMINAL, *argv],
                stdin=slave,
                stdout=slave,
                stderr=slave,
                env=dict(env),
                cwd=directory,
                start_new_session=True,
            )
        except BaseException:
            os.close(master)
            raise
        finally:
            os.close(slave)
        self.master = master

    @property
    def stdin(self) -> IO[bytes]:
        """The pipe to its standard input (never with a PTY)."""
        assert self._popen.stdin is not None
        return self._popen.stdin

    @property
    def stdout(self) -> IO[bytes]:
        """The pipe from its standard output."""
        assert self._popen.stdout is not None
        return self._popen.stdout

    @property
    def stderr(self) -> IO[bytes]:
        """The pipe from its standard error."""
        assert self._popen.stderr is not None
        return self._popen.stderr

    def resize(self, window: WindowSize) -> None:
        """Tell the terminal its new size; the kernel sends ``SIGWINCH``."""
        if self.master is not None:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self.master, termios.TIOCSWINSZ, window.packed())

    def read_terminal(self) -> bytes:
        """Return what the PTY has next; empty when the program is gone and its output read.

        After the shell's exit only what already stands in the terminal's buffer counts: a background child that still
        holds the terminal must not keep the session open.
        """
        assert self.master is not None
        while True:
            ended = self._popen.poll() is not None
            ready, _, _ = select.select([self.master], [], [], 0.0 if ended else 0.1)
            if ready:
                try:
                    return os.read(self.master, 65536)
                except OSError:  # EIO: every holder of the slave has closed it
                    return b""
            if ended:
                return b""

    def write_terminal(self, data: bytes) -> None:
        """Type *data* into the PTY.

        Raises:
            OSError: the terminal is gone.
        """
        assert self.master is not None
        while data:
            data = data[os.write(self.master, data) :]

    @property
    def ended(self) -> bool:
        """True once the program itself is gone."""
        return self._popen.poll() is not None

    def wait(self) -> int:
        """Wait for its end; return the status, ``128 + n`` for death by signal n."""
        status = self._popen.wait()
        return status if status >= 0 else 128 - status

    def hang_up(self) -> None:
        """End the process group: ``SIGHUP``, and ``SIGKILL`` for what is left after a grace time. Safe to repeat."""
        if self._popen.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, signal.SIGHUP)
            try:
                self._popen.wait(_HANGUP_GRACE_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._popen.pid, signal.SIGKILL)
                self._popen.wait()

    def close(self) -> None:
        """Close this side's descriptors."""
        if self.master is not None:
            os.close(self.master)
            self.master = None
            return
        for pipe in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def open_terminal() -> tuple[int, int, str]:
    """Return master, slave and device name of a new PTY.

    Raises:
        OSError: the system has none left.
    """
    master, slave = os.openpty()
    return master, slave, os.ttyname(slave)
