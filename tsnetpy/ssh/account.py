"""The one account that sessions run as: this process's own. Switching users would need root."""

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass

_NO_LOGIN = ("nologin", "false")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A local user and how its shells start."""

    name: str
    uid: int
    home: str
    shell: str

    @property
    def directory(self) -> str:
        """Where sessions start: the home directory if it is there, else ``/``."""
        return self.home if os.path.isdir(self.home) else "/"

    def may_become(self, local_user: str) -> bool:
        """Tell whether a session for *local_user* can run in this process's account."""
        if local_user == self.name:
            return True
        try:
            return pwd.getpwnam(local_user).pw_uid == self.uid
        except KeyError:
            return False


def own_account(environ: Mapping[str, str]) -> Account:
    """Return this process's account.

    A uid without a passwd entry, as in many containers, takes its name, home and shell from ``USER``, ``HOME`` and
    ``SHELL``. An account whose shell refuses logins (``nologin``) gets ``SHELL`` or ``/bin/sh``: whoever started this
    server as that user asked for sessions.
    """
    uid = os.getuid()
    try:
        entry = pwd.getpwuid(uid)
        name, home, shell = entry.pw_name, entry.pw_dir, entry.pw_shell
    except KeyError:
        name, home, shell = environ.get("USER") or f"uid{uid}", environ.get("HOME", "/"), ""
    if not shell or shell.rpartition("/")[2] in _NO_LOGIN:
        shell = environ.get("SHELL", "")
        if not shell or shell.rpartition("/")[2] in _NO_LOGIN:
            shell = "/bin/sh"
    return Account(name=name, uid=uid, home=home, shell=shell)


def session_environment(
    account: Account, environ: Mapping[str, str], *, term: str, peer: tuple[str, int], local: tuple[str, int], tty: str
) -> dict[str, str]:
    """Return the environment of a session: nothing of the server's own but the path and the locale.

    The server's environment may hold an auth key, so it is not passed on.

    Args:
        account: who the session runs as.
        environ: the server's environment.
        term: terminal type of a PTY, or ``""``.
        peer: address and port of the client.
        local: address and port of this end.
        tty: device name of the PTY, or ``""``.
    """
    env = {name: value for name, value in environ.items() if name in ("LANG", "TZ") or name.startswith("LC_")}
    env["PATH"] = environ.get("PATH") or "/usr/local/bin:/usr/bin:/bin"
    env |= {"HOME": account.home, "USER": account.name, "LOGNAME": account.name, "SHELL": account.shell}
    env["SSH_CLIENT"] = f"{peer[0]} {peer[1]} {local[1]}"
    env["SSH_CONNECTION"] = f"{peer[0]} {peer[1]} {local[0]} {local[1]}"
    if tty:
        env["SSH_TTY"] = tty
        env["TERM"] = term or "xterm"
    return env
