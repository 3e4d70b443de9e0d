import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from conftest import vit
from proteus.evaluate import linear_probe
from proteus.evaluation import FeatureSet, Head, ProbeHeads, score_linear
from proteus.evaluation.classifier import LinearClassifier
from proteus.evaluation.linear_heads import draw_batches, head_grid, probe_inputs


def features(count=60, classes=3, width=8, depth=4, seed=0):
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, width, generator=random) * 2
    tokens = centres[labels] + torch.randn(count, width, generator=random)
    blocks = torch.stack([tokens * (i + 1) for i in range(depth)], 1)
    return FeatureSet(tokens, tokens * 2, labels, blocks)


def test_stacked_heads_are_heads_trained_alone_with_torchs_sgd():
    data = features()
    heads = [Head(n, pool, lr) for n in (1, 4) for pool in (False, True) for lr in (0.01, 0.1)]
    stacked = ProbeHeads(heads, width=8, num_classes=3, iterations=10, seed=1)
    alone = {head: [t.clone().requires_grad_() for t in stacked.of(head)] for head in heads}
    groups = [{"params": alone[head], "lr": head.lr} for head in heads]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for batch in draw_batches(len(data), 16, 10, seed=0):
        blocks, patches, labels = data.blocks[batch], data.patches[batch], data.labels[batch]
        losses = torch.stack(
            [
                F.cross_entropy(
                    F.linear(probe_inputs(blocks, patches, h.blocks, h.avgpool), *alone[h]), labels
                )
                for h in heads
            ]
        )
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
        schedule.step()
        torch.testing.assert_close(stacked.step(blocks, patches, labels), losses.detach())
    for head in heads:
        torch.testing.assert_close(stacked.of(head), tuple(t.detach() for t in alone[head]))


def test_the_best_head_on_the_test_set_is_reported_and_all_52_are_there():
    data = features()
    result = score_linear(data, data, iterations=30, batch_size=32)
    assert len(result.scores) == 52
    assert result.score == max(result.scores.values()) > 80
    assert len(result.to_dict()["scores"]) == 52


def test_holdout_never_looks_at_the_test_labels():
    train, test = features(), features(seed=1)
    result = score_linear(train, test, select="holdout", iterations=20, batch_size=32)
    wrong = FeatureSet(test.cls, test.patches, (test.labels + 1) % 3, test.blocks)
    other = score_linear(train, wrong, select="holdout", iterations=20, batch_size=32)
    assert result.head == other.head
    assert list(result.scores) == [result.head]
    assert result.selection == other.selection


def test_batches_pass_over_all_images_before_any_comes_again():
    batches = torch.cat(list(draw_batches(10, 4, 5, seed=0)))
    assert sorted(batches[:10].tolist()) == sorted(batches[10:].tolist()) == list(range(10))


def test_a_learning_rate_that_diverges_costs_only_its_own_head():
    data = features()
    data = FeatureSet(data.cls * 1e18, data.patches, data.labels, data.blocks * 1e18)
    result = score_linear(data, data, learning_rates=[1e-30, 1e10], iterations=9, batch_size=32)
    assert result.head.lr == 1e-30


def test_features_that_are_not_finite_are_an_error_and_no_score_of_zero():
    data, test = features(), features(seed=1)
    test.cls[3, 0] = float("nan")
    with pytest.raises(ValueError, match=r"not finite. Got NaN or infinity in 1 of 60"):
        score_linear(data, test, iterations=1)


def test_features_of_half_precision_are_read_as_float32():
    data = features()
    half = FeatureSet(data.cls.half(), data.patches.half(), data.labels, data.blocks.half())
    assert score_linear(half, half, iterations=30, batch_size=32).score > 80


def pictures(count=12):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (count, 40, 44, 3), dtype=np.uint8)
    pixels[::2] //= 3  # class 0 is darker
    return [(Image.fromarray(image), n % 2) for n, image in enumerate(pixels)]


def test_a_model_is_probed_with_crops_drawn_anew_or_with_its_centre_only():
    model = vit(depth=4)
    options = {"image_size": 32, "iterations": 4, "batch_size": 8, "learning_rates": [0.1]}
    cropped = linear_probe(model, pictures(), pictures(), **options)
    again = linear_probe(model, pictures(), pictures(), **options)
    plain = linear_probe(model, pictures(), pictures(), augment=False, **options)
    assert torch.equal(cropped.weight, again.weight)
    assert not torch.equal(cropped.weight, plain.weight)
    assert len(plain.scores) == 4
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    assert plain.classifier(image).shape == (1, 2)


def test_the_classifier_gives_the_scores_that_were_reported():
    model = vit(depth=4)
    result = linear_probe(
        model, pictures(), pictures(), image_size=32, iterations=9, batch_size=8, augment=False
    )
    from proteus.evaluation import open_labelled
    from proteus.evaluation.feature_set import Resized

    images = Resized(open_labelled(pictures()), 32, result.classifier.resize)
    scores = result.classifier(torch.stack([image for image, _ in images]))
    labels = torch.tensor([label for _, label in pictures()])
    assert float((scores.argmax(1) == labels).float().mean()) * 100 == pytest.approx(result.score)


def test_the_classifier_of_a_model_without_patches_gives_numbers():
    class Pooled(torch.nn.Module):
        def forward(self, images):
            return images.mean((2, 3))

    result = linear_probe(
        Pooled(), pictures(), pictures(), image_size=32, iterations=2, batch_size=8, augment=False
    )
    classifier = result.classifier
    averaged = LinearClassifier(
        classifier.extractor, torch.eye(6)[1:4], torch.zeros(3), image_size=32, resize=32,
        blocks=1, avgpool=True,
    )  # fmt: skip
    scores = averaged(torch.full((1, 3, 32, 32), 255, dtype=torch.uint8))
    assert scores.isfinite().all() and (scores[0, :2] > 1).all()
    assert scores[0, 2] == 0  # the mean patch, as in training


def test_a_shallow_model_has_the_heads_its_blocks_allow_and_errors_say_more():
    result = linear_probe(
        vit(depth=2), pictures(), pictures(), image_size=32, iterations=2, batch_size=8,
        augment=False,
    )  # fmt: skip
    assert len(result.scores) == 26
    data = features(depth=2)
    with pytest.raises(ValueError, match=r"Got 2; expected 4.*num_blocks=\(1,\)"):
        score_linear(data, data, num_blocks=(4,), iterations=1, batch_size=8)
    with pytest.raises(ValueError, match="'best'"):
        score_linear(data, data, select="best", iterations=1)
    with pytest.raises(ValueError, match="iterations=0"):
        score_linear(data, data, iterations=0)
    with pytest.raises(ValueError, match="different"):
        ProbeHeads([*head_grid([0.1]), *head_grid([0.1])], width=2, num_classes=2, iterations=1)
    with pytest.raises(ValueError, match=r"nothing to choose a head on. Got 4 training images"):
        score_linear(data.select(torch.arange(4)), data, select="holdout")
    for metric in ("map_11", "top9"):
        with pytest.raises(ValueError, match=metric):  # before 12,500 steps
            score_linear(data, data, metric=metric)
    one = FeatureSet(data.cls, data.patches, data.labels * 0, data.blocks)
    with pytest.raises(ValueError, match="one class only"):
        score_linear(one, one, iterations=1)
