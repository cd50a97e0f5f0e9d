"""One coordinator for all tests of programs on loopback."""

import pathlib
from collections.abc import Iterator

import pytest

from tests.loopback.kit import Bench, Box, a_bench


@pytest.fixture
def bench(tmp_path: pathlib.Path) -> Iterator[Bench]:
    with a_bench(tmp_path) as made:
        yield made


@pytest.fixture(scope="session")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    made = Box(tmp_path_factory.mktemp("box"))
    yield made
    made.close()
