"""The state file: format, atomicity, permissions, locking, damage."""

import base64
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tsnetpy.base.entropy import SystemEntropy
from tsnetpy.base.errors import StateError
from tsnetpy.base.keys import NodePrivate
from tsnetpy.crypto import dh
from tsnetpy.node.state import FileStore, MemoryStore, forget_login, load_identity, open_store, save_login

ENTROPY = SystemEntropy()
OFFICIAL = {
    "_machinekey": b"privkey:" + b"18" * 31 + b"58",
    "_profiles": json.dumps({"0892": {"ID": "0892", "Name": "alice", "Key": "profile-0892"}}).encode(),
    "_current-profile": b"profile-0892",
    "profile-0892": json.dumps(
        {
            "ControlURL": "http://192.0.2.1:8080",
            "RunSSH": True,
            "Config": {
                "PrivateNodeKey": "privkey:" + "28" * 31 + "68",
                "OldPrivateNodeKey": "privkey:" + "0" * 64,
                "UserProfile": {"ID": 1, "LoginName": "alice"},
                "NetworkLockKey": "nlpriv:" + "ab" * 64,
                "NodeID": "n1",
            },
        },
        indent="\t",
    ).encode(),
}


def write_official(directory: Path) -> None:
    document = {key: base64.b64encode(value).decode() for key, value in OFFICIAL.items()}
    (directory / "tailscaled.state").write_text(json.dumps(document))


def test_file_is_private_and_replaced_in_one_step(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    store = FileStore(directory)
    store.write({"a": b"1"})
    path = directory / "tailscaled.state"
    first = path.stat()
    assert stat.S_IMODE(first.st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    held = path.open("rb")
    store.write({"b": b"2"})
    with held:
        # Whoever had the old file open still reads the old whole: it was replaced, not rewritten.
        assert set(json.loads(held.read())) == {"a"}
    assert path.stat().st_ino != first.st_ino
    assert sorted(p.name for p in directory.iterdir()) == ["tailscaled.state", "tailscaled.state.lock"]
    store.close()
    assert FileStore(directory).read("b") == b"2"


def test_second_opener_is_told_so(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    with pytest.raises(StateError, match="in use by another process"):
        FileStore(tmp_path)
    code = (
        "import sys; from pathlib import Path; from tsnetpy.node.state import FileStore\n"
        "from tsnetpy.base.errors import StateError\n"
        "try: FileStore(Path(sys.argv[1]))\n"
        "except StateError as e: print(e.hint)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "state_dir" in run.stdout
    store.close()
    FileStore(tmp_path).close()


def test_unwritable_directory_has_a_hint(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(StateError) as caught:
        FileStore(in_the_way / "state")
    assert "writ" in caught.value.hint
    if os.geteuid() != 0:
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        with pytest.raises(StateError, match="Permission denied"):
            FileStore(locked)


def test_directory_that_turns_read_only_is_a_state_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileStore(tmp_path)
    store.write({"a": b"1"})

    def refuse(*args: object, **kwargs: object) -> tuple[int, str]:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(StateError, match="Read-only file system"):
        store.write({"a": b"2"})
    assert store.read("a") == b"1"


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}', '{"a": "&&&"}', "\x00\x01"])
def test_damage_is_reported_without_quoting_the_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "tailscaled.state").write_text(content)
    with pytest.raises(StateError, match="damaged") as caught:
        FileStore(tmp_path)
    assert caught.value.__suppress_context__
    (tmp_path / "tailscaled.state").write_text("{}")
    FileStore(tmp_path).close()  # the failed attempt left no lock behind


def test_empty_file_counts_as_missing(tmp_path: Path) -> None:
    (tmp_path / "tailscaled.state").write_text("\n")
    assert FileStore(tmp_path).read("_machinekey") is None


def test_machine_key_survives(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    first = load_identity(store, ENTROPY)
    store.close()
    store = FileStore(tmp_path)
    assert load_identity(store, ENTROPY).machine == first.machine
    assert first.node is None


def test_official_state_is_taken_over_and_keeps_its_other_members(tmp_path: Path) -> None:
    write_official(tmp_path)
    store = FileStore(tmp_path)
    identity = load_identity(store, ENTROPY)
    assert identity.machine.text() == OFFICIAL["_machinekey"].decode()
    assert identity.node == NodePrivate.parse("privkey:" + "28" * 31 + "68")
    assert identity.old_node is None
    assert identity.control_url == "http://192.0.2.1:8080"
    save_login(
        store,
        identity,
        ENTROPY,
        control_url="http://192.0.2.1:8080",
        hostname="box",
        node_id="n1",
        user_id=1,
        login_name="alice",
    )
    profile = json.loads(store.read("profile-0892") or b"")
    assert profile["RunSSH"] is True
    assert profile["Config"]["NetworkLockKey"] == "nlpriv:" + "ab" * 64
    assert profile["Config"]["UserProfile"]["LoginName"] == "alice"
    assert store.read("_current-profile") == b"profile-0892"


def test_login_round_trip_and_log_out(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    identity = load_identity(store, ENTROPY)
    identity.node = NodePrivate(dh.generate(ENTROPY))
    identity.old_node = NodePrivate(dh.generate(ENTROPY))
    save_login(
        store, identity, ENTROPY, control_url="https://c.example", hostname="box", login_name="a@b", node_id="n7"
    )
    profiles = json.loads(store.read("_profiles") or b"")
    (profile_id,) = profiles
    assert profiles[profile_id]["Key"] == f"profile-{profile_id}"
    again = load_identity(store, ENTROPY)
    assert (again.node, again.old_node, again.control_url) == (identity.node, identity.old_node, "https://c.example")
    assert identity.node.text() not in repr(again)
    forget_login(store, again)
    assert load_identity(store, ENTROPY).node is None
    assert load_identity(store, ENTROPY).machine == identity.machine


def test_damaged_identity_is_a_state_error() -> None:
    store = MemoryStore()
    store.write({**OFFICIAL, "_machinekey": b"privkey:zz"})
    with pytest.raises(StateError, match="damaged"):
        load_identity(store, ENTROPY)
    store.write({"_machinekey": OFFICIAL["_machinekey"], "profile-0892": b"{"})
    with pytest.raises(StateError, match="damaged"):
        load_identity(store, ENTROPY)


def test_no_directory_means_memory() -> None:
    assert isinstance(open_store(None), MemoryStore)
