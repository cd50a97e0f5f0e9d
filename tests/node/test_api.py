"""The shape of the public class."""

import inspect
import tomllib
from pathlib import Path

from tsnetpy import Node, NodeHost
from tsnetpy.base.version import VERSION
from tsnetpy.node.config import NodeConfig, NodeOptions


def public(cls: type) -> set[str]:
    return {name for name in vars(cls) if not name.startswith("_")}


def test_node_stays_small() -> None:
    assert len(public(Node)) <= 15, public(Node)


def test_node_is_a_host_for_features() -> None:
    assert public(NodeHost) <= public(Node)
    for name in public(NodeHost):
        ours, theirs = getattr(Node, name), getattr(NodeHost, name)
        if inspect.isfunction(theirs):
            assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(theirs), name
            assert list(inspect.signature(theirs).parameters) == [
                p for p in inspect.signature(ours).parameters if p in inspect.signature(theirs).parameters
            ], name


def test_every_setting_is_an_option() -> None:
    assert set(NodeOptions.__annotations__) == set(NodeConfig.__dataclass_fields__)


def test_version_is_that_of_the_distribution() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["version"] == VERSION
