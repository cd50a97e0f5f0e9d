"""The admin socket's commands and the command line."""

import argparse
import os
import signal
import stat
from functools import partial
from pathlib import Path

import anyio
import msgspec
import pytest

from tests.coordinator.wire import connect
from tsnetpy.base.errors import ConfigError
from tsnetpy.coordinator import admin, serve
from tsnetpy.coordinator.embed import Coordinator, breaks_official_clients


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    serve.add_arguments(made)
    return made


@pytest.mark.anyio
@pytest.mark.loopback
async def test_keys_nodes_and_policy_over_the_socket(tmp_path: Path) -> None:
    async with Coordinator(state_dir=tmp_path, derp_port=None, stun_port=None) as box:
        listener = await admin.listen(tmp_path)
        assert stat.S_IMODE((tmp_path / admin.SOCKET_NAME).stat().st_mode) == 0o600
        call = partial(admin.call, tmp_path)
        async with anyio.create_task_group() as tasks, connect(box.url, 1) as node, connect(box.url, 2) as other:
            tasks.start_soon(admin.serve_admin, box, listener)
            key = await call("keys.create", reusable=True, tags=["tag:web"], expiry=None)
            assert isinstance(key, str)
            assert (await node.register(key))["Error"] == ""
            [listed] = msgspec.convert(await call("keys.list"), list[dict[str, object]])
            assert (listed["uses"], listed["tags"], listed["expires_ns"]) == (1, ["tag:web"], 0)
            assert key.rpartition("-")[2] not in str(listed)
            await call("keys.revoke", id=listed["id"])
            assert "revoked" in str((await other.register(key))["Error"])
            url = str((await other.register())["AuthURL"])
            nodes = msgspec.convert(await call("nodes.list"), dict[str, list[dict[str, object]]])
            assert [entry["name"] for entry in nodes["nodes"]] == ["wire-01"]
            assert [entry["id"] for entry in nodes["pending"]] == [url.rpartition("/")[2]]
            await call("nodes.approve", login=url, user="alice")
            await call("nodes.expire", node="wire-02")
            await call("nodes.delete", node="100.64.0.1")
            assert [(info.name, info.user, info.expired) for info in box.nodes()] == [("wire-02", "alice", True)]
            await call("policy.set", text='{"acls": []}')
            for command, members in (
                ("nodes.delete", {"node": "nobody"}),
                ("nodes.delete", {}),
                ("keys.create", {"tags": "tag:web"}),
                ("keys.create", {"expiry": "1h"}),
                ("policy.set", {"text": "{"}),
                ("what", {}),
            ):
                with pytest.raises(ConfigError):
                    await call(command, **members)
            assert msgspec.json.decode(admin.execute(box, b"[]"))["error"] == "no command"
            assert msgspec.json.decode(admin.execute(box, b"{"))["error"] == "not JSON"
            tasks.cancel_scope.cancel()
    with pytest.raises(ConfigError, match="no coordinator answers"):
        await admin.call(tmp_path, "nodes.list")


@pytest.mark.anyio
@pytest.mark.loopback
async def test_serve_runs_until_a_signal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = tmp_path / "policy.hujson"
    policy.write_text('{"acls": []} // closed')
    options = serve.ServeOptions(
        port=0, state_dir=tmp_path / "state", policy_file=policy, derp_port=None, stun_port=None
    )
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            await tasks.start(serve.serve, options)
            assert await admin.call(tmp_path / "state", "nodes.list") == {"nodes": [], "pending": []}
            policy.write_text("{ broken")
            os.kill(os.getpid(), signal.SIGHUP)  # the old policy holds on, and so does the server
            assert await admin.call(tmp_path / "state", "keys.list") == []
            os.kill(os.getpid(), signal.SIGTERM)
    assert not (tmp_path / "state" / admin.SOCKET_NAME).exists()
    said = capsys.readouterr().out
    assert "coordinator at http://127.0.0.1:" in said
    assert "keys create" in said


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = parser().parse_args(["serve", "--listen", "[::1]:80", "--derp-port", "off", "--stun-port", "0"])
    assert (made.listen, made.derp_port, made.stun_port) == (("::1", 80), None, 0)
    assert parser().parse_args(["keys", "create", "--expiry", "7d"]).expiry == 7 * 86_400
    for wrong in (
        ["serve", "--listen", "nowhere"],
        ["serve", "--derp-port", "x"],
        ["keys", "create", "--expiry", "0h"],
        ["keys", "create", "--expiry", "soon"],
    ):
        with pytest.raises(SystemExit):
            parser().parse_args(wrong)
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text("{}")
    bad.write_text('{"acl": []}')
    assert serve.run(parser().parse_args(["policy", "check", str(good)])) == 0
    assert serve.run(parser().parse_args(["policy", "check", str(bad)])) == 1
    assert "unknown section" in capsys.readouterr().err


def test_management_without_a_coordinator_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(serve.STATE_ENV, raising=False)
    assert serve.run(parser().parse_args(["nodes", "list"])) == 1
    assert serve.STATE_ENV in capsys.readouterr().err
    assert serve.run(parser().parse_args(["nodes", "list", "--state", str(tmp_path)])) == 1
    assert "coordinator serve --state" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "breaks"),
    [
        ("http://10.1.2.3:8080", False),
        ("http://127.0.0.1", False),
        ("http://[fd00::1]:1", False),
        ("http://box.example", False),
        ("https://192.0.2.1", False),
        ("http://192.0.2.1:8080", True),
        ("http://100.100.1.1", True),
        ("http://[2001:db8::1]", True),
    ],
)
def test_plain_http_on_public_addresses_is_warned_about(url: str, breaks: bool) -> None:
    assert breaks_official_clients(url) is breaks
