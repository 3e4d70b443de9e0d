import copy
import json
import math
import os
import signal

import pytest
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import proteus
from conftest import vit
from proteus.features import ShapeError
from proteus.training import NonFiniteLossError, RunStopped, World, checkpoint, compare
from proteus.training import folder as training_folder
from proteus.training.checkpoint import CheckpointError

QUIET = {"device": "cpu", "progress": False}


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(5)
    return [torch.rand(4, 3, 32, 32, generator=generator) for _ in range(3)]


@pytest.fixture
def without_results(monkeypatch):
    """Pictures take most of the time of runs this small."""
    monkeypatch.setattr("proteus.training.loop.write_results", lambda *_: None)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_it_trains_and_writes_everything(distiller, batches, tmp_path):
    rows = distiller.fit(batches, steps=40, lr=3e-3, out=tmp_path, save_every=16, **QUIET)
    assert rows[-1]["total"] < rows[0]["total"]
    assert sorted(rows[0]) == sorted(
        ["step", "total", "token", "feature", "patch", "lr", "grad_norm"]
    )
    assert rows_of(tmp_path) == rows
    assert [row["step"] for row in rows] == list(range(40))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint", "curves.png", "log.jsonl", "masks.png", "pca.png", "timing.jsonl",
    ]  # fmt: skip  # no export: the student is no named timm model
    assert distiller.student.training


def test_a_named_student_is_exported(teacher, batches, tmp_path):
    student = proteus.Student("vit_tiny_patch16_224", image_size=32)
    loss = proteus.ProteusLoss(192, 36, feature=0, patch=0)
    distiller = proteus.Distiller(teacher, student, loss)
    distiller.fit(batches, steps=1, out=tmp_path, **QUIET)
    config = json.loads((tmp_path / "export/config.json").read_text())
    assert config["proteus"]["teacher"] == "VisionTransformer"


@pytest.mark.parametrize("kind", ["tuples", "dataloader", "uint8"])
def test_what_data_may_be(distiller, batches, kind):
    data = {
        "tuples": [(batch, "label") for batch in batches],
        "dataloader": DataLoader(TensorDataset(torch.cat(batches)), batch_size=4),
        "uint8": [(batch * 255).byte() for batch in batches],
    }[kind]
    assert len(distiller.fit(data, epochs=2, **QUIET)) == 6


