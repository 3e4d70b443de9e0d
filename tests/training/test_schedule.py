import itertools
import json
from pathlib import Path

import pytest

from proteus.training import EpochSchedule, learning_rate

GOLDEN = Path(__file__).parents[1] / "golden/07_schedules"
OFFICIAL = json.loads((GOLDEN / "lr_timm_1.0.31.json").read_text())["schedules"]


class TestLearningRate:
    def test_it_rises_to_the_peak_and_falls_to_a_hundredth(self):
        rates = [learning_rate(step, 200, 1.0, 0.05) for step in range(200)]
        assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
        assert max(rates) == 1.0
        assert rates[-1] == pytest.approx(0.01)
        assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
        assert rates[10 + 189 // 2] == pytest.approx(0.505, abs=0.01)

    @pytest.mark.parametrize("steps", [1, 2, 3])
    def test_short_runs_have_finite_positive_rates(self, steps):
        for step in range(steps):
            assert 0 < learning_rate(step, steps, 0.5) <= 0.5


@pytest.mark.parametrize("official", OFFICIAL, ids=lambda official: str(official["total_batch"]))
class TestAgainstTheAuthorsSchedule:
    def test_every_epoch_late_rate_is_the_one_their_loop_uses(self, official):
        steps = 7  # of an epoch: the rate stays the same during all of them
        schedule = EpochSchedule(
            official["peak_lr"], official["epochs"], steps, update="epoch_late"
        )
        for epoch, rate in enumerate(official["lr_used_in_epoch"]):
            for step in (epoch * steps, epoch * steps + steps - 1):
                assert schedule(step) == pytest.approx(rate, rel=0, abs=1e-12)

    def test_the_schedule_itself_is_timm_s(self, official):
        schedule = EpochSchedule(official["peak_lr"], official["epochs"], 1)
        for epoch, rate in enumerate(official["scheduler_function_of_t"]):
            assert schedule.at(epoch) == pytest.approx(rate, rel=0, abs=1e-12)


def test_with_a_rate_per_step_it_moves_within_the_epoch_and_meets_the_epochs_values():
    schedule = EpochSchedule(1e-3, epochs=20, steps_per_epoch=10)
    assert [schedule(10 * epoch) for epoch in range(20)] == [schedule.at(e) for e in range(20)]
    rising, falling = ([schedule(step) for step in steps] for steps in (range(50), range(50, 200)))
    assert all(a < b for a, b in itertools.pairwise(rising))
    assert all(a > b for a, b in itertools.pairwise(falling))


def test_it_can_do_without_warm_up_and_never_goes_below_its_end():
    schedule = EpochSchedule(1e-3, epochs=2, steps_per_epoch=5, warmup_epochs=0)
    assert schedule(0) == pytest.approx(1e-3)
    assert schedule(10) == schedule(99) == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"epochs": 0}, "epochs is out of range. Got 0"),
        ({"steps_per_epoch": 0}, "steps_per_epoch is out of range. Got 0"),
        ({"warmup_epochs": -1}, "warmup_epochs is out of range. Got -1"),
        ({"update": "late"}, "'late'"),
    ],
)
def test_what_no_schedule_can_be_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        EpochSchedule(**{"peak": 1e-3, "epochs": 3, "steps_per_epoch": 2} | options)
