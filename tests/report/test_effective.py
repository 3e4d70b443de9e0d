import inspect
from dataclasses import asdict, replace

import pytest

from proteus.recipes.recipe import Recipe, to_json
from proteus.report.effective import settings_in_effect
from proteus.settings import Optimizer


def shown(recipe, **more):
    groups = settings_in_effect({"recipe": to_json(recipe)}, **more)
    return {title: dict(rows) for title, rows in groups}


def test_what_is_off_or_unset_is_left_out():
    found = shown(Recipe())
    assert "None" not in str(found) and "null" not in str(found)
    assert "Logits" not in found and "track" not in found["Machine"]
    assert found["Models"]["init"] == "random"
    assert "compile" not in found["Machine"]


def test_terms_have_the_weight_that_the_log_shows():
    assert "token" not in shown(Recipe())["Loss"]
    found = shown(Recipe(), active=["total", "token"])
    assert [found["Loss"][term] for term in ("token", "feature", "patch")] == ["1", "0", "0"]
    assert "Masks" not in found
    assert "Masks" in shown(Recipe(), active=["total", "patch"])


@pytest.mark.parametrize("schedule", ["cosine", "deit"])
def test_what_an_unset_field_means_is_what_the_code_does(schedule):
    from proteus.training import EpochSchedule

    base = Recipe()
    science = replace(base.science, optimizer=Optimizer(schedule=schedule))
    found = shown(replace(base, science=science))["Optimizer"]
    defaults = inspect.signature(EpochSchedule).parameters
    if schedule == "cosine":
        assert found["warmup"] == "0.05" and "min_lr" not in found
    else:
        assert "warmup" not in found
        for name, parameter in (
            ("warmup_epochs", "warmup_epochs"), ("warmup_lr", "warmup_rate"),
            ("min_lr", "min_rate"),
        ):  # fmt: skip
            assert float(found[name]) == defaults[parameter].default
    assert set(asdict(Optimizer())) >= set(found)


def test_any_json_is_shown_as_it_stands():
    facts = {"settings": {"a": {"b": {"c": [1, {"d": None}]}}, "e": True}, "versions": [], "x": 1}
    assert settings_in_effect(facts) == [
        ("A", [("b.c", '[1, {"d": null}]')]),
        ("Run", [("e", "true")]),
    ]
    assert settings_in_effect({"recipe": 3, "settings": None}) == []
