"""The SSH engine: paramiko, and every thread of this package.

One ``Transport`` is one thread, in which paramiko calls the methods of :class:`_Server`; each session has threads for
its streams. Nothing here touches the event loop: decisions come from an immutable snapshot through :class:`Gate`, and
the connection's bytes go through a socket pair.
"""

import contextlib
import io
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import IO, ClassVar, Final

import paramiko
from paramiko.common import (
    AUTH_FAILED,
    AUTH_PARTIALLY_SUCCESSFUL,
    AUTH_SUCCESSFUL,
    MSG_CHANNEL_REQUEST,
    OPEN_FAILED_RESOURCE_SHORTAGE,
    OPEN_FAILED_UNKNOWN_CHANNEL_TYPE,
    OPEN_SUCCEEDED,
)

from .account import Account, session_environment
from .hostkeys import HostKey
from .policy import PASSWORD_SUFFIX, Decision
from .process import Program, WindowSize, open_terminal, shell_argv
from .sftp import FileSystem, Subsystem

MAX_SESSIONS: Final = 32
"""Channels per connection; more are refused ("resource shortage")."""
_CHUNK: Final = 32 * 1024
_LOGIN_TIMEOUT_NS: Final = 60_000_000_000

_log = logging.getLogger("tsnetpy.ssh")

Gate = Callable[[str], Decision]
"""Asks the policy: requested user name to decision. Called in the engine's thread; reads immutable data only."""


class Connection:
    """One SSH connection over a connected socket."""

    def __init__(
        self,
        sock: socket.socket,
        host_keys: tuple[HostKey, ...],
        account: Account,
        gate: Gate,
        peer: tuple[str, int],
        local: tuple[str, int],
        environ: dict[str, str],
    ) -> None:
        self._socket = sock
        self._transport = _Transport(sock)
        # The peers know Tailscale's name in the version line, and some of their tools look for it.
        self._transport.local_version = "SSH-2.0-Tailscale"
        self._transport.daemon = True
        for key in host_keys:
            self._transport.add_server_key(_load(key))
        self._transport.set_subsystem_handler("sftp", Subsystem, FileSystem, account.directory)
        self._server = _Server(self._transport, account, gate, peer, local, environ)

    def run(self) -> None:
        """Serve until the connection ends, by itself or by a time limit. Blocks."""
        login_by_ns = time.monotonic_ns() + _LOGIN_TIMEOUT_NS
        end_by_ns = 0
        try:
            self._transport.start_server(event=threading.Event(), server=self._server)
            while self._transport.is_alive():
                self._server.hold(self._transport.accept(0.2))
                now = time.monotonic_ns()
                decision = self._server.decision
                if decision is None:
                    if now > login_by_ns:
                        break
                elif decision.session_duration_ns:
                    end_by_ns = end_by_ns or now + decision.session_duration_ns
                    if now > end_by_ns:
                        seconds = decision.session_duration_ns / 1e9
                        self._server.tell(f"\r\n\r\nSession timeout of {seconds:g}s elapsed.\r\n\r\n\r\n")
                        break
        finally:
            self.close()

    def close(self) -> None:
        """End the connection and every program of its sessions. Safe to repeat and from any thread."""
        self._transport.close()
        self._server.hang_up()
        self._socket.close()

    def still_permitted(self) -> bool:
        """Ask the policy again about the user who is logged in (true before the login)."""
        return self._server.still_permitted()

    def revoke(self) -> None:
        """Tell every session that access is gone, and end the connection."""
        self._server.tell("\r\n\r\nAccess revoked.\r\n\r\n\r\n")
        self.close()


def _answer_then_start(channel: paramiko.Channel, message: paramiko.Message) -> None:
    """Handle a channel request, and start its program only when the answer is on its way.

    A quick program could otherwise close the channel before the client hears that its request was granted.
    """
    paramiko.Channel._handle_request(channel, message)  # type: ignore[attr-defined]  # untyped hook of the engine
    server = channel.get_transport().server_object
    if isinstance(server, _Server):
        server.start_granted(channel)


class _Transport(paramiko.Transport):
    _channel_handler_table: ClassVar[dict[int, Callable[[paramiko.Channel, paramiko.Message], None]]] = {
        **paramiko.Transport._channel_handler_table,  # type: ignore[attr-defined]  # untyped hook of the engine
        MSG_CHANNEL_REQUEST: _answer_then_start,
    }


