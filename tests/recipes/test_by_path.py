import json

import pytest

from proteus.recipes import (
    RUNS,
    Data,
    Logits,
    Loss,
    Masks,
    Models,
    Recipe,
    Science,
    from_json,
    read_recipe,
    recipe,
    to_json,
    with_settings,
)
from proteus.recipes.by_path import flatten, parse_setting
from proteus.recipes.launch import build


@pytest.mark.parametrize("preset", ["paper", "official"])
@pytest.mark.parametrize("name", RUNS)
def test_json_and_back_is_the_same_recipe(name, preset):
    found = recipe(name, preset)
    assert from_json(json.loads(json.dumps(to_json(found)))) == found


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("science.loss.patch=0", 0.0),
        ("science.loss.patch=null", None),
        ("science.masks.ratio=[0.1,0.5]", (0.1, 0.5)),
        ("science.masks.ratio=0.3", 0.3),
        ("science.model.teacher=dinov2_vitb14", "dinov2_vitb14"),
        ('science.data.paths=["a","b"]', ("a", "b")),
        ("science.model.student_layers=[-2,-1]", (-2, -1)),
        ("science.seed=7", 7),
        ("machine.compile=true", True),
        ("science.optimizer.undecayed=[]", ()),
    ],
)
def test_a_setting_by_path(line, value):
    path = line.partition("=")[0]
    changed = to_json(with_settings(Recipe(), [line]))
    assert flatten(changed)[path] == value
    assert {**flatten(changed), path: 0} == {**flatten(to_json(Recipe())), path: 0}


def test_settings_that_only_fit_together_are_set_together():
    found = with_settings(
        recipe("s14-dinov2-b14"), {"science.data.epochs": None, "science.data.steps": 5}
    )
    assert (found.science.data.epochs, found.science.data.steps) == (None, 5)


def test_the_first_setting_of_logits_opens_the_group():
    found = with_settings(Recipe(), ["science.logits.classifier=head.pth", "science.logits.kl=1"])
    assert found.science.logits.classifier == "head.pth"
    with pytest.raises(ValueError, match="classifier"):
        with_settings(Recipe(), ["science.logits.kl=1"])
    with pytest.raises(ValueError, match=r"logits\.classifier would be ignored.*kl is 0"):
        with_settings(Recipe(), ["science.logits.kl=0", "science.logits.classifier=head.pth"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("science.loss.pach=0", r"science\.loss\.pach.*science\.loss\.patch"),
        ("loss.patch=0", r"mean science\.loss\.patch"),
        ("science.loss.patch", "PATH=VALUE"),
        ("science.loss.patch=much", r"patch='much'; expected"),
        ("science.masks.strategy=blocks", r"'blocks'; expected one of 'random', 'block'"),
        ("science.seed=1.5", r"seed=1\.5; expected int"),
        ("machine.compile=1", r"compile=1; expected bool"),
        ("science.masks.ratio=[0.1]", "ratio"),
        ("science.data.proxy=merged", "proxy='merged'"),
        ("science.optimizer.warmup_epochs=5", "would be ignored"),
        ("machine.watch_every=5", "would be ignored"),
        ("science.logits.colour=red", "colour"),
    ],
)
def test_what_cannot_be_is_refused_with_a_hint(line, message):
    with pytest.raises(ValueError, match=message):
        with_settings(Recipe(), [line])


def test_settings_that_would_be_ignored_are_refused():
    with pytest.raises(ValueError, match=r"science\.masks would be ignored"):
        Recipe(science=Science(loss=Loss(patch=0), masks=Masks("block")))
    layers = Models(student_layers=(-2,))
    for unused in ({"loss": Loss(feature=0, patch=0)}, {"logits": Logits(kl=0)}):
        with pytest.raises(ValueError, match=r"student_layers would be ignored, because no term"):
            Recipe(science=Science(model=layers, **unused))
    assert Recipe(science=Science(model=layers, loss=Loss(patch=0))).science.model == layers
    with pytest.raises(ValueError, match="more than once"):
        Recipe(science=Science(data=Data(steps=1, epochs=1)))
    with pytest.raises(ValueError, match=r"science\.optimizer\.warmup would be ignored"):
        with_settings(recipe("s14-dinov2-b14"), ["science.optimizer.warmup=0.1"])


