"""The SSH engine against a real client, over a socket pair: sessions, exit statuses, PTY, SFTP, refusals."""

import hashlib
import os
import pathlib
import pwd
import signal
import socket
import stat
import threading
from collections.abc import Callable, Iterator

import paramiko
import pytest

from tsnetpy.base.errors import StateError
from tsnetpy.ssh._paramiko import Connection
from tsnetpy.ssh.account import Account, own_account
from tsnetpy.ssh.hostkeys import HostKey, load_or_create
from tsnetpy.ssh.policy import Decision
from tsnetpy.ssh.process import Program

ME = pwd.getpwuid(os.getuid()).pw_name
Connect = Callable[..., paramiko.Transport]


@pytest.fixture(scope="module")
def keys() -> tuple[HostKey, ...]:
    return load_or_create(None)


@pytest.fixture
def account(tmp_path: pathlib.Path) -> Account:
    return Account(name=ME, uid=os.getuid(), home=str(tmp_path), shell="/bin/sh")


class Gate:
    """A policy that a test can change."""

    def __init__(self) -> None:
        self.decision = Decision(accept=True, local_user=ME)
        self.asked: list[str] = []

    def __call__(self, user: str) -> Decision:
        self.asked.append(user)
        return self.decision


@pytest.fixture
def gate() -> Gate:
    return Gate()


