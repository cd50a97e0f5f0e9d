"""A node that nobody uses costs no processor: how often it wakes up, counted by the kernel."""

import time

import pytest

from benchmarks.rest import PROC, Activity
from tests.loopback.kit import Bench, Box

pytestmark = [pytest.mark.loopback]

SECONDS = 10
MOST_PER_MINUTE = 60


@pytest.mark.slow
@pytest.mark.skipif(not (PROC / "self" / "task").exists(), reason="the counters are Linux's")
def test_wakeups_of_an_idle_node(bench: Bench, box: Box) -> None:
    """Joined, with peers known and relays connected, on both event loops, a serving program among them."""
    programs = {
        "up, asyncio": bench.start("tsnetpy", "up", "--json", "--hostname", "idle", env=box.env()),
        "up, trio": bench.start(
            *("tsnetpy", "up", "--json", "--hostname", "idle"), env={**box.env(), "TSNETPY_BACKEND": "trio"}
        ),
        "serve": bench.start("tsnetpy.serve", "3000", "--hostname", "idle", "--json", env=box.env()),
    }
    for program in programs.values():
        program.wait_event("running")
    time.sleep(4)  # the last one's coming is news to the others, and paths are tried once
    before = {name: Activity.of(program.popen.pid).wake_ups for name, program in programs.items()}
    time.sleep(SECONDS)
    per_minute = {
        name: (Activity.of(program.popen.pid).wake_ups - before[name]) * 60 / SECONDS
        for name, program in programs.items()
    }
    print("wake-ups per minute:", ", ".join(f"{name} {figure:.0f}" for name, figure in per_minute.items()))
    assert all(figure <= MOST_PER_MINUTE for figure in per_minute.values()), per_minute
