"""No recording lies about unread: each file is named, or matched, by the test that reads it."""

import pathlib
import re

from tests.recordings.captures import CAPTURES, DATA
from tests.tailcfg.kit import names as control_names
from tests.tailcfg.test_recordings import pieces

TESTS = pathlib.Path(__file__).parents[1]


def test_every_control_recording_is_decoded() -> None:
    files = {path.stem for path in (DATA / "control").glob("*.json")}
    assert files == set(control_names())
    assert len(files) == 39
    assert all(pieces(name) for name in files)


def test_every_data_path_recording_is_read_by_a_test() -> None:
    sources = "\n".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    for path in sorted((DATA / "datapath").iterdir()):
        if path.suffix == ".pcap":
            assert path.stem in CAPTURES
        elif path.suffix == ".json":
            assert f'"{path.name}"' in sources, f"no test reads {path.name}"


def test_the_tables_in_the_read_me_are_complete() -> None:
    for folder in ("control", "datapath"):
        text = (DATA / folder / "README.md").read_text()
        for path in (DATA / folder).iterdir():
            if path.name != "README.md":
                assert re.search(rf"\b{re.escape(path.stem)}\b", text), path.name