def test_a_path_in_place_of_a_name_is_told_where_it_goes(tmp_path):
    with pytest.raises(ValueError, match=r"unknown name.*--from"):
        recipe(str(tmp_path))


def test_unknown_names_and_presets_offer_the_nearest():
    with pytest.raises(ValueError, match="mean s14-dinov2-b14"):
        recipe("s14-dinov2-b41")
    with pytest.raises(ValueError, match="paper, official"):
        recipe("s14-dinov2-b14", "offical")


def test_a_run_s_file_is_read_from_its_folder_and_a_broken_one_is_named(tmp_path):
    found = recipe("b14-clip-l14")
    (tmp_path / "run.json").write_text(json.dumps({"recipe": to_json(found), "versions": {}}))
    assert read_recipe(tmp_path) == read_recipe(tmp_path / "run.json") == found
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json cannot be read"):
        read_recipe(tmp_path)
    (tmp_path / "run.json").write_text("[1]")
    with pytest.raises(ValueError, match="expected an object"):
        read_recipe(tmp_path)


@pytest.mark.parametrize("value", ["[" * 100_000, "NaN", "-Infinity", "1e400", '{"a": 1, "a": 2}'])
def test_a_setting_that_is_no_json_is_text_and_refused_where_numbers_stand(value):
    assert parse_setting(f"a={value}") == ("a", value)
    with pytest.raises(ValueError, match=r"recipe: wrong type\. Got recipe\.science\.loss\.patch"):
        with_settings(Recipe(), [f"science.loss.patch={value}"])


@pytest.mark.parametrize(
    "content",
    ["", "null", "[]", '"x"', '{"recipe": null}', '{"recipe": []}', '{"recipe": {"science": 3}}',
     '{"recipe": {"science": {"seed": ' + "9" * 400 + ".0}}}", "[" * 100_000,
     '{"recipe": {"science": {"loss": {"patch": ' + "9" * 4000 + "}}}}"],
    ids=lambda content: content[:30],
)  # fmt: skip
def test_a_run_json_of_another_shape_is_an_error_in_words(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"^recipe: "):
        read_recipe(tmp_path)


def test_the_paper_s_runs_keep_their_size_whatever_the_default():
    assert {recipe(name, preset).science.model.image_size
            for name in RUNS for preset in ("paper", "official")} == {224}  # fmt: skip
    assert Recipe().science.model.image_size is None
    old = to_json(with_settings(Recipe(), {"science.model.image_size": 224}))
    assert from_json(old).science.model.image_size == 224


def test_losses_by_name_reach_the_loss_and_unset_ones_no_checkpoint():
    models = {"science.model.teacher": "demo-teacher", "science.model.student": "demo-student"}
    settings = {"targets": "phi_s", "token_distance": "queue", "queue_size": 8, "temperature": 0.1}
    recipe = with_settings(
        Recipe(), models | {f"science.loss.{name}": value for name, value in settings.items()}
    )
    loss = build(recipe).loss
    assert {name: vars(loss)[name] for name in settings} == settings
    assert build(recipe).describe()["loss"].items() >= settings.items()
    plain = build(with_settings(Recipe(), models))
    assert plain.describe()["loss"].keys().isdisjoint(settings)
    with pytest.raises(ValueError, match=r"recipe: science.loss.temperature is out of range"):
        with_settings(recipe, {"science.loss.temperature": 0})
    with pytest.raises(ValueError, match="token_distance"):
        with_settings(recipe, {"science.loss.token_distance": "huber"})