def test_the_same_seed_gives_the_same_run_and_another_seed_another(distiller, batches):
    runs = [
        copy.deepcopy(distiller).fit(batches, steps=4, seed=seed, **QUIET) for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("stop", [1, 4, 6])
@pytest.mark.usefixtures("without_results")
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(
    distiller, batches, tmp_path, caplog, stop
):
    dying, whole = copy.deepcopy(distiller), copy.deepcopy(distiller)
    start = copy.deepcopy(distiller)
    options = {"steps": 9, "lr": 3e-3, "save_every": 2, **QUIET}
    expected = whole.fit(batches, out=tmp_path / "whole", **options)

    class DiesError(Exception):
        pass

    def until(count):
        for number in range(100):
            if number == count:
                raise DiesError
            yield batches[number % 3]

    with pytest.raises(DiesError):
        dying.fit(until(stop), out=tmp_path / "run", **options)
    rows = start.fit(batches, out=tmp_path / "run", resume=True, **options)
    # After one step there is no checkpoint yet: it starts again, and says so.
    assert ("starts again" in caplog.text) == (stop == 1)
    assert rows == expected == rows_of(tmp_path / "run")
    for ours, theirs in zip(start.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_finished_run_can_be_resumed_and_does_nothing_more(distiller, batches, tmp_path):
    first = distiller.fit(batches, steps=3, out=tmp_path, **QUIET)
    again = distiller.fit(batches, steps=3, out=tmp_path, resume=True, **QUIET)
    assert again == first


@pytest.mark.usefixtures("without_results")
def test_resuming_with_other_settings_names_them(distiller, batches, tmp_path):
    distiller.fit(batches, steps=2, out=tmp_path, **QUIET)
    with pytest.raises(CheckpointError, match=r"lr was 0\.001, is 0\.1"):
        distiller.fit(batches, steps=2, lr=0.1, out=tmp_path, resume=True, **QUIET)


@pytest.mark.usefixtures("without_results")
def test_a_folder_with_a_run_is_not_touched(distiller, batches, tmp_path):
    distiller.fit(batches, steps=2, out=tmp_path, **QUIET)
    before = (tmp_path / "log.jsonl").read_text()
    with pytest.raises(ValueError, match="already holds a run"):
        distiller.fit(batches, steps=2, out=tmp_path, **QUIET)
    assert (tmp_path / "log.jsonl").read_text() == before
    with pytest.raises(ValueError, match="clip_grad"):  # what cannot start replaces nothing
        distiller.fit(batches, steps=1, out=tmp_path, overwrite=True, clip_grad=-1.0, **QUIET)
    assert (tmp_path / "log.jsonl").read_text() == before
    distiller.fit(batches, steps=1, out=tmp_path, overwrite=True, **QUIET)
    assert len(rows_of(tmp_path)) == 1


def test_a_nan_stops_the_run_and_names_step_term_and_last_good_checkpoint(
    distiller, batches, tmp_path
):
    data = [*batches, batches[0].clone(), *batches]
    data[3][0, 0, 0, 0] = math.nan
    with pytest.raises(
        NonFiniteLossError, match=r"token and feature and patch loss.*at step 3\..*step-00000002"
    ):
        distiller.fit(data, steps=7, out=tmp_path, save_every=2, **QUIET)
    assert [row["step"] for row in rows_of(tmp_path)] == [0, 1, 2]
    kept = [p.name for p in (tmp_path / "checkpoint").iterdir()]
    assert kept == ["step-00000002"]
    assert not (tmp_path / "export").exists()


def test_a_single_bad_term_is_named_alone(distiller, batches):
    with torch.no_grad():
        distiller.loss.patch_head.linear.bias.fill_(math.inf)
    with pytest.raises(NonFiniteLossError, match=r"the patch loss.*step 0.*No checkpoint"):
        distiller.fit(batches, steps=2, **QUIET)


@pytest.mark.parametrize("length", [{}, {"steps": 2, "epochs": 1}])
def test_exactly_one_length_is_needed(distiller, batches, length):
    with pytest.raises(ValueError, match="exactly one of steps and epochs"):
        distiller.fit(batches, **length, **QUIET)


def test_data_that_cannot_be_used_is_refused(distiller, batches):
    with pytest.raises(ValueError, match="length"):
        distiller.fit(iter(batches), epochs=1, **QUIET)
    with pytest.raises(ValueError, match=r"steps is out of range\. Got 0"):
        distiller.fit(batches, steps=0, **QUIET)
    with pytest.raises(ValueError, match="ran out"):
        distiller.fit(iter(batches), steps=5, **QUIET)
    with pytest.raises(ValueError, match="str"):
        distiller.fit(["image.jpg"], steps=1, **QUIET)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"save_every": 0}, "save_every is out of range. Got 0"),
        ({"keep": 0}, "keep is out of range. Got 0"),
        ({"keep": -1}, "keep is out of range. Got -1"),
        ({"warmup": 1.0}, "warmup is out of range. Got 1.0"),
        ({"warmup": -0.1}, "warmup is out of range. Got -0.1"),
        ({"warmup": 0.1, "lr": lambda step: 1e-3}, "warmup would be ignored"),
        ({"details": {"data": object}}, "details must be JSON-able"),
        ({"resume": True, "overwrite": True}, "exclude each other"),
        ({"resume": "auto", "overwrite": True}, "exclude each other"),
    ],
)
def test_settings_that_cannot_be_kept_are_refused_before_any_work(
    distiller, batches, tmp_path, options, match
):
    before = copy.deepcopy(distiller.state_dict())
    with pytest.raises(ValueError, match=match):
        distiller.fit(batches, steps=2, out=tmp_path, **options, **QUIET)
    assert not list(tmp_path.iterdir())
    assert all(torch.equal(t, before[name]) for name, t in distiller.state_dict().items())