class _Session:
    """What a client asked for on one channel before its program starts."""

    __slots__ = ("granted", "program", "term", "wants_pty", "window")

    def __init__(self) -> None:
        self.wants_pty = False
        self.term = ""
        self.window = WindowSize()
        self.granted = False
        self.program: Program | None = None


class _Server(paramiko.ServerInterface):
    def __init__(
        self,
        transport: paramiko.Transport,
        account: Account,
        gate: Gate,
        peer: tuple[str, int],
        local: tuple[str, int],
        environ: dict[str, str],
    ) -> None:
        self._transport = transport
        self._account = account
        self._gate = gate
        self._peer = peer
        self._local = local
        self._environ = environ
        self._lock = threading.Lock()
        self._sessions: dict[int, _Session] = {}
        self._channels: dict[int, paramiko.Channel] = {}
        self._user = ""
        self.decision: Decision | None = None

    # ---- login

    def get_allowed_auths(self, username: str) -> str:
        return "password" if username.endswith(PASSWORD_SUFFIX) else "password,publickey"

    def check_auth_none(self, username: str) -> int:
        if username.endswith(PASSWORD_SUFFIX):
            if self._ask(username.removesuffix(PASSWORD_SUFFIX)) is None:
                return AUTH_FAILED
            return AUTH_PARTIALLY_SUCCESSFUL
        return self._admit(username)

    def check_auth_password(self, username: str, password: str) -> int:
        # The tailnet's policy has decided who this is; the password is never looked at.
        return self._admit(username.removesuffix(PASSWORD_SUFFIX))

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return self._admit(username.removesuffix(PASSWORD_SUFFIX))

    def _admit(self, user: str) -> int:
        decision = self._ask(user)
        if decision is None:
            return AUTH_FAILED
        if decision.message and self.decision is None:
            self._banner(decision.message)
        self._user = user
        self.decision = decision
        return AUTH_SUCCESSFUL

    def _ask(self, user: str) -> Decision | None:
        """Return the decision that admits *user*, or tell the client why not and close."""
        decision = self._gate(user)
        reason = decision.message
        if decision.accept:
            if self._account.may_become(decision.local_user):
                return decision
            reason = (
                f'tailscale: this server runs as "{self._account.name}" and cannot switch to user '
                f'"{decision.local_user}"\n'
            )
        _log.info("SSH login of %s as %r refused", self._peer[0], user)
        self._banner(reason)
        # A real server closes here instead of offering further methods; the client shows the banner and ends.
        self._transport.close()
        return None

    def _banner(self, text: str) -> None:
        # paramiko offers a banner only before the user name is known; the message itself is RFC 4252 section 5.4.
        message = paramiko.Message()
        message.add_byte(bytes([53]))
        message.add_string(text)
        message.add_string("")
        self._transport._send_message(message)  # type: ignore[attr-defined]  # untyped and the only way in

    def still_permitted(self) -> bool:
        before = self.decision
        if before is None:
            return True
        now = self._gate(self._user)
        return now.accept and now.local_user == before.local_user

    # ---- channels

    def hold(self, accepted: paramiko.Channel | None) -> None:
        """Keep a new channel alive (paramiko closes one that nobody refers to) and forget those that are closed."""
        with self._lock:
            if accepted is not None:
                self._channels[accepted.get_id()] = accepted
            for number in [number for number, channel in self._channels.items() if channel.closed]:
                session = self._sessions.get(number)
                if session is None or session.program is None or session.program.ended:
                    del self._channels[number]
                    self._sessions.pop(number, None)

    def check_channel_request(self, kind: str, chanid: int) -> int:
        if kind != "session":
            return OPEN_FAILED_UNKNOWN_CHANNEL_TYPE
        with self._lock:
            if len(self._sessions) >= MAX_SESSIONS:
                return OPEN_FAILED_RESOURCE_SHORTAGE
            self._sessions[chanid] = _Session()
        return OPEN_SUCCEEDED

    def check_channel_pty_request(
        self,
        channel: paramiko.Channel,
        term: bytes,
        width: int,
        height: int,
        pixelwidth: int,
        pixelheight: int,
        modes: bytes,
    ) -> bool:
        session = self._session(channel)
        session.wants_pty = True
        session.term = term.decode("ascii", "replace")
        session.window = WindowSize(columns=width, rows=height, width=pixelwidth, height=pixelheight)
        return True

    def check_channel_window_change_request(
        self, channel: paramiko.Channel, width: int, height: int, pixelwidth: int, pixelheight: int
    ) -> bool:
        session = self._session(channel)
        session.window = WindowSize(columns=width, rows=height, width=pixelwidth, height=pixelheight)
        if session.program is not None:
            session.program.resize(session.window)
        return True

    def check_channel_shell_request(self, channel: paramiko.Channel) -> bool:
        return self._start(channel, None)

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        return self._start(channel, os.fsdecode(command))

    def _session(self, channel: paramiko.Channel) -> _Session:
        with self._lock:
            return self._sessions.setdefault(channel.get_id(), _Session())

    def _start(self, channel: paramiko.Channel, command: str | None) -> bool:
        session = self._session(channel)
        if session.program is not None:
            return False
        argv = shell_argv(self._account, command)
        terminal: tuple[int, int] | None = None
        tty = ""
        try:
            if session.wants_pty:
                master, slave, tty = open_terminal()
                terminal = (master, slave)
            env = session_environment(
                self._account, self._environ, term=session.term, peer=self._peer, local=self._local, tty=tty
            )
            session.program = Program(argv, env, self._account.directory, session.window, terminal)
        except OSError as error:
            _log.warning("cannot start %s: %s", argv[0], error)
            return False
        session.granted = True
        return True

    def start_granted(self, channel: paramiko.Channel) -> None:
        """Start the streams of a session whose program was just granted."""
        session = self._session(channel)
        if session.granted:
            session.granted = False
            _thread("session", lambda: self._run(channel, session))

    def _run(self, channel: paramiko.Channel, session: _Session) -> None:
        program = session.program
        assert program is not None
        try:
            if program.master is not None:
                _thread("stdin", lambda: _type_into(channel, program))
                _copy_terminal(program, channel)
            else:
                _thread("stdin", lambda: _feed(channel, program))
                errors = _thread("stderr", lambda: _drain(program.stderr, channel.sendall_stderr))
                _drain(program.stdout, channel.sendall)
                errors.join()
            if channel.closed:
                program.hang_up()
            status = program.wait()
            with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                # Output, then status, then EOF, then close: OpenSSH and WinSCP are picky about the order.
                channel.send_exit_status(status)
                channel.shutdown_write()
        finally:
            with contextlib.suppress(OSError, EOFError):  # the client may be gone already
                channel.close()
            program.close()

    def tell(self, text: str) -> None:
        with self._lock:
            channels = list(self._channels.values())
        for channel in channels:
            with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                channel.settimeout(1.0)  # a client that reads nothing must not delay the end
                channel.sendall_stderr(text.encode())

    def hang_up(self) -> None:
        with self._lock:
            programs = [session.program for session in self._sessions.values() if session.program is not None]
        for program in programs:
            program.hang_up()


