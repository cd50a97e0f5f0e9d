"""Where a node's identity lives between runs: ``tailscaled.state``, as the official client writes it.

One JSON object, key to base64 (control protocol reference, section 1). A directory made by ``tailscaled`` or Go's
``tsnet`` can be taken over, and the other way round: members that are not ours are kept as they are.
"""

import base64
import binascii
import fcntl
import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, final

from tsnetpy.base.entropy import Entropy
from tsnetpy.base.errors import DecodeError, StateError
from tsnetpy.base.keys import MachinePrivate, NodePrivate
from tsnetpy.crypto import dh

STATE_FILE: Final = "tailscaled.state"
_LOCK_FILE: Final = "tailscaled.state.lock"
_SIZE_LIMIT: Final = 16 * 1024 * 1024

_MACHINE_KEY: Final = "_machinekey"
_PROFILES: Final = "_profiles"
_CURRENT: Final = "_current-profile"
_ZERO_KEY: Final = "privkey:" + "0" * 64
_ZERO_NL_KEY: Final = "nlpriv:" + "0" * 128


class StateStore(Protocol):
    """Keeps named byte strings; the names are those of ``tailscaled.state``."""

    def read(self, key: str) -> bytes | None:
        """Return what is stored under *key*, or ``None``."""
        ...

    def write(self, values: dict[str, bytes]) -> None:
        """Store all of *values* at once.

        Raises:
            StateError: they cannot be stored.
        """
        ...

    def close(self) -> None:
        """Let go of locks; the store is not used afterwards."""
        ...


@final
class MemoryStore:
    """Forgets everything with the process: for ephemeral nodes and tests."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    def read(self, key: str) -> bytes | None:
        """Return what is stored under *key*, or ``None``."""
        return self._values.get(key)

    def write(self, values: dict[str, bytes]) -> None:
        """Store all of *values*."""
        self._values.update(values)

    def close(self) -> None:
        """Nothing to let go of."""


@final
class FileStore:
    """``tailscaled.state`` in a directory: mode 0600, replaced atomically, locked against other processes.

    Args:
        directory: made (0700) if missing.

    Raises:
        StateError: the directory is in use by another process, not writable, or the file is damaged.
    """

    __slots__ = ("_directory", "_lock", "_values")

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(directory / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(directory, error) from error
        try:
            # flock, not lockf: a POSIX lock would be shared by two nodes of one process, and lost at any close().
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise StateError(
                f"the state in {directory} is in use by another process or node",
                hint="give each node its own state_dir, or stop the other one",
            ) from error
        try:
            self._values = _load(directory / STATE_FILE)
        except BaseException:
            self.close()
            raise

    def read(self, key: str) -> bytes | None:
        """Return what is stored under *key*, or ``None``."""
        return self._values.get(key)

    def write(self, values: dict[str, bytes]) -> None:
        """Store all of *values* in one atomic replacement of the file."""
        merged = {**self._values, **values}
        if merged == self._values:
            return
        document = {key: base64.b64encode(value).decode("ascii") for key, value in merged.items()}
        text = json.dumps(document, indent=2, sort_keys=True)
        try:
            _replace_file(self._directory, text.encode("ascii"))
        except OSError as error:
            raise _unusable(self._directory, error) from error
        self._values = merged

    def close(self) -> None:
        """Release the lock."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def open_store(state_dir: Path | None) -> StateStore:
    """Return the store for *state_dir*, in memory if there is none.

    Raises:
        StateError: see :class:`FileStore`.
    """
    return MemoryStore() if state_dir is None else FileStore(state_dir)


@dataclass(slots=True)
class Identity:
    """A node's keys and the login they belong to."""

    machine: MachinePrivate
    node: NodePrivate | None = None
    """``None`` before the first login."""
    old_node: NodePrivate | None = None
    """The key before a rotation; the server wants to see it with each later registration."""
    control_url: str = ""
    """The server that knows the node key."""
    profile: str = ""
    """The store's name for this login."""
    node_id: str = ""
    """The server's stable ID of this node, once known."""
    _document: dict[str, object] = field(default_factory=dict, repr=False)

    def forget_document(self) -> None:
        """Start a new profile with the next login."""
        self._document = {}
        self.node_id = ""


