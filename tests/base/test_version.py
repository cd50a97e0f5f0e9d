"""The version stands in two places, since a compiled module cannot read the project file."""

import pathlib
import tomllib

from tsnetpy.base.version import VERSION


def test_version_is_the_projects() -> None:
    project = tomllib.loads((pathlib.Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["version"] == VERSION