def _load(key: HostKey) -> paramiko.PKey:
    kinds: dict[str, type[paramiko.PKey]] = {
        "ed25519": paramiko.Ed25519Key,
        "ecdsa": paramiko.ECDSAKey,
        "rsa": paramiko.RSAKey,
    }
    return kinds[key.kind].from_private_key(io.StringIO(key.private_pem))


def _thread(name: str, target: Callable[[], None]) -> threading.Thread:  # noqa: TID251 - this module is the door
    thread = threading.Thread(target=target, name=f"tsnetpy-ssh-{name}", daemon=True)  # noqa: TID251 - as above
    thread.start()
    return thread


def _feed(channel: paramiko.Channel, program: Program) -> None:
    """Copy what the client sends into the program's standard input; hang up if the client is gone."""
    pipe = program.stdin
    with contextlib.suppress(OSError, ValueError):  # ValueError: the pipe was closed at the program's end
        while data := channel.recv(_CHUNK):
            pipe.write(data)
            pipe.flush()
    with contextlib.suppress(OSError, ValueError):
        pipe.close()
    if channel.closed:
        program.hang_up()


def _type_into(channel: paramiko.Channel, program: Program) -> None:
    with contextlib.suppress(OSError, AssertionError):
        while data := channel.recv(_CHUNK):
            program.write_terminal(data)
    if channel.closed:
        program.hang_up()


def _drain(pipe: IO[bytes], send: Callable[[bytes], object]) -> None:
    """Copy a program's output to the client until every holder of the pipe has closed it."""
    with contextlib.suppress(OSError, EOFError, ValueError, paramiko.SSHException):
        descriptor = pipe.fileno()
        while data := os.read(descriptor, _CHUNK):
            send(data)


def _copy_terminal(program: Program, channel: paramiko.Channel) -> None:
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
        while data := program.read_terminal():
            channel.sendall(data)
