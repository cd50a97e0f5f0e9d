"""Addresses, auth keys, names, the state file."""

import stat
from pathlib import Path

import pytest

from tests.coordinator.kit import T0, Box, CountingEntropy, node_key
from tsnetpy.base.addr import format_ip, parse_prefix
from tsnetpy.base.errors import ConfigError, StateError
from tsnetpy.coordinator import auth
from tsnetpy.coordinator.ipam import V4_RANGE, V6_RANGE, AddressesExhausted, AddressPool
from tsnetpy.coordinator.state import FILE_NAME, Store
from tsnetpy.coordinator.tailnet import label


def test_addresses_come_in_order_and_skip_what_is_reserved() -> None:
    pool = AddressPool(V4_RANGE)
    assert [format_ip(pool.allocate()) for _ in range(3)] == ["100.64.0.1", "100.64.0.2", "100.64.0.3"]
    pool.next_offset = (100 - 64) * 65536 + 100 * 256 - 1
    assert [format_ip(pool.allocate()) for _ in range(2)] == ["100.100.99.255", "100.100.101.0"]
    pool.next_offset = (115 - 64) * 65536 + 92 * 256
    assert format_ip(pool.allocate()) == "100.115.94.0"
    v6 = AddressPool(V6_RANGE, 0x52)
    assert [format_ip(v6.allocate()) for _ in range(2)] == ["fd7a:115c:a1e0::52", "fd7a:115c:a1e0::54"]


def test_a_range_runs_out_for_good() -> None:
    pool = AddressPool(parse_prefix("192.0.2.0/29"))
    assert len({pool.allocate() for _ in range(6)}) == 6  # neither the network's nor the broadcast address
    for _ in range(2):
        with pytest.raises(AddressesExhausted):
            pool.allocate()


def test_addresses_are_not_reused_after_deletion_or_restart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    box = Box(store)
    first = box.join(1)
    box.tailnet.delete_node(first)
    assert box.join(2).ipv4 == "100.64.0.2"
    store.close()
    again = Box(Store(tmp_path))
    assert again.join(3).ipv4 == "100.64.0.3"
    assert again.join(4).id == 4


def test_the_state_file_is_private_and_survives(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    store = Store(directory)
    box = Box(store)
    key = box.key(reusable=True)
    record = box.join(1, hostname="alpha")
    noise = box.tailnet.document.noise_private
    assert stat.S_IMODE((directory / FILE_NAME).stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert key.encode() not in (directory / FILE_NAME).read_bytes()
    assert sorted(path.name for path in directory.iterdir()) == [FILE_NAME, "coordinator.lock"]
    with pytest.raises(StateError, match="in use"):
        Store(directory)
    store.close()
    again = Box(Store(directory))
    assert again.tailnet.document.noise_private == noise
    known = again.tailnet.node_by_key(node_key(1))
    assert known is not None
    assert (known.name, known.ipv4) == ("alpha", record.ipv4)
    assert again.answer(2, key=key)["Error"] == ""


def test_a_damaged_state_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b'{"format": 1, "noise_private"')
    with pytest.raises(StateError, match="damaged"):
        Box(Store(tmp_path))
    assert (tmp_path / FILE_NAME).read_bytes().startswith(b'{"format"')


def test_auth_keys_are_found_by_their_secret_only() -> None:
    record, text = auth.create(CountingEntropy(), user_id=1, now_wall_ns=T0)
    other, _ = auth.create(CountingEntropy(), user_id=1, now_wall_ns=T0)
    keys = {record.id: record}
    assert auth.find(keys, f" {text}\n") is record
    assert text.rpartition("-")[2] not in repr(record)
    for wrong in (text[:-1], text[:-1] + "f", text.replace("tskey", "hskey"), "", other.id):
        if wrong == text:
            continue
        with pytest.raises(auth.AuthKeyRefused, match=r"^invalid pre auth key$"):
            auth.find(keys, wrong)


@pytest.mark.parametrize(
    ("reusable", "uses", "age_s", "revoked", "reason"),
    [
        (False, 0, 0, False, None),
        (False, 1, 0, False, "already used"),
        (True, 99, 0, False, None),
        (True, 0, 86_400, False, "expired"),
        (True, 0, 0, True, "revoked"),
    ],
)
def test_when_an_auth_key_may_be_used(reusable: bool, uses: int, age_s: int, revoked: bool, reason: str | None) -> None:
    record, _ = auth.create(CountingEntropy(), user_id=1, now_wall_ns=T0, reusable=reusable)
    record.uses, record.revoked = uses, revoked
    now = T0 + age_s * 1_000_000_000
    if reason is None:
        auth.check_usable(record, now)
    else:
        with pytest.raises(auth.AuthKeyRefused, match=reason):
            auth.check_usable(record, now)


@pytest.mark.parametrize("tag", ["web", "tag:", "tag:1", "tag:a b", "tag:a_b"])
def test_bad_tags_make_no_key(tag: str) -> None:
    with pytest.raises(ConfigError, match="no tag"):
        Box().key(tags=(tag,))


@pytest.mark.parametrize(
    ("hostname", "name"),
    [("CI runner #1", "ci-runner-1"), ("", "node"), ("host.example.com", "host"), ("--", "node"), ("ü" * 3, "node")],
)
def test_host_names_become_labels(hostname: str, name: str) -> None:
    assert label(hostname) == name
    assert len(label("x" * 200)) == 63


def test_names_are_unique_and_follow_the_host_name() -> None:
    box = Box()
    first, second = box.join(1, hostname="web"), box.join(2, hostname="web")
    assert (first.name, second.name) == ("web", "web-1")
    box.poll(second, 2, hostname="api")
    assert second.name == "api"
    first.name = "renamed-by-hand"
    box.poll(first, 1, hostname="other")
    assert first.name == "renamed-by-hand"
