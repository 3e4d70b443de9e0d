import copy
import json
import math
import os
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from torch import nn

import proteus
from conftest import vit
from proteus.evaluation.dense.fit_head import lr_factor
from proteus.evaluation.dense.maps import open_segmentation
from proteus.evaluation.dense.segmentation import (
    layer_decay_groups,
    segmentation,
    segmentation_loss,
)
from proteus.evaluation.dense.task import default_size
from proteus.models.frozen import as_extractor

PACKS = Path(os.environ.get("PROTEUS_PACKS", "../shared/data"))


def blobs(count, *, width=48, height=32, seed=0):
    """Pictures of bright and dark rectangles on noise, and their maps."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        labels = torch.zeros(height, width).long()
        top, left = (
            int(torch.randint(0, n // 2, (), generator=generator)) for n in (height, width)
        )
        labels[top : top + 16, left : left + 20] = 1
        noise = torch.randint(0, 40, (height, width, 3), generator=generator)
        pixels = (noise + labels[..., None] * 180).byte().numpy()
        rows.append((Image.fromarray(pixels), labels))
    return rows


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return as_extractor(proteus.Student(vit(depth=4), image_size=32), image_size=32)


OPTIONS = {"num_classes": 2, "image_size": 32, "batch_size": 4}


def test_a_linear_head_finds_what_is_bright(model):
    result = segmentation(model, blobs(8), blobs(4, seed=1), iterations=150, lr=0.02, **OPTIONS)
    assert result.scores.miou > 0.6  # everything background: 0.4
    assert result.num_train == 8 and result.num_test == 4
    assert result.to_dict()["head"] == "linear"
    json.dumps(result.to_dict())
    logits = result.predictor([blobs(1)[0][0]])
    assert logits.shape == (1, 2, 32, 48)


@pytest.mark.parametrize(("mode", "steps"), [("upernet", 20), ("dpt", 60)])
def test_the_larger_heads_learn_too(model, mode, steps):
    options = {**OPTIONS, "mode": mode, "channels": 16, "iterations": steps, "lr": 0.01}
    result = segmentation(model, blobs(6), blobs(3, seed=1), **options)
    assert result.scores.miou > 0.6


def test_fine_tuning_changes_a_copy_and_not_the_model():
    student = proteus.Student(vit(depth=2), image_size=32)
    extractor = as_extractor(student, image_size=32)
    before = {name: w.clone() for name, w in student.backbone.state_dict().items()}
    options = {**OPTIONS, "mode": "upernet", "channels": 8, "iterations": 3}
    result = segmentation(extractor, blobs(4), blobs(2), finetune=True, **options)
    after = student.backbone.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    tuned = result.predictor.extractor.model.state_dict()
    assert any(not torch.equal(before[name], tuned[name]) for name in before)
    assert result.to_dict()["layer_decay"] == 0.65 and result.to_dict()["augment"] is True
    assert not any(module.training for module in result.predictor.modules())


@pytest.mark.parametrize("size", [48, 45])
def test_positions_are_fine_tuned_at_another_size_too(size):
    extractor = as_extractor(proteus.Student(vit(depth=2), image_size=32), image_size=32)
    options = {**OPTIONS, "mode": "upernet", "channels": 8, "iterations": 2, "warmup": 0}
    options["image_size"] = size
    result = segmentation(extractor, blobs(2), blobs(1), finetune=True, **options)
    tuned = result.predictor.extractor
    assert (tuned.image_size, extractor.image_size) == ((48, 48), (32, 32))
    before = as_extractor(extractor, image_size=48).model.pos_embed
    assert tuned.model.pos_embed.shape == before.shape
    assert not torch.equal(tuned.model.pos_embed, before)


def test_kept_features_and_fresh_ones_train_heads_of_one_quality(model):
    scores = [
        segmentation(
            model, blobs(8), blobs(4, seed=1), iterations=100, lr=0.02, cache_bytes=size, **OPTIONS
        ).scores.miou
        for size in (1 << 30, 0)
    ]
    assert min(scores) > 0.55
    assert scores[0] == pytest.approx(scores[1], abs=0.15)


def test_the_same_seed_gives_the_same_numbers_and_leaves_the_random_state(model):
    options = {**OPTIONS, "iterations": 10}
    state = torch.random.get_rng_state()
    first = segmentation(model, blobs(4), blobs(2), **options)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.rand(7)
    assert segmentation(model, blobs(4), blobs(2), **options).scores == first.scores
    other = segmentation(model, blobs(4), blobs(2), seed=1, **options)
    assert not torch.equal(other.predictor.decoder.head.weight, first.predictor.decoder.head.weight)


def test_a_model_in_half_precision_can_be_measured(model):
    options = {**OPTIONS, "iterations": 100, "lr": 0.02}
    single, half = (
        segmentation(m, blobs(4), blobs(2, seed=1), **options).scores.miou
        for m in (model, copy.deepcopy(model).bfloat16())
    )
    assert half == pytest.approx(single, abs=0.05)


def test_a_model_in_half_precision_is_fine_tuned_in_full(model):
    options = {**OPTIONS, "mode": "dpt", "channels": 8, "iterations": 5, "finetune": True}
    result = segmentation(copy.deepcopy(model).half(), blobs(4), blobs(1), **options)
    weights = result.predictor.extractor.model.parameters()
    assert {weight.dtype for weight in weights} == {torch.float32}


@pytest.mark.parametrize("size", [30, 33])
def test_sizes_that_no_patch_divides_are_filled_up(model, size):
    options = {**OPTIONS, "image_size": size, "iterations": 5}
    result = segmentation(model, blobs(2), blobs(2), **options)
    assert math.isfinite(result.scores.aacc)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_plain_models_of_timm_can_be_measured(name):
    model = timm.create_model(name, num_classes=0)
    result = segmentation(model, blobs(4), blobs(2), iterations=4, **OPTIONS)
    assert 0 <= result.scores.miou <= 1


def test_a_student_and_its_plain_model_give_the_same_numbers():
    backbone = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, depth=4)
    student = proteus.Student(backbone, image_size=32)
    scores = [
        segmentation(m, blobs(4), blobs(2), iterations=8, **OPTIONS).scores
        for m in (student, backbone)
    ]
    assert scores[0] == scores[1]


def test_the_default_size_is_the_papers():
    for patch, size in ((14, 518), (16, 512)):
        model = timm.create_model(
            "vit_tiny_patch16_224", num_classes=0, img_size=8 * patch, patch_size=patch, depth=1
        )
        assert default_size(as_extractor(model)) == size


def test_the_rate_rises_and_falls_linearly():
    factors = [lr_factor(step, 60_000, 1500) for step in (0, 750, 1500, 30_750, 60_000)]
    assert factors == pytest.approx([1e-6, 0.5000005, 1, 0.5, 0])


def test_learning_rates_fall_towards_the_embeddings_as_beits():
    backbone, head = vit(depth=12), nn.Conv2d(4, 2, 1)
    options = {"lr": 1.0, "weight_decay": 0.05, "decay": 0.65}
    groups = layer_decay_groups(backbone, head, **options)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    named = dict(backbone.named_parameters())
    assert rates[id(named["patch_embed.proj.weight"])] == (pytest.approx(0.65**13), 0.05)
    assert rates[id(named["pos_embed"])] == (pytest.approx(0.65**13), 0.05)
    assert rates[id(named["blocks.0.attn.qkv.weight"])] == (pytest.approx(0.65**12), 0.05)
    assert rates[id(named["blocks.11.mlp.fc1.bias"])] == (pytest.approx(0.65), 0)
    assert rates[id(head.weight)] == (1.0, 0.05) and rates[id(head.bias)] == (1.0, 0)
    assert len(rates) == len(named) + 2
    with pytest.raises(ValueError, match=r"Got ResNet; use layer_decay=1.0"):
        layer_decay_groups(timm.create_model("resnet18"), head, **options)


def test_the_loss_is_averaged_over_ignored_pixels_too():
    output, target = torch.zeros(1, 2, 1, 4), torch.tensor([[[0, 1, 255, 255]]])
    assert float(segmentation_loss(output, target)) == pytest.approx(math.log(2) / 2)


def test_what_cannot_be_measured_is_an_error(model):
    def run(train=None, test=None, **options):
        return segmentation(
            model, train or blobs(2), test or blobs(2), **{**OPTIONS, "iterations": 2, **options}
        )

    with pytest.raises(ValueError, match=r"a linear head measures a frozen model"):
        run(finetune=True)
    with pytest.raises(ValueError, match=r"layer_decay= belongs to fine-tuning. Got 0.5"):
        run(layer_decay=0.5)
    with pytest.raises(ValueError, match=r"channels= would be ignored. Got 8"):
        run(channels=8)
    with pytest.raises(ValueError, match=r"warmup: must be shorter than the run. Got 2 of 2"):
        run(warmup=2)
    with pytest.raises(ValueError, match=r"batch_size: UperNet .* Got 1; expected at least 2"):
        run(mode="upernet", batch_size=1)
    with pytest.raises(ValueError, match="iterations: must be at least 1"):
        run(iterations=0)
    with pytest.raises(ValueError, match="a label is no class"):
        run(train=[(image, labels + 1) for image, labels in blobs(2)])
    with pytest.raises(ValueError, match=r"2 \(train\) and 3 \(test\)"):
        run(test=open_segmentation(blobs(1), num_classes=3))
    broken = as_extractor(proteus.Student(vit(), image_size=32), image_size=32)
    broken.model.blocks[0].mlp.fc1.weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match="features are not finite"):
        segmentation(broken, blobs(2), blobs(2), iterations=2, **OPTIONS)


def test_a_set_without_a_label_is_an_error(model):
    options = {**OPTIONS, "iterations": 2}
    ignored = [(image, torch.full_like(labels, 255)) for image, labels in blobs(2)]
    message = r"no pixel of the {} maps has a class. Got 2 images in list with the label 255"
    with pytest.raises(ValueError, match=message.format("training")):
        segmentation(model, ignored, blobs(2), **options)
    with pytest.raises(ValueError, match=message.format("test")):
        segmentation(model, blobs(2), ignored, **options)
    # One labelled image is enough, and the others do not count.
    alone, more = (
        segmentation(model, blobs(2), blobs(1) + rest, **options).scores for rest in ([], ignored)
    )
    assert alone == more


def test_a_training_that_diverges_is_an_error_in_its_last_iterations_too(model):
    options = {**OPTIONS, "iterations": 20, "warmup": 0, "lr": 1e37}
    with pytest.raises(ValueError, match=r"weights are not finite. Got .* after 20 iterations"):
        segmentation(model, blobs(2), blobs(1), **options)


def test_nothing_is_a_default_but_none(model):
    options = {**OPTIONS, "iterations": 1, "warmup": 0}
    result = segmentation(model, blobs(1), blobs(1), **{**options, "lr": 0.0})
    assert result.to_dict()["lr"] == 0 and not result.predictor.decoder.head.bias.any()
    with pytest.raises(ValueError, match=r"image_size: must be at least 1. Got 0"):
        segmentation(model, blobs(1), blobs(1), **{**options, "image_size": 0})
    with pytest.raises(ValueError, match=r"channels: must be at least 1. Got 0"):
        segmentation(model, blobs(1), blobs(1), mode="dpt", channels=0, **options)


@pytest.mark.slow
@pytest.mark.skipif(not PACKS.is_dir(), reason="needs the packs of real images")
def test_a_linear_head_on_camvid_beats_a_constant_prediction():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64, patch_size=8)
    result = segmentation(model, PACKS / "camvid11", image_size=64, iterations=500, lr=3e-3)
    # Everything "road": 26.8 % of the labelled pixels, mIoU 0.268 / 11.
    assert result.scores.aacc > 0.268 + 0.2
    assert result.scores.miou > 0.025 + 0.1
