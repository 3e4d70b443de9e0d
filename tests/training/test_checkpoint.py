import json
import logging
import os
import shutil
import subprocess

import pytest
import torch

from proteus.training import checkpoint
from proteus.training.checkpoint import CheckpointError


@pytest.fixture
def tensors():
    return {
        "weights": {"weight": torch.randn(3, 2), "bias": torch.randn(3)},
        "optimizer": {"weight/exp_avg": torch.randn(3, 2), "weight/step": torch.tensor(4.0)},
    }


def test_tensors_and_facts_come_back_bit_for_bit(tmp_path, tensors):
    checkpoint.save(tmp_path, 7, tensors, settings={"lr": 0.1}, facts={"scaler": {"scale": 2.0}})
    found = checkpoint.load(tmp_path)
    assert (found.step, found.settings, found.facts) == (
        7, {"lr": 0.1}, {"scaler": {"scale": 2.0}},
    )  # fmt: skip
    assert found.tensors.keys() == tensors.keys()
    for name, named in tensors.items():
        assert found.tensors[name].keys() == named.keys()
        assert all(torch.equal(found.tensors[name][key], named[key]) for key in named)


@pytest.mark.parametrize(("keep", "left"), [(1, [10]), (2, [3, 10]), (9, [1, 2, 3, 10])])
def test_the_newest_few_are_kept(tmp_path, tensors, keep, left):
    for step in (1, 2, 3, 10):
        checkpoint.save(tmp_path, step, tensors, settings={}, keep=keep)
    names = sorted(p.name for p in (tmp_path / "checkpoint").iterdir())
    assert names == [f"step-{step:08d}" for step in left]


def test_no_pickle_is_written(tmp_path, tensors):
    folder = checkpoint.save(tmp_path, 1, tensors, settings={})
    assert sorted(p.name for p in folder.iterdir()) == [
        "optimizer.safetensors",
        "state.json",
        "weights.safetensors",
    ]


def test_a_save_that_fails_leaves_no_trace_and_is_not_in_the_way(tmp_path, tensors, monkeypatch):
    checkpoint.save(tmp_path, 1, tensors, settings={})

    def die(path):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "sync", die)
        with pytest.raises(OSError, match="No space"):
            checkpoint.save(tmp_path, 2, tensors, settings={})
    assert [p.name for p in (tmp_path / "checkpoint").iterdir()] == ["step-00000001"]
    checkpoint.save(tmp_path, 3, tensors, settings={})
    assert checkpoint.load(tmp_path).step == 3


