"""A run's cost, known beforehand."""

import pytest

from proteus.recipes import Recipe, with_settings
from proteus.recipes.planning import plan

TINY = {
    "science.model.teacher": "vit_tiny_patch16_224",
    "science.model.student": "test_resnet",
    "science.model.image_size": 32,
    "science.data.batch_size": 8,
    "machine.device": "cpu",
    "machine.workers": 0,
}


def tiny(**settings):
    named = {name.replace("__", "."): value for name, value in settings.items()}
    return with_settings(Recipe(), {**TINY, **named})


def test_a_run_on_this_machine_is_measured():
    found = plan(tiny(science__data__epochs=3), set_size=81, seconds=1)
    (one,) = found.estimates
    assert (one.measured, one.steps) == (True, 3 * 10)
    assert one.seconds == pytest.approx(sum(one.parts.values()))
    assert one.parts["steps"] == pytest.approx(30 * one.step_seconds)
    assert one.best in [batch.images for batch in one.batches]
    assert found.images == 240
    assert found.steps[0].images == 4
    assert "generated" in found.read_from
    assert set(found.target_bytes) == {"all/fp16", "all/int8", "cls/fp16"}


def test_a_card_is_reckoned_from_both_shares_and_two_take_half():
    one = plan(tiny(science__data__steps=100), ["H100"], seconds=1)
    two = plan(tiny(science__data__steps=100), ["2xH100"], seconds=1)
    fast, slow = one.estimates
    assert fast.seconds < slow.seconds
    assert two.estimates[0].seconds == pytest.approx(fast.seconds / 2)
    assert "assumed" in fast.source
    assert "measured on H100" in slow.source
    assert not one.steps


def test_half_precision_has_another_peak():
    words = ["A100"]
    full = plan(tiny(science__data__steps=10), words, seconds=1).estimates[0]
    half = plan(tiny(science__data__steps=10, science__optimizer__precision="bf16"), words,
                seconds=1).estimates[0]  # fmt: skip
    assert full.seconds / half.seconds == pytest.approx(312 / 19.5)
    assert half.memory < full.memory


def test_epochs_need_the_number_of_images():
    with pytest.raises(ValueError, match="how many images are there"):
        plan(tiny(science__data__epochs=3), ["H100"], seconds=1)
    with pytest.raises(ValueError, match="too few images for one batch"):
        plan(tiny(science__data__epochs=3), ["H100"], set_size=7, seconds=1)
