"""OpenSSH through ``tailscale nc`` into our SSH server, which runs as a plain user without capabilities."""

import hashlib
import os
import pathlib
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.interop.lab import CONTROL_URL, Lab, Official, Process, eventually


@dataclass
class Box:
    """The server's process and the client that dials it."""

    process: Process
    client: Official
    options: list[str]

    def run(self, *command: str, tty: bool = False, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        """Run ``ssh`` with a remote command."""
        argv = ["ssh", *self.options, *(["-tt"] if tty else []), "nobody@box", *command]
        lab = self.client.lab
        argv = ["ip", "netns", "exec", lab.ns("a"), *argv]
        return subprocess.run(argv, input=stdin, capture_output=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def box(lab: Lab) -> Iterator[Box]:
    client = lab.official("sshoff", "a")
    state = lab.plain_dir("ssh-state")
    process = lab.start_plain(
        "sshbox",
        "c",
        ["-m", "tsnetpy", "ssh-server", "--hostname", "box", "--state", str(state), "--json"],
        {"TS_AUTHKEY": lab.key, "TS_CONTROL_URL": CONTROL_URL, "SHELL": "/bin/bash", "HOME": str(state)},
    )
    process.wait_for('"event": "running"')
    eventually(lambda: client.knows("box"))
    proxy = shlex.join(client.argv("nc", "%h", "%p"))
    options = ["-o", f"ProxyCommand={proxy}", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    yield Box(process, client, [*options, "-o", "LogLevel=ERROR"])
    assert process.stop() in (0, 130)


def test_command_output_and_exit_code(box: Box) -> None:
    done = box.run("id -u; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"65534\n", b"err\n")


def test_pty_and_terminal(box: Box) -> None:
    done = box.run("tty; echo $TERM; exit 6", tty=True)
    assert done.returncode == 6
    assert b"/dev/pts/" in done.stdout


def test_input_of_10_mb(box: Box) -> None:
    data = os.urandom(1_000_000) * 10
    done = box.run("sha256sum", stdin=data)
    assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_sftp_put_and_get(box: Box, tmp_path: pathlib.Path) -> None:
    data = os.urandom(5_000_000)
    (tmp_path / "up").write_bytes(data)
    remote = f"/tmp/tsnetpy-sftp-{os.getpid()}"
    batch = f"put {tmp_path}/up {remote}\nls -l {remote}\nget {remote} {tmp_path}/down\nrm {remote}\n"
    argv = ["ip", "netns", "exec", box.client.lab.ns("a"), "sftp", *box.options, "-b", "-", "nobody@box"]
    done = subprocess.run(argv, input=batch.encode(), capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "down").read_bytes() == data


def test_root_is_refused_with_the_policys_words(box: Box) -> None:
    argv = ["ip", "netns", "exec", box.client.lab.ns("a"), "ssh", "-o", "LogLevel=INFO", *box.options, "root@box", "id"]
    done = subprocess.run(argv, capture_output=True, timeout=60, check=False)
    assert done.returncode == 255
    assert b"cannot switch to user" in done.stderr or b"does not permit" in done.stderr


def test_peers_learn_the_host_keys(box: Box) -> None:
    eventually(lambda: "ssh-ed25519" in box.client.cli("status", "--json"))