@pytest.mark.usefixtures("without_results")
@pytest.mark.parametrize(
    ("save_every", "keep", "kept"),
    [(100, 3, [10, 25]), (4, 9, [4, 8, 12, 16, 20, 24, 25]), (100, 1, [25]), (10, 9, [10, 20, 25])],
)
def test_a_first_checkpoint_comes_early(distiller, batches, tmp_path, *, save_every, keep, kept):
    options = {"steps": 25, "save_every": save_every, "keep": keep, **QUIET}
    distiller.fit(batches, out=tmp_path, **options)
    names = sorted(path.name for path in (tmp_path / "checkpoint").iterdir())
    assert names == [f"step-{step:08d}" for step in kept]


@pytest.mark.usefixtures("without_results")
@pytest.mark.parametrize("out", [False, True])
def test_ctrl_c_saves_after_the_step_and_says_by_whom(distiller, batches, tmp_path, out):
    def pressed(step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return 1e-3

    folder = tmp_path / "run" if out else None
    with pytest.raises(RunStopped, match="Stopped by Ctrl-C after 3 of 9 steps") as stopped:
        distiller.fit(batches, steps=9, lr=pressed, out=folder, **QUIET)
    assert stopped.value.by is signal.SIGINT
    assert ("saved in" in str(stopped.value)) == out
    assert (tmp_path / "run/checkpoint/step-00000003").is_dir() == out


@pytest.mark.parametrize(
    "options",
    [
        {"warmup": 3.0}, {"details": {"data": object}}, {"resume": True}, {"parallel": "fsdp"},
        {"precision": "int4"}, {"seed": "a"}, {"epochs": 2},
    ],
)  # fmt: skip
def test_a_start_that_fails_leaves_no_folder(distiller, batches, tmp_path, options):
    with pytest.raises(ValueError, match=r"Got|needs"):
        distiller.fit(batches, steps=2, out=tmp_path / "new/run", **options, **QUIET)
    with pytest.raises(ValueError, match="tuple that starts with one"):  # at the first batch
        distiller.fit(["image.jpg"], steps=2, out=tmp_path / "new/run", **QUIET)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("without_results")
def test_a_run_goes_on_with_the_same_objective_only(distiller, batches, tmp_path):
    distiller.fit(batches, steps=2, out=tmp_path, **QUIET)
    teacher, student = distiller.teacher, distiller.student
    other = proteus.ProteusLoss(student.embed_dim, teacher.embed_dim, patch=2.0)
    with pytest.raises(CheckpointError, match=r"Got loss\.patch was 1\.0, is 2\.0\. Resume"):
        proteus.Distiller(teacher, student, other).fit(
            batches, steps=2, out=tmp_path, resume=True, **QUIET
        )
    masks = proteus.MaskGenerator(student.grid, strategy="block")
    with pytest.raises(CheckpointError, match=r"Got masks\.strategy was 'random', is 'block'\."):
        proteus.Distiller(teacher, student, masks=masks).fit(
            batches, steps=2, out=tmp_path, resume=True, **QUIET
        )


@pytest.mark.usefixtures("without_results")
def test_a_run_goes_on_with_the_same_teacher_only(distiller, batches, tmp_path):
    distiller.fit(batches, steps=2, out=tmp_path, **QUIET)
    with torch.no_grad():
        distiller.teacher.backbone.norm.bias += 1  # another file under the same name
    with pytest.raises(CheckpointError, match="teacher_digest was"):
        distiller.fit(batches, steps=2, out=tmp_path, resume=True, **QUIET)


@pytest.mark.usefixtures("without_results")
def test_a_run_goes_on_where_positions_are_resampled_to_other_last_bits(
    distiller, batches, tmp_path
):
    rows = distiller.fit(batches, steps=2, out=tmp_path, **QUIET)
    with torch.no_grad():
        positions = distiller.teacher.backbone.pos_embed
        positions.copy_(positions.nextafter(positions + 1))
    assert distiller.fit(batches, steps=2, out=tmp_path, resume=True, **QUIET) == rows


class TestAfterARestartByTorchrun:
    """It starts the same command again, with a number: the run goes on, whatever was asked for."""

    @pytest.fixture(autouse=True)
    def _restarted(self, monkeypatch):
        monkeypatch.setattr(training_folder, "_launch", lambda: "this one")
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")

    def test_what_was_saved_is_gone_on_with(self, distiller, batches, tmp_path, monkeypatch):
        with monkeypatch.context() as first:
            first.setenv("TORCHELASTIC_RESTART_COUNT", "0")
            expected = distiller.fit(batches, steps=3, out=tmp_path, **QUIET)
        for asked in ({}, {"overwrite": True}, {"resume": True}):
            assert distiller.fit(batches, steps=3, out=tmp_path, **asked, **QUIET) == expected

    def test_with_nothing_saved_it_starts_anew(self, distiller, batches, tmp_path):
        (tmp_path / "log.jsonl").write_text('{"step": 0}\n')
        (tmp_path / ".launch").write_text("this one")
        distiller.fit(batches, steps=2, out=tmp_path, **QUIET)
        assert [row["step"] for row in rows_of(tmp_path)] == [0, 1]

    def test_what_it_wrote_since_its_first_claim_stays(self, tmp_path):
        (tmp_path / "log.jsonl").write_text('{"step": 0}\n')
        (tmp_path / ".launch").write_text("this one")
        world = World(torch.device("cpu"))
        for _ in range(2):
            assert not training_folder.claim(tmp_path, world, resume=False, overwrite=False)
            training_folder.begin(tmp_path, world, going_on=False)
            assert not (tmp_path / "log.jsonl").exists()
            (tmp_path / "run.json").write_text("{}")
        training_folder.begin(tmp_path, world, going_on=False)
        assert (tmp_path / "run.json").exists()

    def test_an_old_run_is_not_gone_on_with_because_its_successor_died_early(
        self, distiller, batches, tmp_path, monkeypatch
    ):
        world = World(torch.device("cpu"))
        with monkeypatch.context() as first:
            first.setenv("TORCHELASTIC_RESTART_COUNT", "0")
            first.setattr(training_folder, "_launch", lambda: None)
            distiller.fit(batches, steps=3, out=tmp_path, **QUIET)
            first.setattr(training_folder, "_launch", lambda: "this one")
            training_folder.claim(tmp_path, world, resume=False, overwrite=True)  # and dies
        assert not training_folder.claim(tmp_path, world, resume=False, overwrite=True)

    def test_a_run_of_another_launch_is_not_touched(
        self, distiller, batches, tmp_path, monkeypatch
    ):
        with monkeypatch.context() as first:
            first.setattr(training_folder, "_launch", lambda: "another one")
            first.setenv("TORCHELASTIC_RESTART_COUNT", "0")
            distiller.fit(batches, steps=3, out=tmp_path, **QUIET)
        before = (tmp_path / "log.jsonl").read_bytes()
        with pytest.raises(ValueError, match="already holds a run"):
            distiller.fit(batches, steps=3, out=tmp_path, **QUIET)
        assert (tmp_path / "log.jsonl").read_bytes() == before


@pytest.mark.usefixtures("without_results")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_resumes_bit_for_bit_the_scaler_included(
    distiller, batches, tmp_path, precision
):
    class DiesError(Exception):
        pass

    def dies(step):
        if step == 7:
            raise DiesError
        return 1e-3

    def lives(step):
        return 1e-3

    runs = [copy.deepcopy(distiller) for _ in range(3)]
    options = {
        "steps": 9, "save_every": 3, "ema": 0.9, "accumulate": 2, "clip_grad": 1.0,
        "precision": precision, **QUIET,
    }  # fmt: skip
    expected = runs[0].fit(batches, lr=lives, **options)
    with pytest.raises(DiesError):
        runs[1].fit(batches, lr=dies, out=tmp_path, **options)
    assert runs[2].fit(batches, lr=lives, out=tmp_path, resume=True, **options) == expected
    for ours, theirs in zip(runs[2].parameters(), runs[0].parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_pictures_at_the_end_leave_every_module_in_its_own_mode(distiller):
    distiller.train()
    distiller.student.backbone.norm.eval()
    before = [module.training for module in distiller.modules()]
    compare(distiller, torch.rand(2, 3, 32, 32))
    assert [module.training for module in distiller.modules()] == before


@pytest.mark.usefixtures("without_results")
@pytest.mark.parametrize("left", [0, 3])
def test_a_run_that_lost_its_log_goes_on_and_says_so(distiller, batches, tmp_path, caplog, left):
    options = {"steps": 6, "out": tmp_path, "save_every": 2, **QUIET}
    whole = distiller.fit(batches, **options)
    lines = (tmp_path / "log.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "log.jsonl").write_bytes(b"".join(lines[:left]))
    rows = distiller.fit(batches, resume=True, **options)
    assert rows == whole[:left]
    assert f"log.jsonl lacks rows that the run had written: steps {left} to 5" in caplog.text
    assert "lacks rows" in (tmp_path / "notes.txt").read_text()


def test_the_results_of_a_run_without_any_log_are_written(distiller, batches, tmp_path, caplog):
    options = {"steps": 2, "out": tmp_path, **QUIET}
    distiller.fit(batches, **options)
    (tmp_path / "log.jsonl").unlink()
    (tmp_path / "pca.png").unlink()
    assert distiller.fit(batches, resume=True, **options) == []
    assert (tmp_path / "pca.png").exists()
    assert "steps 0 to 1" in caplog.text


@pytest.mark.parametrize("bad", ["0-255", "normalised"])
@pytest.mark.parametrize("first", ["black", "good"])
def test_float_images_outside_the_range_stop_a_run_whenever_they_come(
    distiller, tmp_path, first, bad
):
    good = torch.rand(4, 3, 32, 32)
    spoiled = good * 255 if bad == "0-255" else (good - 0.5) / 0.2
    data = [torch.zeros_like(good) if first == "black" else good, good, good, spoiled, good, good]
    with pytest.raises(ValueError, match=r"images are not in \[0, 1\]"):
        distiller.fit(data, steps=6, device="cpu", out=tmp_path, save_every=5, progress=False)
    assert not list(tmp_path.glob("checkpoint/*"))


def test_the_first_step_of_a_layer_is_its_rate(distiller, batches):
    before = copy.deepcopy(distiller.student.backbone.state_dict())
    options = {"lr": 1e-3, "warmup": 0, "weight_decay": 0, "layer_decay": 0.5}
    rows = distiller.fit(batches, steps=1, **options, **QUIET)
    assert rows[0]["lr"] == 1e-3
    after = distiller.student.backbone.state_dict()
    names = ("blocks.0.mlp.fc1.weight", "blocks.1.mlp.fc1.weight", "norm.weight")
    moved = [float((after[name] - before[name]).abs().median()) for name in names]
    # AdamW's first step has the length of the rate, whatever the gradient.
    assert moved == pytest.approx([0.25e-3, 0.5e-3, 1e-3], rel=0.01)


def test_what_is_frozen_stays_to_the_bit_also_in_the_average_and_over_a_resume(
    teacher, batches, tmp_path, without_results
):
    def fresh():
        torch.manual_seed(1)
        model = nn.Sequential(*convolution(3, 8), nn.ReLU(), *convolution(8, 16))
        loss = proteus.ProteusLoss(16, 36, feature=0, patch=0)
        return proteus.Distiller(teacher, proteus.Student(model, image_size=32), loss)

    patterns = ["0.*", "1.*", "3.bias"]
    options = {"frozen": patterns, "ema": 0.9, "lr": 1e-2, "steps": 4, **QUIET}
    first = copy.deepcopy(fresh().student.backbone.state_dict())
    whole = fresh()
    whole.fit(batches, out=tmp_path / "whole", **options)
    state = whole.student.backbone.state_dict()
    average = checkpoint.load(tmp_path / "whole").tensors["ema"]
    for name, tensor in state.items():
        still = name.startswith(("0.", "1.", "3.bias"))
        assert torch.equal(tensor, first[name]) == still, name
        assert torch.equal(average[name], first[name]) == still, name

    stopped = fresh()
    options["save_every"] = 2
    with pytest.raises(RuntimeError, match="stop"):
        stopped.fit(Failing(batches, at=3), out=tmp_path / "run", **options)
    again = fresh()
    again.fit(batches, out=tmp_path / "run", resume=True, **options)
    assert all(torch.equal(t, state[n]) for n, t in again.student.backbone.state_dict().items())
    options["frozen"] = [*patterns, "4.*"]
    with pytest.raises(CheckpointError, match=r"frozen was \['0.\*', .*, is \['0.\*'"):
        fresh().fit(batches, out=tmp_path / "run", resume=True, **options)


def convolution(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 4, 4), nn.BatchNorm2d(outputs)


class Failing(list):
    """Batches that end in an error."""

    def __init__(self, batches, at):
        super().__init__([*batches, *batches])
        self.at = at

    def __iter__(self):
        yield from self[: self.at]
        raise RuntimeError("stop")


def test_the_first_steps_are_of_a_smaller_size(teacher, batches, tmp_path):
    distiller = proteus.Distiller(teacher, proteus.Student("vit_tiny_patch16_224", image_size=32))
    sizes = []
    distiller.student.backbone.patch_embed.register_forward_hook(
        lambda module, args, output: sizes.append(args[0].shape[-1])
    )
    distiller.fit(batches, out=tmp_path, steps=4, first_scale=0.5, first_share=0.75, **QUIET)
    assert [size for size in sizes if size != 32] == [16] * 4  # one of them to find its grid
    export = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(export.eval()(images), distiller.student.backbone.eval()(images))
    assert not export.dynamic_img_size


@pytest.mark.parametrize("at", [3, 5])
def test_a_run_resumes_within_and_behind_its_smaller_steps(
    teacher, batches, tmp_path, without_results, at
):
    def fresh():
        torch.manual_seed(5)
        return proteus.Distiller(teacher, proteus.Student(vit(24), image_size=32))

    options = {"steps": 6, "first_scale": 0.5, "save_every": 2, **QUIET}
    whole = fresh().fit(batches, **options)
    with pytest.raises(RuntimeError, match="stop"):
        fresh().fit(Failing(batches, at=at), out=tmp_path, **options)
    assert fresh().fit(batches, out=tmp_path, resume=True, **options) == whole
    with pytest.raises(CheckpointError, match=r"first_size was"):
        fresh().fit(batches, out=tmp_path, resume=True, **options | {"first_scale": None})


def test_a_share_of_no_size_and_an_objective_without_sizes_are_refused(distiller, batches):
    with pytest.raises(ValueError, match=r"first_share would be ignored. Got first_share=0.3"):
        distiller.fit(batches, steps=1, first_share=0.3, **QUIET)
    with pytest.raises(ShapeError, match=r"smaller size. Got 32x32 for a model at 32x32"):
        distiller.fit(batches, steps=1, first_scale=0.9, **QUIET)  # all four patches of a side
    with pytest.raises(ValueError, match=r"first_scale is out of range. Got 1"):
        distiller.fit(batches, steps=1, first_scale=1, **QUIET)
