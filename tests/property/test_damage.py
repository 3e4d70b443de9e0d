"""Whatever is done to a file of ours: it is told, and what is read is right or nothing."""

import copy
import json
import os
import random

import pytest
import torch

from proteus.evaluation import FeatureCache
from proteus.files import parse_json, seal, unseal
from proteus.recipes.by_path import read_recipe
from proteus.recipes.recipe import Recipe, to_json
from proteus.report.run_page import write_run_report
from proteus.training import checkpoint
from proteus.training.checkpoint import CheckpointError

STRANGE = [
    None, True, False, -1, 0, 3, 10**400, 1e308, -0.5, "", "3", "../../a",
    "\x00", "\udcff", "<script>alert(1)</script>", [], {}, [[]], [None], {"": {}},
    {"a": [1, {"b": None}]},
]  # fmt: skip
RAW = [
    b"", b"\0" * 64, b"\xff\xfe{}", b"{", b"null", b"[]", b'""', b"1e400", b"NaN", b"-Infinity",
    b"[" * 10_000, b"[" * 10_000 + b"]" * 10_000, b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    b"[" * 500 + b"]" * 500, b'{"step": 1, "step": 2}', b"9" * 10_000, b'{"step": 1e400}',
    b'{"a": "\xff"}', b"\xef\xbb\xbf{}", b'{"\\ud800": 1}',
]  # fmt: skip


def places(value, path=()):
    yield path
    items = {dict: dict.items, list: enumerate}.get(type(value), lambda _: ())(value)
    for key, inner in items:
        yield from places(inner, (*path, key))


def mutated(value, chance):
    """The same JSON with one place of it replaced, dropped, renamed or doubled."""
    whole = [copy.deepcopy(value)]
    path = chance.choice([p for p in places(value) if p])
    holder = whole[0]
    for key in path[:-1]:
        holder = holder[key]
    key = path[-1]
    match chance.randrange(4):
        case 0 if isinstance(holder, dict):
            holder[f"{key}x"] = holder.pop(key)
        case 1:
            del holder[key]
        case 2 if isinstance(holder[key], int | float):
            holder[key] += 1
        case _:
            holder[key] = chance.choice(STRANGE)
    return whole[0]


def flipped(content, chance):
    data = bytearray(content)
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def damages(content, seed, count):
    """Broken versions of a JSON file: raw bytes, flipped bits, cuts, and other valid JSON."""
    chance, value = random.Random(seed), json.loads(content)
    yield from RAW
    for _ in range(count):
        yield flipped(content, chance)
        yield content[: chance.randrange(len(content))]
        yield json.dumps(mutated(value, chance)).encode()
        without = {k: v for k, v in mutated(value, chance).items() if k != "digest"}
        yield json.dumps(without).encode()


def test_a_state_of_any_other_content_is_damage(tmp_path, caplog):
    tensors = {"weights": {"a": torch.ones(2)}, "optimizer": {"a/step": torch.ones(())}}
    options = {"settings": {"lr": 0.1, "size": [2, 3]}, "facts": {"scaler": {}, "logs": {}}}
    for step in (1, 2):
        folder = checkpoint.save(tmp_path, step, tensors, **options)
    good, file = checkpoint.load(tmp_path), folder / "state.json"
    content = file.read_bytes()
    for broken in damages(content, 0, 60):
        file.write_bytes(broken)
        found = checkpoint.load(tmp_path)
        same = json.loads(content) == _or_none(broken)
        unsealed = _unsealed(broken)  # as older ones are: nothing can be known but its shape
        assert found.step == 1 or same or unsealed, broken
        if found.step == 2 and not unsealed:
            assert (found.settings, found.facts) == (good.settings, good.facts)
        assert found.tensors.keys() == good.tensors.keys()


def _or_none(content):
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _unsealed(content):
    value = _or_none(content)
    return isinstance(value, dict) and "digest" not in value and value.get("step") == 2


