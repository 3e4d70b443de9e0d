import json

import numpy as np
import pytest
import torch
from PIL import Image

import proteus
from proteus import Features
from proteus.evaluate import agreement
from proteus.evaluation import compare_features, linear_cka
from proteus.features import ShapeError


def test_equal_and_opposite_features():
    one = Features(torch.randn(3, 5), torch.randn(3, 4, 5), (2, 2))
    same = compare_features(one, one)
    assert same == {"cls_mse": 0, "cls_cosine": 1, "patch_mse": 0, "patch_cosine": 1}
    other = compare_features(Features(-one.cls, one.patches * 2, one.grid), one)
    assert other["cls_cosine"] == -1
    assert other["patch_cosine"] == 1
    assert other["patch_mse"] == pytest.approx(float(one.patches.square().mean()))


def test_widths_must_agree():
    with pytest.raises(ShapeError):
        compare_features(
            Features(torch.zeros(1, 2), torch.zeros(1, 1, 2), (1, 1)),
            Features(torch.zeros(1, 3), torch.zeros(1, 1, 3), (1, 1)),
        )


def pictures(count=9):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (count, 40, 44, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in pixels]


def test_a_model_agrees_with_itself_and_with_a_wider_one_only_by_cka(student, teacher):
    same = agreement(student, student, pictures(), layers=True)
    assert same.distances["cls_cosine"] == 1
    assert same.cka_cls == pytest.approx(1)
    assert same.cka_layers[0][0] == pytest.approx(1)
    assert len(same.cka_layers) == len(same.cka_layers[0]) == 2
    other = agreement(student, teacher, pictures())
    assert other.distances == {}
    assert 0 < other.cka_cls < 1


def test_a_distiller_gives_the_terms_of_its_objective_with_the_same_masks_each_time(distiller):
    distiller.train()
    parts = distiller.student, distiller.teacher, pictures()
    first, again = (agreement(*parts, loss=distiller, batch_size=4) for _ in range(2))
    assert first == again
    assert set(first.terms) == {"total", "token", "feature", "patch"}
    # The token term is the distance of projected class tokens; the loss alone tells it, too.
    assert first.terms["token"] == pytest.approx(first.distances["cls_mse"], rel=1e-5)
    plain = agreement(*parts, loss=distiller.loss, batch_size=4)
    assert (plain.distances, plain.terms) == (first.distances, {})
    assert distiller.training
    assert distiller.student.training
    with pytest.raises(ValueError, match="not a loss"):
        agreement(*parts, loss=torch.nn.Linear(2, 2))


def test_what_a_loss_has_no_head_or_no_weight_for_is_no_obstacle(student, teacher):
    same = proteus.Student(student.backbone, image_size=32)
    plain = agreement(student, same, pictures(4))
    identity = proteus.ProteusLoss(24, 24, head="identity")  # heads without a parameter
    assert agreement(student, same, pictures(4), loss=identity).distances == plain.distances
    alone = proteus.ProteusLoss(24, 36, feature=0, patch=0)
    found = agreement(student, teacher, pictures(4), loss=alone).distances
    assert set(found) == {"cls_cosine", "cls_mse"}
    masked = proteus.ProteusLoss(24, 36, feature=0)
    assert len(agreement(student, teacher, pictures(4), loss=masked).distances) == 4


def test_heads_compare_a_student_in_half_precision(student, teacher):
    loss = proteus.ProteusLoss(24, 36, patch=0)
    wide = agreement(student, teacher, pictures(4), loss=loss).distances
    half = agreement(student.bfloat16(), teacher, pictures(4), loss=loss).distances
    assert half == pytest.approx(wide, abs=0.05)


def test_a_number_that_does_not_exist_is_null_in_json(student):
    vector = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 4), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    found = agreement(vector, student, pictures(4), image_size=32).to_dict()
    assert found["cka_patches"] is None
    json.dumps(found, allow_nan=False)


def test_cka_is_the_formula_on_gram_matrices_and_ignores_rotation():
    x, y = torch.randn(30, 5).double(), torch.randn(30, 7).double()
    centring = torch.eye(30).double() - 1 / 30
    k, other = centring @ x @ x.T @ centring, centring @ y @ y.T @ centring
    expected = float((k * other).sum() / (k.norm() * other.norm()))
    assert linear_cka(x, y) == pytest.approx(expected)
    rotation = torch.linalg.qr(torch.randn(7, 7).double()).Q
    assert linear_cka(x, 3 * y @ rotation + 5) == pytest.approx(expected)
    with pytest.raises(ShapeError):
        linear_cka(x, y[:3])
