"""From measurements to what a step of any size takes."""

import pytest

from proteus.recipes.reckoning import Line, Reading, line_of, wall_of_a_step


def test_a_line_never_starts_below_zero_or_falls():
    assert line_of([4, 8], [1.0, 3.0]).start == 0
    falling = line_of([4, 8], [3.0, 2.0])
    assert falling.start == 0
    assert falling.each > 0
    assert Line(1.0, 0.5).at(4) == 3.0


def test_small_steps_weigh_as_much_as_large_ones():
    line = line_of([1, 10, 100], [1.1, 2.0, 11.0])
    assert line.at(1) == pytest.approx(1.1, rel=0.05)
    assert line.at(100) == pytest.approx(11.0, rel=0.05)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"workers": 0, "threads": 2, "cores": 2}, 1.0 + 0.8),  # one after the other
        ({"workers": 1, "threads": 1, "cores": 2}, 1.0),  # a core for each
        ({"workers": 1, "threads": 2, "cores": 2}, 1.0 + 0.4),  # both cores share both
        ({"workers": 8, "threads": 8, "cores": 8}, 1.0 + 0.1),
        ({"workers": 8, "threads": None, "cores": 8}, 1.0),  # an accelerator
    ],
)
def test_loading_and_the_step_share_the_cores_that_there_are(options, expected):
    assert wall_of_a_step(1.0, Reading(0.1, 0.1, 16), 8, **options) == pytest.approx(expected)


def test_a_slow_disk_makes_the_step_wait_and_takes_no_core():
    slow = Reading(seconds=1.0, cpu_seconds=0.1, images=16)
    assert wall_of_a_step(1.0, slow, 8, workers=2, threads=None, cores=4) == 4.0
    assert wall_of_a_step(1.0, slow, 8, workers=16, threads=None, cores=4) == 2.0
