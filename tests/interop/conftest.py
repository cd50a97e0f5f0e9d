"""One lab for all interop tests, and a table of what they did at the end."""

from collections.abc import Generator, Iterator

import pytest

from tests.interop import wireguard_lab
from tests.interop.lab import Lab, missing, running_lab
from tests.interop.wireguard_long import LongRun, long_runs

ROWS: list[tuple[str, str, str]] = []


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    reason = missing()
    if reason:
        pytest.skip(reason)
    with running_lab() as made:
        yield made


@pytest.fixture(scope="session")
def transfers(request: pytest.FixtureRequest) -> Iterator[dict[str, LongRun]]:
    """The long transfers, if a test of this session wants to see how they end."""
    reason = wireguard_lab.missing()
    if reason:
        pytest.skip(reason)
    if any(
        "transfers" in getattr(item, "fixturenames", ()) and "rekey" in item.nodeid for item in request.session.items
    ):
        with long_runs() as made:
            yield made
    else:
        yield {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/interop/" in item.nodeid:
            item.add_marker(pytest.mark.interop)
            item.add_marker(pytest.mark.timeout(600))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if "tests/interop/" in item.nodeid and (report.when == "call" or report.skipped or report.failed):
        notes = "; ".join(f"{name} {value}" for name, value in item.user_properties)
        ROWS.append((item.name.removeprefix("test_").replace("_", " "), report.outcome, notes))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not ROWS:
        return
    terminalreporter.section("interop")
    width = max(len(name) for name, _, _ in ROWS)
    for name, outcome, notes in ROWS:
        terminalreporter.write_line(f"{name.ljust(width)}  {outcome:7}  {notes}")