def load_identity(store: StateStore, entropy: Entropy) -> Identity:
    """Return the stored identity; a machine key is made (and stored) if there is none.

    Raises:
        StateError: what is stored cannot be read, or a new key cannot be stored.
    """
    raw_machine = store.read(_MACHINE_KEY)
    try:
        if raw_machine is None:
            identity = Identity(MachinePrivate(dh.generate(entropy)))
            store.write({_MACHINE_KEY: identity.machine.text().encode()})
        else:
            identity = Identity(MachinePrivate.parse(raw_machine.decode("ascii").strip()))
        current = (store.read(_CURRENT) or b"").decode("utf-8")
        raw_profile = store.read(current) if current else None
        if raw_profile is None:
            return identity
        document = json.loads(raw_profile)
        identity.profile = current
        identity._document = _object(document)
        config = _object(identity._document.get("Config"))
        identity.node = _private(config.get("PrivateNodeKey"))
        identity.old_node = _private(config.get("OldPrivateNodeKey"))
        node_id = config.get("NodeID")
        identity.node_id = node_id if isinstance(node_id, str) else ""
        url = identity._document.get("ControlURL")
        identity.control_url = url if isinstance(url, str) else ""
    except (DecodeError, ValueError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        # The error's own text could quote the file, which holds keys.
        raise StateError(
            f"the stored identity is damaged ({type(error).__name__})",
            hint="restore the state from a backup, or remove it and log in again",
        ) from None
    return identity


def save_login(
    store: StateStore,
    identity: Identity,
    entropy: Entropy,
    *,
    control_url: str,
    hostname: str,
    node_id: str = "",
    user_id: int = 0,
    login_name: str = "",
    display_name: str = "",
    domain: str = "",
) -> None:
    """Store the identity's node key as the current login, in the profile form of the official client.

    Raises:
        StateError: it cannot be stored.
    """
    if identity.node is None:
        raise ValueError("there is no login to save")
    if not identity.profile:
        identity.profile = f"profile-{entropy.u32() & 0xFFFF:04x}"
    profile_id = identity.profile.removeprefix("profile-")
    document = identity._document
    config = _object(document.get("Config"))
    user = {"ID": user_id, "LoginName": login_name, "DisplayName": display_name}
    config.update(
        PrivateNodeKey=identity.node.text(),
        OldPrivateNodeKey=identity.old_node.text() if identity.old_node is not None else _ZERO_KEY,
        UserProfile=user,
        NodeID=node_id or identity.node_id,
    )
    identity.node_id = node_id or identity.node_id
    config.setdefault("NetworkLockKey", _ZERO_NL_KEY)
    document.setdefault("RouteAll", False)
    document.setdefault("CorpDNS", True)
    document.update(ControlURL=control_url, WantRunning=True, LoggedOut=False, Hostname=hostname, Config=config)
    identity.control_url = control_url
    profiles = _profiles(store)
    entry = _object(profiles.get(profile_id))
    entry.update(
        ID=profile_id,
        Name=login_name or hostname,
        Key=identity.profile,
        UserProfile=user,
        NodeID=identity.node_id,
        ControlURL=control_url,
        NetworkProfile={"MagicDNSName": "", "DomainName": domain},
    )
    entry.setdefault("LocalUserID", "")
    profiles[profile_id] = entry
    store.write(
        {
            identity.profile: json.dumps(document, indent="\t").encode(),
            _PROFILES: json.dumps(profiles).encode(),
            _CURRENT: identity.profile.encode(),
        }
    )


def forget_login(store: StateStore, identity: Identity) -> None:
    """Remove the node key from the store after a log-out; the machine key stays.

    Raises:
        StateError: it cannot be stored.
    """
    identity.node = identity.old_node = None
    identity.node_id = ""
    if not identity.profile:
        return
    document = identity._document
    config = _object(document.get("Config"))
    config.update(PrivateNodeKey=_ZERO_KEY, OldPrivateNodeKey=_ZERO_KEY)
    document.update(Config=config, LoggedOut=True, WantRunning=False)
    store.write({identity.profile: json.dumps(document, indent="\t").encode()})


def _profiles(store: StateStore) -> dict[str, object]:
    raw = store.read(_PROFILES)
    if not raw:
        return {}
    try:
        return _object(json.loads(raw))
    except ValueError:
        return {}


def _object(value: object) -> dict[str, object]:
    return {str(k): v for k, v in value.items()} if isinstance(value, dict) else {}


def _private(value: object) -> NodePrivate | None:
    if not isinstance(value, str) or not value:
        return None
    key = NodePrivate.parse(value)
    return None if key.is_zero else key


def _load(path: Path) -> dict[str, bytes]:
    try:
        with path.open("rb") as file:
            text = file.read(_SIZE_LIMIT + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _unusable(path, error) from error
    if not text.strip():
        return {}  # the official client treats an empty file as missing, and so survives a full disk
    try:
        document = json.loads(text) if len(text) <= _SIZE_LIMIT else None
        if not isinstance(document, dict):
            raise ValueError("not an object")
        return {key: base64.b64decode(value, validate=True) for key, value in document.items()}
    except (ValueError, TypeError, binascii.Error):
        raise StateError(
            f"{path} is damaged: it is not a JSON object of base64 strings",
            hint="restore it from a backup, or remove it and log in again",
        ) from None


def _replace_file(directory: Path, content: bytes) -> None:
    # mkstemp makes the file 0600 from the start, so the keys are never readable by others, not even for a moment.
    handle, name = tempfile.mkstemp(prefix=STATE_FILE + ".", suffix=".tmp", dir=directory)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(directory / STATE_FILE)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _unusable(path: Path, error: OSError) -> StateError:
    return StateError(
        f"cannot use {path}: {error.strerror or error}",
        hint="point state_dir at a directory that this user can write to, or leave it out to keep the keys in memory",
    )
