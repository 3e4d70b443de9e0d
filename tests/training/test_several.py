"""Several students from one teacher pass are the separate runs, bit for bit."""

import copy
import functools
import json
import os
import signal
from multiprocessing import get_context

import pytest
import torch
from torch import nn

import proteus
from conftest import vit
from proteus.logits import LogitDistiller
from proteus.training import NonFiniteLossError, RunStopped, checkpoint, fit, fit_all

QUIET = {"device": "cpu", "progress": False}


class Cnn(nn.Module):
    """Batch norm, and one vector an image."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, images):
        return self.layers(images).mean(dim=(2, 3))


def distillers(teacher):
    """Masks and drop path; block masks; batch norm and the token alone."""
    torch.manual_seed(1)
    students = {
        "ti": proteus.Student(vit(24, drop_path_rate=0.5), image_size=32),
        "s": proteus.Student(vit(30), image_size=32),
        "cnn": proteus.Student(Cnn(), image_size=32),
    }
    token = proteus.ProteusLoss(8, 36, feature=0, patch=0)
    masks = proteus.MaskGenerator((4, 4), ratio=(0.2, 0.5), strategy="block")
    return {
        "ti": proteus.Distiller(teacher, students["ti"]),
        "s": proteus.Distiller(teacher, students["s"], masks=masks),
        "cnn": proteus.Distiller(teacher, students["cnn"], token),
    }


@pytest.fixture
def ours(teacher):
    return distillers(teacher)


@pytest.fixture
def batches():
    return [torch.rand(4, 3, 32, 32) for _ in range(3)]


@pytest.fixture
def without_results(monkeypatch):
    """Pictures take most of the time of runs this small."""
    monkeypatch.setattr("proteus.training.loop.write_results", lambda *_: None)


def files_of(folder):
    """What must not depend on how a run came about, by name: log and checkpoints."""
    paths = [folder / "log.jsonl", *sorted((folder / "checkpoint").rglob("*"))]
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths if p.is_file()}


EACH = {"ti": {"lr": 3e-3, "ema": 0.9}, "cnn": {"clip_grad": 0.1, "weight_decay": 0.0}}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.usefixtures("without_results")
def test_each_run_is_the_one_it_would_be_alone(ours, batches, tmp_path, precision):
    teacher = ours["ti"].teacher
    passes = []
    alone = copy.deepcopy(ours)
    options = {"steps": 6, "accumulate": 2, "save_every": 4, "precision": precision, **QUIET}
    teacher.register_forward_hook(lambda _, args, __: passes.append(len(args[0])))
    rows = fit_all(ours, batches, each=EACH, out=tmp_path / "all", **options)
    assert passes == [2] * 12
    assert teacher._shared is None
    for name, distiller in alone.items():
        folder = tmp_path / name
        expected = fit(distiller, batches, out=folder, **EACH.get(name, {}), **options)
        assert rows[name] == expected
        assert files_of(tmp_path / "all" / name) == files_of(folder)
        assert len(files_of(folder)) == 7 + 2 * (name == "ti")


@pytest.mark.slow
def test_each_run_leaves_what_it_would_leave_alone(teacher, batches, tmp_path):
    student = proteus.Student("vit_tiny_patch16_224", image_size=32)
    loss = proteus.ProteusLoss(192, 36, feature=0, patch=0)
    ours = {"one": proteus.Distiller(teacher, student, loss), "two": distillers(teacher)["ti"]}
    alone = copy.deepcopy(ours["two"])
    options = {"steps": 2, "ema": 0.9, **QUIET}
    fit_all(ours, batches, out=tmp_path / "all", **options)
    fit(alone, batches, out=tmp_path / "two", **options)
    names = {path.name for path in (tmp_path / "all/one").iterdir()}
    assert {"curves.png", "export", "export-ema", "checkpoint"} <= names
    several, single = tmp_path / "all/two", tmp_path / "two"
    assert {path.name for path in several.iterdir()} == {path.name for path in single.iterdir()}
    for picture in ("pca.png", "masks.png"):
        assert (several / picture).read_bytes() == (single / picture).read_bytes()


def test_labels_reach_the_objective_that_wants_them(teacher, ours, batches):
    torch.manual_seed(2)
    student = proteus.Student(Cnn(), image_size=32)
    labelled = LogitDistiller(teacher, student, None, num_classes=5, kl=0.0, ce=1.0)
    both = {"ti": ours["ti"], "labels": labelled}
    alone = copy.deepcopy(both)
    data = [(batch, torch.arange(4)) for batch in batches]
    rows = fit_all(both, data, steps=3, **QUIET)
    assert rows == {name: fit(one, data, steps=3, **QUIET) for name, one in alone.items()}


def train(folder, dies_at, seen):
    """Train in `folder`; kill -9 before the checkpoint of `dies_at` = (run, step) is written."""
    torch.set_num_threads(1)
    save = checkpoint.save

    def deadly(out, step, *args, **options):
        if (out.name, step) == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return save(out, step, *args, **options)

    checkpoint.save = deadly
    fit_all(*job(), out=folder, **options_of())
    seen.write_text("survived")


def job():
    torch.manual_seed(3)
    ours = distillers(proteus.Teacher(vit(36), image_size=32))
    return ours, [torch.rand(4, 3, 32, 32) for _ in range(3)]


def options_of():
    return {"steps": 6, "save_every": 2, "keep": 1, **QUIET}


@pytest.mark.usefixtures("without_results")
@pytest.mark.parametrize("dies_at", [("s", 2), ("cnn", 4)])
def test_killed_between_two_checkpoints_all_go_on_from_what_all_have(tmp_path, dies_at, caplog):
    folder, seen = tmp_path / "run", tmp_path / "seen"
    # With a GPU autograd has threads, which a fork loses.
    context = get_context("spawn" if torch.cuda.is_available() else "fork")
    process = context.Process(target=train, args=(folder, dies_at, seen))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not seen.exists()
    steps = {name: checkpoint.common_steps([folder / name]) for name in ("ti", "s", "cnn")}
    assert steps["ti"] == ({2} if dies_at[1] == 2 else {2, 4})
    assert steps["cnn"] == (set() if dies_at[1] == 2 else {2})
    rows = fit_all(*job(), out=folder, resume=True, **options_of())
    assert ("start again" in caplog.text) == (dies_at == ("s", 2))
    assert rows == fit_all(*job(), out=tmp_path / "whole", **options_of())
    for name in rows:
        assert files_of(folder / name) == files_of(tmp_path / "whole" / name)
        assert checkpoint.common_steps([folder / name]) == {6}


@pytest.mark.usefixtures("without_results")
def test_a_damaged_checkpoint_of_one_takes_all_back(tmp_path, caplog):
    options = options_of() | {"keep": 2}
    expected = fit_all(*job(), out=tmp_path, **options)
    damaged = tmp_path / "s/checkpoint/step-00000006/weights.safetensors"
    damaged.write_bytes(b"")
    assert fit_all(*job(), out=tmp_path, resume=True, **options) == expected
    assert "step-00000006 is damaged" in caplog.text
    assert (tmp_path / "s/checkpoint/damaged-step-00000006").is_dir()
    assert checkpoint.common_steps([tmp_path / n for n in expected]) == {4, 6}


@pytest.mark.usefixtures("without_results")
def test_a_signal_between_two_runs_saves_all_at_one_step(tmp_path):
    ours, batches = job()
    step = ours["s"].forward
    calls = []

    def signalled(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args, **options)

    ours["s"].forward = signalled
    with pytest.raises(RunStopped, match=f"after 3 of 6 steps: saved in {tmp_path};"):
        fit_all(ours, batches, out=tmp_path, **options_of() | {"save_every": 100})
    folders = [tmp_path / name for name in ours]
    assert all(checkpoint.common_steps([folder]) == {3} for folder in folders)
    rows = fit_all(*job(), out=tmp_path, resume="auto", **options_of() | {"save_every": 100})
    assert rows == fit_all(*job(), **options_of())


@pytest.mark.usefixtures("without_results")
class TestFolders:
    def test_one_run_may_go_on_alone_and_all_again_later(self, ours, batches, tmp_path):
        options = {"steps": 3, "save_every": 1, "keep": 3, **QUIET}
        alone = copy.deepcopy(ours)
        expected = fit_all(ours, batches, out=tmp_path, **options)
        for folder in (tmp_path / name for name in ours):
            checkpoint.drop_after(folder, 2)
        assert fit(
            alone["ti"], batches, out=tmp_path / "ti", resume=True, **options
        ) == expected["ti"]  # fmt: skip
        assert fit_all(alone, batches, out=tmp_path, resume=True, **options) == expected

    def test_what_no_step_unites_is_refused_and_left(self, ours, batches, tmp_path):
        fit_all(ours, batches, out=tmp_path, steps=4, save_every=2, **QUIET)
        checkpoint.drop_after(tmp_path / "s", 0)
        with pytest.raises(ValueError, match="no step that all runs have saved"):
            fit_all(ours, batches, out=tmp_path, steps=4, resume="auto", **QUIET)
        assert checkpoint.common_steps([tmp_path / "ti"]) == {2, 4}

    def test_a_new_run_does_not_start_the_others_again(self, ours, batches, tmp_path):
        last = {"cnn": ours.pop("cnn")}
        fit_all(ours, batches, out=tmp_path, steps=2, **QUIET)
        with pytest.raises(ValueError, match=r"some runs are new.*cnn"):
            fit_all(ours | last, batches, out=tmp_path, steps=2, resume="auto", **QUIET)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "ti"]
        with pytest.raises(ValueError, match="already holds a run"):
            fit_all(ours | last, batches, out=tmp_path, steps=2, **QUIET)
        rows = fit_all(ours | last, batches, out=tmp_path, steps=2, overwrite=True, **QUIET)
        assert len(rows["cnn"]) == 2

    def test_a_folder_of_one_run_is_none_of_several(self, ours, batches, tmp_path):
        ours["ti"].fit(batches, steps=1, out=tmp_path, **QUIET)
        with pytest.raises(ValueError, match="holds a run itself"):
            fit_all(ours, batches, out=tmp_path, steps=1, **QUIET)

    @pytest.mark.parametrize("name", ["", "a/b", "..", "checkpoint", "log.jsonl"])
    def test_what_is_no_name_of_a_folder_is_refused(self, ours, batches, tmp_path, name):
        with pytest.raises(ValueError, match="no name of a run"):
            fit_all({"ti": ours["ti"], name: ours["s"]}, batches, out=tmp_path, steps=1, **QUIET)


@pytest.mark.usefixtures("without_results")
def test_a_loss_that_is_not_finite_names_its_run_and_saves_none(ours, batches, tmp_path):
    with torch.no_grad():
        ours["s"].student.backbone.norm.bias.fill_(torch.nan)
    with pytest.raises(NonFiniteLossError, match="Training of s stopped"):
        fit_all(ours, batches, out=tmp_path, steps=1, **QUIET)
    assert checkpoint.common_steps([tmp_path / "ti"]) == set()


def test_one_bar_tells_the_total_of_each(ours, batches, capsys):
    rows = fit_all(ours, batches, steps=3, device="cpu")
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert shown.strip().count("\n") == 0  # one line
    for name in ours:
        assert f"{name}={rows[name][-1]['total']:.4f}" in shown
    assert "images/s=" in shown


class Counts:
    every = 2

    def __init__(self):
        self.seen = []

    def __call__(self, distiller):
        self.seen.append(distiller)
        return {"seen": float(len(self.seen))}


@pytest.mark.usefixtures("without_results")
def test_each_run_is_watched(ours, batches, tmp_path):
    watch = Counts()
    fit_all(ours, batches, steps=2, watch=watch, out=tmp_path, **QUIET)
    assert watch.seen == [*ours.values()] * 2  # before the first step, and after the last
    rows = (tmp_path / "cnn/watch.jsonl").read_text().splitlines()
    assert [json.loads(row) for row in rows] == [
        {"step": -1, "seen": 3.0},
        {"step": 1, "seen": 6.0},
    ]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"stepz": 1}, TypeError, r"unknown options. Got \['stepz'\]"),
        ({"each": {"b": {}}}, ValueError, "`each` names no run"),
        ({"each": {"ti": {"seed": 1}}}, TypeError, r"one run alone. Got \['seed'\] for 'ti'"),
        ({"each": {"ti": {"lr": 1.0}}, "lr": 2.0}, ValueError, "given twice"),
        ({"parallel": "fsdp"}, ValueError, "once for each"),
    ],
)
def test_options_that_make_no_sense_are_refused(ours, batches, options, error, match):
    with pytest.raises(error, match=match):
        fit_all(ours, batches, **{"steps": 1, **options}, **QUIET)


def test_models_that_make_no_sense_are_refused(ours, batches):
    other = proteus.Distiller(proteus.Teacher(vit(36), image_size=32), ours["s"].student)
    twice = proteus.Distiller(ours["ti"].teacher, ours["ti"].student)
    for pair, match in (
        ({"ti": ours["ti"]}, "several runs are needed"),
        ({"ti": ours["ti"], "s": other}, "several teachers"),
        ({"ti": ours["ti"], "s": twice}, "trained by several runs"),
        ({"ti": ours["ti"], "s": nn.Linear(1, 1)}, "not an objective"),
    ):
        with pytest.raises(ValueError, match=match):
            fit_all(pair, batches, steps=1, **QUIET)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_students_share_what_the_teacher_gave(teacher, batches, monkeypatch):
    traced = functools.partialmethod(nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(nn.Module, "compile", traced)
    torch._dynamo.reset()
    counts = []
    once = torch.compiler.disable(lambda *_: counts.append(1))
    teacher.backbone.patch_embed.register_forward_hook(once)
    ours = {name: one for name, one in distillers(teacher).items() if name != "cnn"}
    expected = fit_all(copy.deepcopy(ours), batches, steps=3, **QUIET)
    counts.clear()
    found = fit_all(ours, batches, steps=3, compile=True, **QUIET)
    assert len(counts) == 3
    for name, rows in found.items():
        for ours_row, row in zip(rows, expected[name], strict=True):
            assert ours_row == pytest.approx(row, rel=1e-3)
