"""The home choice keeps its hysteresis."""

import pytest

from tsnetpy.base.instant import SECOND, ms
from tsnetpy.derp.regions import DerpMap, DerpNode, DerpRegion, HomeChooser, stable_choice


def make_map(*regions: int, scores: dict[int, float] | None = None) -> DerpMap:
    return DerpMap({r: DerpRegion(r, nodes=(DerpNode(f"{r}a", r, "h"),)) for r in regions}, scores or {})


@pytest.mark.parametrize(
    ("first", "second", "home"),
    [
        ({1: 30, 2: 50}, {1: 30, 2: 29}, 1),  # gain under 10 ms
        ({1: 100, 2: 120}, {1: 100, 2: 80}, 1),  # more than two thirds of the old
        ({1: 100, 2: 120}, {1: 100, 2: 50}, 2),
        ({1: 30, 2: 50}, {2: 50}, 2),  # the old one did not answer
    ],
)
def test_hysteresis(first: dict[int, int], second: dict[int, int], home: int) -> None:
    chooser = HomeChooser()
    assert chooser.choose({r: ms(v) for r, v in first.items()}, make_map(1, 2), 0) == 1
    # Ten minutes later the first report has aged out.
    assert chooser.choose({r: ms(v) for r, v in second.items()}, make_map(1, 2), 600 * SECOND) == home


def test_old_home_stays_if_it_was_heard_although_stun_failed() -> None:
    chooser = HomeChooser()
    chooser.choose({1: ms(30)}, make_map(1, 2), 0)
    now = 20 * SECOND
    assert chooser.choose({2: ms(25)}, make_map(1, 2), now, heard_from_home_at=now - SECOND) == 1
    assert chooser.choose({2: ms(25)}, make_map(1, 2), now, heard_from_home_at=now - 9 * SECOND) == 2


def test_no_measurements_keep_the_home() -> None:
    chooser = HomeChooser()
    assert chooser.choose({}, make_map(1), 0) == 0
    chooser.choose({1: ms(30)}, make_map(1, 2), 0)
    assert chooser.choose({}, make_map(1, 2), SECOND) == 1
    assert chooser.choose({}, make_map(2), SECOND) == 0  # it left the map


def test_scores_and_unmeasured_regions() -> None:
    chooser = HomeChooser()
    assert chooser.choose({1: ms(50), 2: ms(60)}, make_map(1, 2, scores={2: 0.5}), 0) == 2
    hidden = DerpMap(
        {1: DerpRegion(1, nodes=(DerpNode("1a", 1, "h"),), no_measure_no_home=True), **make_map(2).regions}
    )
    assert HomeChooser().choose({1: ms(1), 2: ms(60)}, hidden, 0) == 2


def test_stable_choice_depends_on_the_seed_only() -> None:
    derp_map = make_map(1, 2, 3)
    assert stable_choice(derp_map, b"\0\0\0\1") == stable_choice(derp_map, b"\0\0\0\1") == 2
    assert {stable_choice(derp_map, bytes((0, 0, 0, i))) for i in range(3)} == {1, 2, 3}
    assert stable_choice(DerpMap(), b"") == 0
