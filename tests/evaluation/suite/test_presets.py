"""The presets, number by number: docs/evaluation.md says where each comes from."""

import json
from dataclasses import asdict

import pytest
import timm
import torch
from test_suite import SHARED, packs, run_of

from conftest import vit
from proteus.cli import main
from proteus.evaluation import as_extractor
from proteus.evaluation.logistic_fit import penalties
from proteus.evaluation.suite import presets as settings
from proteus.evaluation.suite.find_sets import find_sets
from proteus.evaluation.suite.presets import PRESETS, SuiteSettings, preset

__all__ = ["packs"]  # a fixture

# A.1.2 to A.1.5; the lengths of segmentation and depth are the authors' configs'.
PAPER = {
    "image_size": 224,
    "limit": None,
    "linear_iterations": 25_020,
    "linear_batch": 512,
    "linear_augment": True,
    "select": "test",
    "sweep": "paper",
    "dense_size": 518,
    "dense_augment": True,
    "segmentation_iterations": 60_000,
    "depth_iterations": 25_000,
    "depth_head": "dpt",
    "finetune_iterations": None,
    "finetune_channels": None,
    "severities": (1, 2, 3, 4, 5),
    "seed": 0,
}


def test_the_paper_s_settings_are_the_paper_s():
    model = as_extractor(vit(size=56, patch=14))
    assert asdict(preset("paper", model, None)) == PAPER
    assert asdict(preset("official", model, None)) == {**PAPER, "sweep": "official"}
    assert asdict(preset("dinov2", model, None)) == {**PAPER, "linear_iterations": 12_500}
    assert preset("quick", model, None) == SuiteSettings(56)
    steps = {sweep: penalties(sweep)[1] for sweep in ("paper", "official")}
    assert steps == {"paper": 500, "official": 1000}
    ranges = {s: (float(penalties(s)[0].min()), float(penalties(s)[0].max())) for s in steps}
    assert ranges["paper"] == pytest.approx((1e-3, 1e6))  # 1 / lambda
    assert ranges["official"] == pytest.approx((1e-5, 1e6))


def test_sizes_are_multiples_of_the_patch_unless_one_is_asked_for():
    model = as_extractor(vit(size=64, patch=16))
    paper = preset("paper", model, None)
    assert (paper.image_size, paper.dense_size) == (224, 512)
    asked = preset("paper", model, 96, seed=3)
    assert (asked.image_size, asked.dense_size, asked.seed) == (96, None, 3)


@pytest.mark.parametrize(
    "case",
    [
        ("segmentation", 12, ("linear", False, 60_000, 8e-4, 1500, True)),
        ("segmentation-finetune", 12, ("upernet", True, 60_000, 1e-4, 1500, True)),
        ("segmentation-finetune", 24, ("upernet", True, 160_000, 1e-4, 4000, True)),
        ("depth", 24, ("dpt", False, 25_000, 4e-4, 1500, True)),
        ("depth-finetune", 24, ("dpt", True, 25_000, 1e-4, 1500, True)),
    ],
)
def test_the_paper_s_schedule_reaches_the_dense_heads(packs, tmp_path, monkeypatch, case):
    """All that is handed to the training, which is not run."""

    protocol, depth, found = case
    seen = []

    def train_dense(extractor, data, settings, **others):
        seen.append(settings)
        raise ValueError("enough")

    for module in ("depth", "segmentation"):
        monkeypatch.setattr(f"proteus.evaluation.dense.{module}.train_dense", train_dense)
    model = as_extractor(vit(depth=depth))
    run = run_of(packs, tmp_path / "out", model)
    run.settings = preset("paper", model, None)
    task = protocol.partition("-")[0]
    run.run([protocol], find_sets([str(packs / f"{task}-a")]))
    (one,) = seen
    assert found == (
        one.head, one.finetune, one.iterations, one.lr, one.warmup, one.augmentation is not None
    )  # fmt: skip
    assert (one.image_size, one.batch_size) == (512, 16)  # patches of 8
    assert one.weight_decay == (0.05 if task == "segmentation" else 0.01)
    assert (one.stride, one.flip) == ((341, False) if task == "segmentation" else (128, True))


@pytest.mark.slow
def test_the_command_with_the_paper_s_preset_draws_crops(packs, tmp_path, monkeypatch):
    short = {"linear_iterations": 3, "linear_batch": 8, "segmentation_iterations": 2,
             "depth_iterations": 2, "finetune_iterations": 2, "finetune_channels": 8,
             }  # fmt: skip
    monkeypatch.setitem(settings.PRESETS, "paper", {**PRESETS["paper"], **short})
    out = tmp_path / "out"
    words = ["evaluate", "demo-student", "--random-weights", "--image-size", "32", "--paper",
             "--device", "cpu", "--out", str(out), "--suite",
             "linear,segmentation,depth,segmentation-finetune,depth-finetune",
             "--data"]  # fmt: skip
    words += [str(packs / name) for name in ("digits", "segmentation-a", "depth-a")]
    assert main(words) == 0
    results = json.loads((out / "results.json").read_text())["results"]
    assert results["linear/digits"]["augment"] is True
    assert results["linear/digits"]["iterations"] == 3
    heads = {key: (one["head"], one["finetune"], one["augment"])
             for key, one in results.items() if key.partition("/")[2] != "digits"}  # fmt: skip
    assert heads == {
        "segmentation/segmentation-a": ("linear", False, True),
        "depth/depth-a": ("dpt", False, True),
        "segmentation-finetune/segmentation-a": ("upernet", True, True),
        "depth-finetune/depth-a": ("dpt", True, True),
    }
    text = (out / "results.md").read_text()
    assert "## Segmentation, fine-tuned" in text and "## Depth, fine-tuned" in text


def test_fine_tuning_changes_a_copy_and_a_cnn_has_one_learning_rate(packs, tmp_path):
    model = timm.create_model("resnet10t", num_classes=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run = run_of(packs, tmp_path / "out", model, finetune_iterations=2, finetune_channels=8)
    results = run.run(["segmentation-finetune"], find_sets([str(packs / "segmentation-a")]))
    (one,) = results.values()
    assert one["finetune"] is True and one["layer_decay"] == 1.0
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the image packs are not part of the repository")
def test_fine_tuning_on_real_maps(tmp_path, monkeypatch):
    monkeypatch.setitem(settings.PRESETS, "quick", {"finetune_iterations": 3})
    words = ["evaluate", "demo-student", "--random-weights", "--image-size", "64", "--limit", "4",
             "--device", "cpu", "--suite", "segmentation-finetune,depth-finetune",
             "--out", str(tmp_path), "--data"]  # fmt: skip
    assert main([*words, str(SHARED / "camvid11"), str(SHARED / "sevenscenes-depth")]) == 0
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert 0 < results["segmentation-finetune/camvid11"]["miou"] < 1
    assert 0 < results["depth-finetune/sevenscenes-depth"]["rmse"] < 10