def test_a_state_that_is_a_folder_or_a_pipe_is_damage(tmp_path):
    for step, make in ((1, None), (2, os.mkdir), (3, os.mkfifo)):
        folder = checkpoint.save(
            tmp_path, step, {"weights": {"a": torch.ones(2)}}, settings={}, keep=9
        )
        if make is not None:
            (folder / "state.json").unlink()
            make(folder / "state.json")
    assert checkpoint.load(tmp_path).step == 1


def test_a_recipe_of_any_content_is_read_or_refused_in_words(tmp_path):
    file = tmp_path / "run.json"
    content = json.dumps({"recipe": to_json(Recipe()), "images": {}}).encode()
    for broken in damages(content, 1, 40):
        file.write_bytes(broken)
        try:
            assert isinstance(read_recipe(tmp_path), Recipe)
        except ValueError as error:
            assert str(error).startswith("recipe"), error


def test_a_page_is_made_of_any_run_json_and_any_log(tmp_path):
    (tmp_path / "log.jsonl").touch()
    recipe = {"recipe": {"steps": 5, "loss": {"patch": 1.0}}, "versions": {"torch": "2"}}
    for broken in damages(json.dumps(recipe).encode(), 2, 10):
        (tmp_path / "run.json").write_bytes(broken)
        page = write_run_report(tmp_path).read_text(encoding="utf-8")
        assert page.count("<script") == 1  # the page's own
    chance, row = random.Random(3), {"step": 1, "total": 1.5, "lr": 0.1, "grad_norm": None}
    for number in range(3):
        rows = [json.dumps(mutated(row | {"step": n}, chance)).encode() for n in range(40)]
        for name in ("log", "timing", "watch"):
            (tmp_path / f"{name}.jsonl").write_bytes(b"\n".join([*rows, RAW[5 * number]]))
        page = write_run_report(tmp_path).read_text(encoding="utf-8")
        assert page.count("<script") == 1


def test_features_of_any_other_content_are_never_used(tmp_path, caplog):
    cache, chance = FeatureCache(tmp_path), random.Random(4)
    tensors = {"cls": torch.randn(6, 4), "labels": torch.arange(6), "patches": torch.randn(6, 4)}
    for part in (None, 0):
        cache.save("key", tensors, part)
        (file,) = tmp_path.rglob("*.safetensors")
        content = file.read_bytes()
        for number in range(150):
            broken = flipped(content, chance) if number % 3 else content[: chance.randrange(600)]
            file.write_bytes(broken)
            found = cache.load("key", part)
            assert found is None or all(torch.equal(found[k], tensors[k]) for k in tensors)
        assert "is damaged, and made again" in caplog.text
        file.unlink()


@pytest.mark.parametrize("content", RAW, ids=lambda content: repr(content[:20]))
def test_what_is_no_plain_json_is_a_value_error(content):
    if content in (b"null", b"[]", b'""', b'{"\\ud800": 1}'):  # JSON of another shape
        parse_json(content)
        with pytest.raises(ValueError, match="no checksum"):
            unseal(parse_json(content))
        return
    with pytest.raises(ValueError, match=r"\w"):
        parse_json(content)


def test_what_is_sealed_comes_back_and_nothing_else_does():
    data = {"a": [1, 2.5, None, "\udcff"], "b": {"c": -0.0}}
    text = seal(data)
    assert unseal(parse_json(text)) == data
    chance = random.Random(5)
    for _ in range(200):
        broken = flipped(text.encode(), chance)
        try:
            found = unseal(parse_json(broken))
        except ValueError:
            continue
        assert found == data
    with pytest.raises(ValueError, match="not JSON compliant"):
        seal({"a": float("nan")})


def test_no_checkpoint_left_is_an_error_in_words(tmp_path):
    folder = checkpoint.save(tmp_path, 1, {"weights": {"a": torch.ones(1)}}, settings={})
    (folder / "state.json").write_bytes(b"[" * 100_000)
    with pytest.raises(CheckpointError, match=r"none in .* is whole.*nested"):
        checkpoint.load(tmp_path)
