import json

import pytest
import torch
from torch import nn

from proteus import checkpoint
from proteus.checkpoint import CheckpointError


@pytest.fixture
def run():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def fresh():
    model = nn.Linear(3, 2)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def test_weights_and_optimizer_come_back_bit_for_bit(tmp_path, run):
    model, optimizer = run
    checkpoint.save(tmp_path, 7, model, optimizer, {"lr": 0.1})
    twin, twin_optimizer = fresh()
    assert checkpoint.load(tmp_path, twin, twin_optimizer, {"lr": 0.1}) == 7
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True)
    )
    ours, theirs = optimizer.state_dict(), twin_optimizer.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    for i, state in ours["state"].items():
        assert all(torch.equal(state[key], theirs["state"][i][key]) for key in state)


def test_the_newest_two_are_kept(tmp_path, run):
    for step in (1, 2, 3, 10):
        checkpoint.save(tmp_path, step, *run, {})
    assert sorted(p.name for p in (tmp_path / "checkpoint").iterdir()) == [
        "step-00000003",
        "step-00000010",
    ]


def test_no_pickle_is_written(tmp_path, run):
    folder = checkpoint.save(tmp_path, 1, *run, {})
    assert sorted(p.name for p in folder.iterdir()) == [
        "optimizer.safetensors",
        "state.json",
        "weights.safetensors",
    ]


def test_a_save_that_died_is_neither_used_nor_in_the_way(tmp_path, run, monkeypatch):
    checkpoint.save(tmp_path, 1, *run, {})

    def die(path):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "sync", die)
        with pytest.raises(OSError, match="No space"):
            checkpoint.save(tmp_path, 2, *run, {})
    assert checkpoint.newest(tmp_path).name == "step-00000001"
    checkpoint.save(tmp_path, 3, *run, {})
    assert not list((tmp_path / "checkpoint").glob(".tmp-*"))


def test_other_settings_are_named(tmp_path, run):
    checkpoint.save(tmp_path, 1, *run, {"lr": 0.1, "steps": 10})
    with pytest.raises(CheckpointError, match=r"steps was 10, is 20"):
        checkpoint.load(tmp_path, *fresh(), {"lr": 0.1, "steps": 20})


def test_another_model_is_refused(tmp_path, run):
    checkpoint.save(tmp_path, 1, *run, {})
    with pytest.raises(CheckpointError, match="another student"):
        checkpoint.load(tmp_path, nn.Linear(4, 2), run[1], {})


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_file_is_named(tmp_path, run, name):
    folder = checkpoint.save(tmp_path, 1, *run, {})
    (folder / name).write_bytes(b"{")
    with pytest.raises(CheckpointError, match="step-00000001 is damaged"):
        checkpoint.load(tmp_path, *fresh(), {})


class TestClaimFolder:
    def test_a_new_folder_is_made(self, tmp_path):
        checkpoint.claim_folder(tmp_path / "a/b", resume=False, overwrite=False)
        assert (tmp_path / "a/b").is_dir()

    def test_a_run_is_not_overwritten_by_accident(self, tmp_path):
        (tmp_path / "log.jsonl").write_text("{}\n")
        with pytest.raises(ValueError, match=r"already holds a run.*--resume.*--overwrite"):
            checkpoint.claim_folder(tmp_path, resume=False, overwrite=False)

    def test_overwrite_removes_the_run_and_nothing_else(self, tmp_path, run):
        checkpoint.save(tmp_path, 1, *run, {})
        (tmp_path / "log.jsonl").write_text("{}\n")
        (tmp_path / "mine.txt").write_text("keep")
        checkpoint.claim_folder(tmp_path, resume=False, overwrite=True)
        assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]

    def test_nothing_to_resume(self, tmp_path):
        with pytest.raises(CheckpointError, match="no checkpoint"):
            checkpoint.claim_folder(tmp_path, resume=True, overwrite=False)

    def test_resume_and_overwrite_exclude_each_other(self, tmp_path):
        with pytest.raises(ValueError, match="exclude"):
            checkpoint.claim_folder(tmp_path, resume=True, overwrite=True)

    def test_a_file_is_no_folder(self, tmp_path):
        (tmp_path / "f").write_text("")
        with pytest.raises(ValueError, match="is a file"):
            checkpoint.claim_folder(tmp_path / "f", resume=False, overwrite=False)


def test_settings_are_compared_as_json(tmp_path, run):
    checkpoint.save(tmp_path, 1, *run, {"size": (2, 3)})
    assert json.loads((checkpoint.newest(tmp_path) / "state.json").read_text())["step"] == 1
    checkpoint.load(tmp_path, *fresh(), {"size": (2, 3)})
