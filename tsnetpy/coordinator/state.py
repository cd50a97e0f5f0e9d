"""What the coordinator remembers: users, nodes, auth keys, its own keys. One JSON file, or memory only.

The file is written whole, to a temporary file beside it that then takes its place, with mode 0600 in a directory of
mode 0700: it holds private keys. A lock file keeps a second process out.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from tsnetpy.base.entropy import Entropy
from tsnetpy.base.errors import StateError
from tsnetpy.base.keys import MachinePrivate, NodePrivate

from .auth import AuthKey

if sys.platform != "win32":
    import fcntl

FILE_NAME: Final = "coordinator.json"
LOCK_NAME: Final = "coordinator.lock"
FORMAT: Final = 1
"""Grows when older programs could no longer read the file."""

TAGGED_USER_ID: Final = 2147455555
"""The pseudo-user of tagged devices; the number that other servers use."""
TAGGED_LOGIN: Final = "tagged-devices"


class UserRecord(msgspec.Struct):
    """Somebody who owns devices."""

    id: int
    login: str
    """A name or an e-mail address; what policies and peers call this user. Never empty."""
    display_name: str
    created_ns: int


class NodeRecord(msgspec.Struct, omit_defaults=True):
    """One device. Keys are in text form; times are wall clock nanoseconds, 0 = none."""

    id: int
    machine_key: str
    node_key: str
    user_id: int
    """Who registered it. A tagged device belongs to the pseudo-user instead, see :attr:`owner_id`."""
    name: str
    """Its first label in MagicDNS, unique."""
    hostname: str
    """What it calls itself; *name* was made from it."""
    ipv4: str
    ipv6: str
    created_ns: int
    tags: list[str] = []
    ephemeral: bool = False
    expiry_ns: int = 0
    auth_key_id: str = ""
    cap: int = 0
    """The capability version of its last request."""
    hostinfo: dict[str, object] = {}
    """As it came, unknown members included: peers may know more about it than this server."""
    disco_key: str = ""
    """Empty until its first map request; peers do not see it before."""
    endpoints: list[str] = []
    home_derp: int = 0
    last_seen_ns: int = 0

    @property
    def owner_id(self) -> int:
        """The user that peers see."""
        return TAGGED_USER_ID if self.tags else self.user_id

    def is_expired(self, now_wall_ns: int) -> bool:
        """Tell whether its key has expired."""
        return 0 < self.expiry_ns <= now_wall_ns


class Document(msgspec.Struct):
    """The whole state file."""

    format: int
    noise_private: str
    """``privkey:``: this server's Noise static key, by which clients know it."""
    derp_private: str
    """``privkey:``: the key of the DERP server."""
    users: list[UserRecord] = []
    nodes: list[NodeRecord] = []
    auth_keys: list[AuthKey] = []
    next_node_id: int = 1
    next_user_id: int = 1
    next_v4: int = 1
    next_v6: int = 1
    tls_cert_pem: str = ""
    tls_key_pem: str = ""
    tls_names: list[str] = []
    """What the certificate is for; another list means another certificate."""


class Store:
    """Reads and writes the state file; without a directory it keeps nothing.

    Args:
        directory: where the file lies, created if missing; ``None`` for memory only.

    Raises:
        StateError: the directory cannot be used, or another coordinator uses it.
    """

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory
        self._lock = -1
        if directory is not None:
            try:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._lock = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise StateError(f"cannot use the state directory {directory}: {error.strerror}") from error
            try:
                _lock(self._lock)
            except OSError:
                os.close(self._lock)
                raise StateError(
                    f"the state directory {directory} is in use",
                    hint="another coordinator runs on it; stop that one first",
                ) from None

    def load(self, entropy: Entropy) -> Document:
        """Return the saved document, or a new one with new keys.

        Raises:
            StateError: the file is unreadable or damaged.
        """
        if self.directory is not None:
            path = self.directory / FILE_NAME
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                data = b""
            except OSError as error:
                raise StateError(f"cannot read {path}: {error.strerror}") from error
            if data:
                return _decode(data, path)
        return Document(
            format=FORMAT,
            noise_private=MachinePrivate(entropy.bytes(32)).text(),
            derp_private=NodePrivate(entropy.bytes(32)).text(),
        )

    def save(self, document: Document) -> None:
        """Write *document*; on return it is on the disk.

        Raises:
            StateError: it could not be written; the previous file is untouched.
        """
        if self.directory is None:
            return
        path = self.directory / FILE_NAME
        data = msgspec.json.format(msgspec.json.encode(document), indent=1)
        temporary = ""
        try:
            descriptor, temporary = tempfile.mkstemp(prefix=FILE_NAME + ".", dir=self.directory)  # 0600 by definition
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            if temporary:
                Path(temporary).unlink(missing_ok=True)
            raise StateError(f"cannot write {path}: {error.strerror}") from error

    def close(self) -> None:
        """Give the directory free for another process."""
        if self._lock >= 0:
            os.close(self._lock)  # closing drops the lock
            self._lock = -1


def _lock(descriptor: int) -> None:
    if sys.platform != "win32":
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _decode(data: bytes, path: Path) -> Document:
    try:
        document = msgspec.json.decode(data, type=Document)
    except msgspec.MsgspecError as error:
        raise StateError(
            f"{path} is damaged: {error}", hint="restore it from a backup, or start anew without it"
        ) from None
    if document.format != FORMAT:
        raise StateError(f"{path} has format {document.format}, this program reads {FORMAT}")
    return document