@pytest.fixture
def small_disk(tmp_path):
    """Mounts an empty disk of so many KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size):
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", folder]
        if shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
            pytest.skip("no file system may be mounted here")
        return folder

    yield mount
    while os.path.ismount(folder):
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("size", range(200, 1000, 80))
def test_on_a_disk_of_any_size_what_is_there_is_whole(small_disk, size):
    disk = small_disk(size)
    tensors = {"weights": {"a": torch.randn(30_000)}, "optimizer": {"b": torch.randn(60_000)}}
    saved = 0
    for step in (1, 2, 3):
        try:
            checkpoint.save(disk, step, tensors, settings={}, keep=1)
            saved = step
        except OSError:
            pass
    names = [path.name for path in (disk / "checkpoint").iterdir()]
    assert names == ([f"step-{saved:08d}"] if saved else [])
    if saved:
        found = checkpoint.load(disk)
        assert torch.equal(found.tensors["optimizer"]["b"], tensors["optimizer"]["b"])
    assert saved in ((0,) if size < 360 else (1,) if size < 720 else (3,))


def test_what_a_killed_save_left_is_removed_by_the_next(tmp_path, tensors):
    (tmp_path / "checkpoint/.tmp-123").mkdir(parents=True)
    (tmp_path / "checkpoint/.tmp-123/weights.safetensors").write_bytes(b"half")
    assert checkpoint.newest(tmp_path) is None
    checkpoint.save(tmp_path, 3, tensors, settings={})
    assert not list((tmp_path / "checkpoint").glob(".tmp-*"))


def test_tensors_that_share_memory_are_saved_whole(tmp_path):
    tied = torch.randn(4, 3)
    tensors = {"weights": {"a": tied, "b": tied, "row": tied[1], "turned": tied.T}}
    checkpoint.save(tmp_path, 1, tensors, settings={})
    found = checkpoint.load(tmp_path).tensors["weights"]
    assert all(torch.equal(found[name], t) for name, t in tensors["weights"].items())


def test_later_damaged_checkpoints_are_set_aside_and_not_counted(tmp_path, tensors):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, tensors, settings={}, keep=9)
    flip_a_bit(tmp_path / "checkpoint/step-00000003/weights.safetensors")
    checkpoint.set_aside_after(tmp_path, checkpoint.load(tmp_path).step)
    assert checkpoint.newest(tmp_path).name == "step-00000002"
    assert (tmp_path / "checkpoint/damaged-step-00000003/state.json").exists()
    checkpoint.set_aside_after(tmp_path, 1)
    checkpoint.save(tmp_path, 2, tensors, settings={}, keep=1)
    checkpoint.set_aside_after(tmp_path, 1)  # a second one of the same step
    names = sorted(path.name for path in (tmp_path / "checkpoint").iterdir())
    assert names == ["damaged-step-00000002", "damaged-step-00000003"]


def test_other_settings_are_named(tmp_path, tensors):
    checkpoint.save(tmp_path, 1, tensors, settings={"lr": 0.1, "steps": 10})
    with pytest.raises(CheckpointError, match=r"steps was 10, is 20"):
        checkpoint.check_settings(checkpoint.load(tmp_path), {"lr": 0.1, "steps": 20})


def test_settings_are_compared_as_json(tmp_path, tensors):
    checkpoint.save(tmp_path, 1, tensors, settings={"size": (2, 3)})
    checkpoint.check_settings(checkpoint.load(tmp_path), {"size": (2, 3)})


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "a flipped bit": flip_a_bit,
    "a cut file": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "an empty file": lambda path: path.write_bytes(b""),
    "a missing file": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, tensors, name, damage, caplog):
    checkpoint.save(tmp_path, 1, tensors, settings={})
    folder = checkpoint.save(tmp_path, 2, tensors, settings={})
    DAMAGES[damage](folder / name)
    with caplog.at_level(logging.WARNING, logger="proteus"):
        assert checkpoint.load(tmp_path).step == 1
    assert "step-00000002 is damaged" in caplog.text
    # The run goes on and reaches that step again.
    checkpoint.save(tmp_path, 2, tensors, settings={})
    assert checkpoint.load(tmp_path).step == 2


@pytest.mark.parametrize("text", ["", "{", "{}", "[]"])
def test_a_state_file_that_says_nothing_is_damage(tmp_path, tensors, text):
    for step in (1, 2):
        folder = checkpoint.save(tmp_path, step, tensors, settings={})
    (folder / "state.json").write_text(text)
    assert checkpoint.load(tmp_path).step == 1


SHAPES = {
    "sha256": [{}, [], None, {"../state.json": "0" * 64}, {"weights.safetensors": 1}],
    "settings": [None, [], "x"],
    "facts": [None, 3],
    "step": [-1, True, 1e400, "2", 2.0, None, 10**300],
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k in SHAPES for v in SHAPES[k]])
def test_a_state_of_another_shape_is_damage_in_an_old_checkpoint_too(tmp_path, tensors, key, value):
    for step in (1, 2):
        folder = checkpoint.save(tmp_path, step, tensors, settings={})
    state = json.loads((folder / "state.json").read_text())
    del state["digest"]
    (folder / "state.json").write_text(json.dumps(state | {key: value}))
    assert checkpoint.load(tmp_path).step == 1


def test_one_wrong_digit_of_a_state_is_damage(tmp_path, tensors, caplog):
    for step in (10, 12):
        folder = checkpoint.save(tmp_path, step, tensors, settings={"lr": 0.25}, facts={"a": 1})
    state = (folder / "state.json").read_text()
    for right, wrong in (('"step": 12', '"step": 10'), ("0.25", "0.75"), ('"a": 1', '"a": 2')):
        (folder / "state.json").write_text(state.replace(right, wrong))
        assert checkpoint.load(tmp_path).step == 10
        assert "step-00000012 is damaged" in caplog.text
        caplog.clear()
    (folder / "state.json").write_text(state)
    assert checkpoint.load(tmp_path).step == 12


def test_a_checkpoint_from_before_its_state_was_sealed_loads(tmp_path, tensors, caplog):
    folder = checkpoint.save(tmp_path, 3, tensors, settings={"lr": 0.1}, facts={"scaler": {}})
    state = json.loads((folder / "state.json").read_text())
    del state["digest"]
    (folder / "state.json").write_text(json.dumps(state, indent=2) + "\n")
    found = checkpoint.load(tmp_path)
    assert (found.step, found.settings, found.facts) == (3, {"lr": 0.1}, {"scaler": {}})
    assert not caplog.records


def test_a_renamed_checkpoint_is_damage(tmp_path, tensors):
    for step in (1, 2):
        folder = checkpoint.save(tmp_path, step, tensors, settings={})
    folder.rename(folder.with_name("step-00000009"))
    assert checkpoint.load(tmp_path).step == 1


def test_what_else_lies_among_checkpoints_is_passed_over_and_makes_room(tmp_path, tensors):
    good = checkpoint.save(tmp_path, 1, tensors, settings={})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine").write_text("keep")
    (good.parent / "step-00000002").write_text("a file")
    (good.parent / "step-00000003").symlink_to(elsewhere)
    (good.parent / "step-none").mkdir()
    (good.parent / "step-00000004").symlink_to(tmp_path / "nowhere")
    (good.parent / ".tmp-5").symlink_to(elsewhere)
    assert checkpoint.load(tmp_path).step == 1
    checkpoint.set_aside_after(tmp_path, 1)
    for _ in range(2):
        for step in (2, 3):
            checkpoint.save(tmp_path, step, tensors, settings={}, keep=1)
        checkpoint.set_aside_after(tmp_path, 2)
    assert (elsewhere / "mine").read_text() == "keep"


def test_checkpoints_are_in_the_order_of_their_numbers(tmp_path, tensors):
    for step in (99_999_999, 100_000_000):
        checkpoint.save(tmp_path, step, tensors, settings={})
    assert checkpoint.load(tmp_path).step == 100_000_000


def test_with_nothing_whole_every_damage_is_named(tmp_path, tensors):
    for step in (1, 2):
        folder = checkpoint.save(tmp_path, step, tensors, settings={})
        flip_a_bit(folder / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"none.*is whole.*step-00000002.*step-00000001"):
        checkpoint.load(tmp_path)


def test_a_setting_that_stands_twice_is_said_once(tmp_path, tensors):
    settings = {"steps": 6, "recipe": {"science": {"data": {"steps": 6, "augment": "crop"}}}}
    checkpoint.save(tmp_path, 2, tensors, settings=settings)
    now = {"steps": 5, "recipe": {"science": {"data": {"steps": 5, "augment": "none"}}}}
    with pytest.raises(CheckpointError) as caught:
        checkpoint.check_settings(checkpoint.load(tmp_path), now)
    said = str(caught.value)
    assert "recipe.science.data.augment was 'crop', is 'none'; steps was 6, is 5." in said
    assert "data.steps" not in said
