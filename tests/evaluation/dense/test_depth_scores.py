import json
import math

import numpy as np
import pytest
import torch

from proteus.evaluation.dense.depth_scores import (
    depth_mask,
    depth_scores,
    image_depth_scores,
    metres,
    silog_loss,
)
from proteus.features import ShapeError

MMSEG, TOOLBOX = "mmseg", "toolbox"


@pytest.fixture
def pair():
    target = metres(torch.randint(500, 9000, (48, 64)))
    return target * (0.8 + 0.4 * torch.rand_like(target)), target


def test_scores_equal_their_definitions_in_numpy(pair):
    p, t = (x.double().numpy() for x in pair)
    scores = depth_scores([pair[0]], [pair[1]])
    d = np.log(p) - np.log(t)
    expected = {
        "abs_rel": np.mean(np.abs(p - t) / t),
        "sq_rel": np.mean((p - t) ** 2 / t),
        "rmse": np.sqrt(np.mean((p - t) ** 2)),
        "rmse_log": np.sqrt(np.mean(d**2)),
        "log10": np.mean(np.abs(np.log10(p) - np.log10(t))),
        "silog": np.sqrt(np.mean(d**2) - 0.5 * np.mean(d) ** 2),
        "d1": np.mean(np.maximum(p / t, t / p) < 1.25),
    }
    for name, value in expected.items():
        assert scores.to_dict()[name] == pytest.approx(value, rel=1e-5), name
    toolbox = depth_scores([pair[0]], [pair[1]], convention=TOOLBOX)
    assert toolbox.silog == pytest.approx(100 * d.std(), rel=1e-5)
    assert toolbox.rmse == scores.rmse


def test_scores_are_of_each_image_and_then_the_mean():
    a, b = torch.full((1, 4), 1.0), torch.full((1, 2), 4.0)
    scores = depth_scores([a + 1, b + 3], [a, b])
    assert scores.rmse == pytest.approx(2.0)  # pooled: 1.9149
    assert scores.num_pixels == (4, 2)


def test_both_bounds_are_strict_in_single_precision():
    stored = torch.tensor([[0, 1, 2, 9999, 10000]])
    assert depth_mask(metres(stored)).tolist() == [[False, False, True, True, False]]


def test_a_ratio_at_a_threshold_does_not_count():
    target = torch.tensor([1.0, 1.0])
    assert image_depth_scores(torch.tensor([1.25, 1.2499]), target)["d1"] == 0.5


def test_the_eigen_crop_is_for_maps_of_480_by_640():
    assert int(depth_mask(torch.ones(480, 640), crop="eigen").sum()) == 426 * 560
    with pytest.raises(ShapeError, match=r"480x640 maps. Got \(128, 171\)"):
        depth_mask(torch.ones(128, 171), crop="eigen")
    with pytest.raises(ValueError, match=r"unknown crop. Got 'garg'"):
        depth_mask(torch.ones(480, 640), crop="garg")


def test_a_negative_prediction_spoils_the_logarithms_unless_clamped(pair):
    prediction, target = pair[0].clone(), pair[1]
    prediction[0, 0] = -0.1
    scores = depth_scores([prediction], [target])
    assert math.isnan(scores.rmse_log) and math.isnan(scores.log10) and math.isnan(scores.silog)
    assert math.isfinite(scores.rmse) and math.isfinite(scores.d1)
    assert depth_scores([prediction], [target], convention=TOOLBOX).silog == 0
    clamped = depth_scores([prediction], [target], clamp=True)
    assert all(math.isfinite(v) for v in clamped.to_dict().values())


def test_a_prediction_of_nothing_is_no_number_in_json():
    scores = depth_scores([torch.tensor([[0.0, -1.0]])], [torch.ones(1, 2)])
    written = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert written["rmse_log"] is written["log10"] is written["silog"] is None
    assert written["d1"] == 0.5  # mmseg takes -1 for right: its ratios are below 1.25
    infinite = depth_scores([torch.zeros(1, 2)], [torch.ones(1, 2)])
    assert infinite.rmse_log == math.inf and infinite.to_dict()["rmse_log"] is None


def test_an_image_without_depth_spoils_mmsegs_means_and_not_the_toolboxs(pair):
    pairs = [pair[0], torch.ones(2, 2)], [pair[1], torch.zeros(2, 2)]
    assert math.isnan(depth_scores(*pairs).rmse)
    alone = depth_scores([pair[0]], [pair[1]], convention=TOOLBOX)
    assert depth_scores(*pairs, convention=TOOLBOX).rmse == pytest.approx(alone.rmse, abs=1e-12)


def test_bad_pairs_are_errors(pair):
    with pytest.raises(ShapeError, match="differ in shape"):
        depth_scores([pair[0][:4]], [pair[1]])
    with pytest.raises(ValueError, match="Got 1 and 2"):
        depth_scores([pair[0]], [pair[1], pair[1]])
    with pytest.raises(ValueError, match=r"unknown convention\. Got 'eigen'"):
        depth_scores([pair[0]], [pair[1]], convention="eigen")
    with pytest.raises(ValueError, match="unknown convention"):
        image_depth_scores(pair[0].flatten(), pair[1].flatten(), convention="eigen")
    with pytest.raises(ValueError, match="no images"):
        depth_scores([], [])


def reference_silog(prediction, target, eps=1e-6):
    """The same formula, written for one image and without guards."""
    losses = []
    for p, t in zip(prediction, target, strict=True):
        valid = t > eps
        d = t[valid].log() - p[valid].clamp(min=eps).log()
        losses.append((d.square().mean() - 0.5 * d.mean().square()).sqrt())
    return torch.stack(losses).mean()


def test_the_training_loss_and_its_gradient_equal_the_formula():
    target = torch.rand(3, 1, 6, 8).double() * 5
    target[0, 0, :2] = 0
    prediction = (torch.rand_like(target) * 5 - 0.2).requires_grad_()
    ours, theirs = silog_loss(prediction, target), reference_silog(prediction, target)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-12)
    gradients = [torch.autograd.grad(loss, prediction)[0] for loss in (ours, theirs)]
    assert torch.allclose(*gradients, atol=1e-14)


def test_an_image_without_depth_or_error_has_no_gradient_instead_of_nan():
    target = torch.stack([torch.zeros(4), torch.ones(4), torch.full((4,), 2.0)])
    prediction = torch.tensor([[1.0] * 4, [1.0] * 4, [1.0, 2, 3, 4]], requires_grad=True)
    loss = silog_loss(prediction, target)
    loss.backward()
    assert prediction.grad[:2].abs().max() == 0
    assert prediction.grad[2].abs().min() > 0
    assert torch.isfinite(loss)