class Pair:
    """A client transport and the server connection that it speaks with."""

    def __init__(self, keys: tuple[HostKey, ...], account: Account, gate: Gate) -> None:
        ours, theirs = socket.socketpair()
        environ = {"PATH": os.environ["PATH"], "TS_AUTHKEY": "secret"}
        self.server = Connection(theirs, keys, account, gate, ("100.64.0.3", 5000), ("100.64.0.1", 22), environ)
        self._thread = threading.Thread(target=self.server.run)  # noqa: TID251 - plays the worker pool
        self._thread.start()
        self._socket = ours
        self.client = paramiko.Transport(ours)
        self.client.start_client(timeout=10)

    def login(self, user: str = ME) -> paramiko.Transport:
        self.client.auth_none(user)
        return self.client

    def banner(self) -> bytes:
        handler = self.client.auth_handler
        assert handler is not None
        banner = handler.banner or b""
        return banner if isinstance(banner, bytes) else banner.encode()

    def run(self, command: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        channel = self.client.open_session(timeout=10)
        channel.settimeout(20)
        channel.exec_command(command)
        if stdin:
            channel.sendall(stdin)
        channel.shutdown_write()
        out = channel.makefile("rb").read()
        err = channel.makefile_stderr("rb").read()
        return channel.recv_exit_status(), out, err

    def close(self) -> None:
        self.client.close()
        self.server.close()
        self._socket.close()
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture
def pair(keys: tuple[HostKey, ...], account: Account, gate: Gate) -> Iterator[Pair]:
    made = Pair(keys, account, gate)
    yield made
    made.close()


def test_exec_separates_streams_and_reports_the_status(pair: Pair) -> None:
    pair.login()
    assert pair.run("echo out; echo err >&2; exit 3") == (3, b"out\n", b"err\n")


@pytest.mark.parametrize(
    ("command", "status"),
    [("exit 0", 0), ("exit 255", 255), ("nosuchcommand", 127), ("/etc/passwd", 126), ("kill -9 $$", 137)],
)
def test_exit_status_is_the_shells(pair: Pair, command: str, status: int) -> None:
    pair.login()
    assert pair.run(command)[0] == status


def test_large_input_and_output_arrive_whole(pair: Pair) -> None:
    pair.login()
    data = bytes(range(256)) * 8192
    status, out, _ = pair.run("cat", data)
    assert (status, hashlib.sha256(out).digest()) == (0, hashlib.sha256(data).digest())


def test_environment_names_the_peer_and_holds_no_secret_of_the_server(pair: Pair, account: Account) -> None:
    pair.login()
    _, out, _ = pair.run("env; pwd")
    text = out.decode()
    assert "SSH_CONNECTION=100.64.0.3 5000 100.64.0.1 22" in text
    assert f"HOME={account.home}" in text
    assert text.endswith(f"{account.home}\n")
    assert "secret" not in text


def test_pty_has_a_terminal_of_the_asked_size_and_follows_it(pair: Pair) -> None:
    channel = pair.login().open_session()
    channel.settimeout(20)
    channel.get_pty("xterm-256color", 100, 30)
    channel.exec_command("tty; stty size; echo $TERM; read line; stty size; exit 4")
    seen = b""
    while b"xterm-256color" not in seen:
        seen += channel.recv(1000)
    channel.resize_pty(120, 40)
    channel.sendall(b"go\n")
    while chunk := channel.recv(1000):
        seen += chunk
    text = seen.decode()
    assert "/dev/pts/" in text
    assert "30 100" in text
    assert "40 120" in text
    assert channel.recv_exit_status() == 4


def test_an_interactive_shell_is_a_login_shell_with_job_control(pair: Pair) -> None:
    channel = pair.login().open_session()
    channel.settimeout(20)
    channel.get_pty()
    channel.invoke_shell()
    channel.sendall(b"echo name=$0; exit 7\n")
    seen = b""
    while chunk := channel.recv(1000):
        seen += chunk
    assert b"name=-sh" in seen
    assert b"can't access tty" not in seen
    assert channel.recv_exit_status() == 7


def test_several_sessions_share_a_connection(pair: Pair) -> None:
    client = pair.login()
    channels = [client.open_session() for _ in range(8)]
    for number, channel in enumerate(channels):
        channel.settimeout(20)
        channel.exec_command(f"exit {number}")
    assert [channel.recv_exit_status() for channel in channels] == list(range(8))


def test_sftp_puts_gets_lists_and_keeps_modes(pair: Pair, tmp_path: pathlib.Path) -> None:
    sftp = paramiko.SFTPClient.from_transport(pair.login())
    assert sftp is not None
    data = os.urandom(300_000)
    with sftp.open("up.bin", "wb") as file:
        file.write(data)
    assert (tmp_path / "up.bin").read_bytes() == data
    sftp.chmod("up.bin", 0o640)
    assert stat.S_IMODE(os.stat(tmp_path / "up.bin").st_mode) == 0o640
    with sftp.open("up.bin", "rb") as file:
        file.seek(1000)
        assert file.read(5000) == data[1000:6000]
    sftp.mkdir("d")
    sftp.rename("up.bin", "d/moved")
    sftp.symlink("moved", "d/link")
    assert sorted(sftp.listdir("d")) == ["link", "moved"]
    assert sftp.readlink("d/link") == "moved"
    assert sftp.normalize("d/../d") == str(tmp_path / "d")
    with pytest.raises(FileNotFoundError):
        sftp.stat("nothing")
    with pytest.raises(OSError, match="Failure"):
        sftp.rename("d/moved", "d/link")
    sftp.remove("d/link")
    sftp.remove("d/moved")
    sftp.rmdir("d")
    assert list(tmp_path.iterdir()) == []


def test_a_login_that_the_policy_refuses_ends_with_the_reason(pair: Pair, gate: Gate) -> None:
    gate.decision = Decision(accept=False, message="tailscale: no\n")
    with pytest.raises(paramiko.SSHException):
        pair.client.auth_none("bob")
    assert pair.banner() == b"tailscale: no\n"


def test_another_local_user_is_refused_and_says_why(pair: Pair, gate: Gate) -> None:
    gate.decision = Decision(accept=True, local_user="somebody-else")
    with pytest.raises(paramiko.SSHException):
        pair.client.auth_none("bob")
    assert b"cannot switch" in pair.banner()


def test_clients_that_insist_on_a_password_get_one(pair: Pair, gate: Gate) -> None:
    assert pair.client.auth_none(f"{ME}+password") == ["password"]
    assert gate.asked == [ME]


def test_password_and_key_are_accepted_as_none_is(keys: tuple[HostKey, ...], account: Account, gate: Gate) -> None:
    for how in ("password", "publickey"):
        pair = Pair(keys, account, gate)
        if how == "password":
            pair.client.auth_password(ME, "anything")
        else:
            pair.client.auth_publickey(ME, paramiko.ECDSAKey.generate())
        assert pair.run("exit 5")[0] == 5
        pair.close()


def test_revocation_ends_a_running_session(pair: Pair, gate: Gate) -> None:
    channel = pair.login().open_session()
    channel.settimeout(20)
    channel.exec_command("echo started; exec sleep 1000")
    assert channel.recv(100) == b"started\n"
    assert pair.server.still_permitted()
    gate.decision = Decision(accept=False)
    assert not pair.server.still_permitted()
    pair.server.revoke()
    assert b"Access revoked." in channel.makefile_stderr("rb").read()
    assert channel.recv(100) == b""


def test_a_lost_client_takes_its_programs_along(pair: Pair, tmp_path: pathlib.Path) -> None:
    channel = pair.login().open_session()
    channel.settimeout(20)
    channel.exec_command("echo $$; exec sleep 1000")
    pid = int(channel.recv(100))
    pair.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_unknown_channel_kinds_and_subsystems_are_refused(pair: Pair) -> None:
    client = pair.login()
    with pytest.raises(paramiko.ChannelException):
        client.open_channel("direct-tcpip", ("127.0.0.1", 80), ("127.0.0.1", 1))
    with pytest.raises(paramiko.SSHException):
        client.open_session().invoke_subsystem("nosuch")


def test_host_keys_are_kept_in_the_state_directory(tmp_path: pathlib.Path) -> None:
    first = load_or_create(tmp_path)
    assert [key.public_line for key in load_or_create(tmp_path)] == [key.public_line for key in first]
    path = tmp_path / "ssh" / "ssh_host_ed25519_key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().startswith("-----BEGIN PRIVATE KEY-----")
    assert "PRIVATE" not in repr(first)
    path.write_text("junk")
    with pytest.raises(StateError, match="damaged"):
        load_or_create(tmp_path)


def test_an_account_without_login_shell_gets_one() -> None:
    account = own_account({"SHELL": "/bin/sh"})
    assert account.uid == os.getuid()
    assert not account.shell.endswith(("nologin", "false"))


def test_a_program_that_ignores_the_hangup_is_ended_too(tmp_path: pathlib.Path) -> None:
    """As every session does under a server that was started with ``nohup``."""
    argv = ["/bin/sh", "sh", "-c", "trap '' HUP; echo ready; while :; do sleep 60; done"]
    program = Program(argv, {"PATH": os.environ["PATH"]}, str(tmp_path))
    assert program.stdout.readline() == b"ready\n"
    program.hang_up()
    assert program.ended
    assert program.wait() == 128 + signal.SIGKILL
    program.close()
