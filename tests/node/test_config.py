"""Configuration: arguments, environment, checks, secrets."""

from pathlib import Path

import pytest

from tsnetpy.base.errors import ConfigError
from tsnetpy.node.config import DEFAULT_CONTROL_URL, NodeConfig, host_label


def test_arguments_win_over_the_environment() -> None:
    env = {"TS_AUTHKEY": "key-env", "TS_HOSTNAME": "envhost", "TS_CONTROL_URL": "https://env.example"}
    config = NodeConfig(hostname="Mine", auth_key="key-arg", control_url="http://arg.example:8080/").resolved(env)
    assert (config.hostname, config.auth_key, config.control_url) == ("mine", "key-arg", "http://arg.example:8080")


def test_environment_fills_what_is_left_out() -> None:
    env = {
        "TS_AUTH_KEY": " key \n",
        "TS_HOSTNAME": "env host",
        "TS_CONTROL_URL": "https://env.example/",
        "TS_STATE_DIR": "/x",
    }
    config = NodeConfig().resolved(env)
    assert (config.auth_key, config.hostname, config.control_url) == ("key", "env-host", "https://env.example")
    assert config.state_dir == Path("/x")
    assert config.ephemeral is False
    assert NodeConfig().resolved({"TS_AUTHKEY": "first", "TS_AUTH_KEY": "second"}).auth_key == "first"


def test_without_a_directory_the_node_is_ephemeral_and_off_the_disk() -> None:
    config = NodeConfig(hostname="a").resolved({})
    assert (config.ephemeral, config.state_dir, config.control_url) == (True, None, DEFAULT_CONTROL_URL)
    assert NodeConfig(ephemeral=False).resolved({}).ephemeral is False


def test_auth_key_from_a_file_loses_its_line_end(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("tskey-auth-abc\n")
    assert NodeConfig(auth_key=f"file:{path}").resolved({}).auth_key == "tskey-auth-abc"
    with pytest.raises(ConfigError, match="cannot read the auth key"):
        NodeConfig(auth_key=f"file:{path}.missing").resolved({})


def test_auth_key_never_prints() -> None:
    assert "sesame" not in repr(NodeConfig(auth_key="sesame"))
    assert "sesame" not in repr(NodeConfig(auth_key="sesame").resolved({}))


@pytest.mark.parametrize(
    "bad",
    [
        NodeConfig(control_url="controlplane.tailscale.com"),
        NodeConfig(control_url="ftp://x"),
        NodeConfig(tags=("web",)),
        NodeConfig(tags=("tag:1web",)),
        NodeConfig(port=70000),
        NodeConfig(timeout=0),
    ],
)
def test_nonsense_is_refused(bad: NodeConfig) -> None:
    with pytest.raises(ConfigError):
        bad.resolved({})


@pytest.mark.parametrize(
    ("name", "label"),
    [("My Laptop #1", "my-laptop-1"), ("--", "tsnetpy"), ("a" * 70, "a" * 63), ("x.example.com", "x-example-com")],
)
def test_host_labels(name: str, label: str) -> None:
    assert host_label(name) == label
