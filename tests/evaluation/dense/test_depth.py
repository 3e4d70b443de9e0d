import json
import math
import os
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

import proteus
from conftest import vit
from proteus.evaluation.dense.depth import depth
from proteus.evaluation.dense.depth_scores import depth_scores
from proteus.evaluation.dense.maps import open_depth
from proteus.models.frozen import as_extractor

PACKS = Path(os.environ.get("PROTEUS_PACKS", "../shared/data"))


def slopes(count, *, width=40, height=32, seed=0):
    """Pictures that get darker with depth, and their depths, 1 to 5 m."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        a, b = torch.rand(2, generator=generator).tolist()
        x, y = torch.linspace(0, 1, width), torch.linspace(0, 1, height)[:, None]
        metres = 1 + 4 * ((a * x + b * y) / (a + b))
        grey = (255 * (1 - metres / 6)).byte().numpy()
        rows.append((Image.fromarray(grey).convert("RGB"), metres))
    return rows


def constant_rmse(train, test):
    """Of the mean training depth everywhere."""
    mean = torch.cat([target.flatten() for _, target in train]).mean()
    targets = [target for _, target in test]
    return depth_scores([torch.full_like(t, float(mean)) for t in targets], targets).rmse


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return as_extractor(proteus.Student(vit(depth=4), image_size=32), image_size=32)


OPTIONS = {"image_size": 32, "batch_size": 4}


@pytest.mark.parametrize(
    "head",
    [
        {"mode": "linear", "iterations": 150, "lr": 0.02},
        {"mode": "dpt", "channels": 16, "iterations": 50, "lr": 5e-3},
    ],
    ids=lambda head: head["mode"],
)
def test_a_head_beats_the_mean_depth(model, head):
    train, test = slopes(8), slopes(4, seed=1)
    result = depth(model, train, test, **OPTIONS, **head)
    assert result.scores.rmse < 0.8 * constant_rmse(train, test)
    assert len(result.scores.num_pixels) == 4
    written = json.loads(json.dumps(result.to_dict()))
    assert head["mode"] in written["head"] and written["crop"] is None
    assert written["stride"] == 8 and written["flip"] is True
    assert result.predictor([test[0][0]]).shape == (1, 1, 32, 40)


def test_the_head_starts_at_the_mean_training_depth(model):
    train = slopes(4)
    result = depth(model, train, train, mode="linear", iterations=1, warmup=0, lr=1e-9, **OPTIONS)
    assert result.scores.rmse == pytest.approx(constant_rmse(train, train), rel=0.2)
    bias = float(result.predictor.decoder.head.bias.detach())
    assert bias == pytest.approx(float(torch.stack([t for _, t in train]).mean()), abs=0.05)


def test_the_first_bias_is_of_many_maps_where_features_are_not_kept(model):
    image, metres = slopes(1)[0]
    train = [(image, torch.full_like(metres, float(value))) for value in (0, 2, 6)]
    options = {**OPTIONS, "iterations": 1, "warmup": 0, "lr": 1e-9, "augment": False}
    result = depth(model, train, train[1:], mode="linear", cache_bytes=0, **options)
    # The first map has no valid depth at all.
    assert float(result.predictor.decoder.head.bias.detach()) == pytest.approx(4, abs=1e-4)


def test_fine_tuning_gives_the_model_a_tenth_of_the_rate(model):
    options = {**OPTIONS, "mode": "dpt", "channels": 8, "iterations": 2, "warmup": 0, "lr": 1e-3}
    before = {name: w.clone() for name, w in model.model.state_dict().items()}
    result = depth(model, slopes(4), slopes(2), finetune=True, **options)
    tuned = result.predictor.extractor.model.state_dict()
    moved = max(float((tuned[n] - before[n]).abs().max()) for n in before)
    # Two steps of Adam move a weight by at most the rate each: 1e-4, then half of it.
    assert 1e-5 < moved < 2e-4
    assert all(torch.equal(before[n], w) for n, w in model.model.state_dict().items())


def test_depths_beyond_the_bounds_neither_train_nor_count(model):
    train, test = slopes(4), slopes(2, seed=1)
    options = {**OPTIONS, "mode": "linear", "iterations": 20}
    bounds = {"min_depth": 1.5, "max_depth": 4.0}
    expected = depth(model, train, test, **bounds, **options)
    far = [(i, torch.where(t >= 4, 65.535, torch.where(t <= 1.5, 0.1, t))) for i, t in train]
    result = depth(model, far, test, **bounds, **options)
    assert result.scores == expected.scores
    assert sum(expected.scores.num_pixels) < 2 * 32 * 40


def test_clamping_is_the_users_choice(model):
    train = slopes(2)
    options = {**OPTIONS, "mode": "linear", "iterations": 2, "warmup": 0, "lr": 50.0}
    wild = depth(model, train, train, **options)
    assert math.isnan(wild.scores.rmse_log) and wild.to_dict()["rmse_log"] is None
    tame = depth(model, train, train, clamp=True, **options)
    assert math.isfinite(tame.scores.rmse_log)


def test_a_cnn_can_be_measured():
    model = timm.create_model("resnet18", num_classes=0)
    for mode, channels in (("linear", None), ("dpt", 8)):
        options = {**OPTIONS, "image_size": 64, "iterations": 2, "channels": channels}
        result = depth(model, slopes(2), slopes(1), mode=mode, **options)
        assert math.isfinite(result.scores.rmse)


def test_what_cannot_be_measured_is_an_error(model):
    options = {**OPTIONS, "iterations": 2, "mode": "linear"}
    nothing = [(image, torch.zeros_like(target)) for image, target in slopes(2)]
    for role, train, test in (
        ("training", nothing, slopes(1)),
        ("test", slopes(1), nothing),
    ):
        with pytest.raises(ValueError, match=rf"of the {role} maps .* are the maps in metres"):
            depth(model, train, test, **options)
    with pytest.raises(ValueError, match=r"no test set. Got test=None"):
        depth(model, slopes(2), **options)
    with pytest.raises(ValueError, match=r"unknown convention. Got 'mmsge'"):
        depth(model, slopes(2), slopes(1), convention="mmsge", **options)
    with pytest.raises(ValueError, match=r"480x640 maps. Got \(32, 40\)"):
        depth(model, slopes(2), open_depth(slopes(1), crop="eigen"), **options)
    with pytest.raises(ValueError, match=r"channels= would be ignored. Got 8"):
        depth(model, slopes(2), slopes(1), channels=8, **options)
    with pytest.raises(ValueError, match="finetune"):
        depth(model, slopes(2), slopes(1), finetune=True, **options)
    broken = as_extractor(proteus.Student(vit(), image_size=32), image_size=32)
    broken.model.blocks[0].mlp.fc1.weight.data.fill_(math.nan)
    for augment, subject in ((True, "the loss is"), (False, "features are")):
        with pytest.raises(ValueError, match=f"{subject} not finite"):
            depth(broken, slopes(2), slopes(1), augment=augment, **options)


@pytest.mark.slow
@pytest.mark.skipif(not PACKS.is_dir(), reason="needs the packs of real images")
def test_a_linear_head_on_seven_scenes_beats_the_mean_depth():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64, patch_size=8)
    path = PACKS / "sevenscenes-depth"
    result = depth(model, path, mode="linear", image_size=64, iterations=500, lr=3e-3)
    train, test = (list(open_depth(path, split=split)) for split in ("train", "test"))
    kept = torch.cat([t[(t > 1e-3) & (t < 10)] for _, t in train]).mean()
    targets = [target for _, target in test]
    constant = depth_scores([torch.full_like(t, float(kept)) for t in targets], targets)
    assert result.scores.rmse < 0.9 * constant.rmse
