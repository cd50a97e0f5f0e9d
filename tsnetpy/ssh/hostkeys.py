"""The server's host keys: where Tailscale keeps them, so that a swap between implementations causes no warning."""

import os
import pathlib
from dataclasses import dataclass, field

from tsnetpy.base.errors import StateError
from tsnetpy.crypto import hostkeys
from tsnetpy.crypto.errors import CryptoError


@dataclass(frozen=True, slots=True, kw_only=True)
class HostKey:
    """One key pair."""

    kind: str
    private_pem: str = field(repr=False)
    """OpenSSH PEM."""
    public_line: str
    """``type base64``, as in ``known_hosts`` and ``Hostinfo.sshHostKeys``."""


def load_or_create(state_dir: str | os.PathLike[str] | None) -> tuple[HostKey, ...]:
    """Return one key of each kind, from ``<state_dir>/ssh/ssh_host_<kind>_key`` (PKCS#8, mode 0600).

    A missing file is made. Without a directory the keys live only as long as the process.

    Raises:
        StateError: a file or the directory cannot be read or written, or holds no key.
    """
    keys = []
    for kind in hostkeys.KINDS:
        if state_dir is None:
            pem = hostkeys.generate(kind)
        else:
            pem = _load_file(pathlib.Path(state_dir) / "ssh" / f"ssh_host_{kind}_key", kind)
        try:
            private, public = hostkeys.to_openssh(pem)
        except CryptoError as error:
            raise StateError(
                f"the {kind} host key in {state_dir}/ssh is damaged: {error}", hint="remove the file to get a new key"
            ) from None
        keys.append(HostKey(kind=kind, private_pem=private, public_line=public))
    return tuple(keys)


def _load_file(path: pathlib.Path, kind: str) -> str:
    try:
        return path.read_text(encoding="ascii")
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise StateError(f"cannot read the host key {path}: {error}") from None
    pem = hostkeys.generate(kind)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise StateError(
            f"cannot write the host key {path}: {error}", hint="give a state directory that this user may write"
        ) from None
    return pem
