import numpy as np
import pytest
import torch
from PIL import Image

from proteus import Features
from proteus.features import ShapeError
from proteus.report.curves import save_curves, thin
from proteus.visualize import pca_maps, save_masks, save_pca


def features(dim=8, batch=3, grid=(4, 5)):
    return Features(torch.randn(batch, dim), torch.randn(batch, grid[0] * grid[1], dim), grid)


def test_equal_features_have_equal_colours_and_the_basis_is_the_reference_s():
    one = features()
    first, second = pca_maps(one, one)
    assert first.shape == (3, 3, 4, 5)
    assert torch.equal(first, second)
    assert first.min() == 0
    assert first.max() == 1


def test_components_are_scikit_learn_s_up_to_sign_and_scale():
    from sklearn.decomposition import PCA

    one = features(grid=(6, 6))
    ours = pca_maps(one)[0].permute(0, 2, 3, 1).flatten(0, 2)
    theirs = PCA(3).fit_transform(one.patches.flatten(0, 1).numpy())
    for i in range(3):
        inner = (ours[:, i] > 0) & (ours[:, i] < 1)  # outside, colours are cut off
        pair = torch.stack([ours[inner, i], torch.tensor(theirs[:, i])[inner]])
        assert abs(float(torch.corrcoef(pair)[0, 1])) > 0.999


def test_grids_may_differ_and_widths_may_not():
    _, other = pca_maps(features(), features(grid=(2, 2)))
    assert other.shape == (3, 3, 2, 2)
    with pytest.raises(ShapeError, match="6 and 8"):
        pca_maps(features(), features(dim=6))


def test_a_joint_basis_favours_no_model():
    one, two = features(), features()
    forwards = pca_maps(one, two, basis="joint")
    backwards = pca_maps(two, one, basis="joint")
    assert torch.allclose(forwards[0], backwards[1], atol=1e-5)
    assert not torch.allclose(pca_maps(one, two)[0], pca_maps(two, one)[1], atol=1e-2)


def test_models_of_two_widths_have_a_basis_each_with_colours_alike():
    one = features(dim=8, batch=4, grid=(8, 8))
    turned, _ = torch.linalg.qr(torch.randn(12, 8))
    # The same features in another space of another width: nothing but signs can differ.
    other = one._replace(patches=-(one.patches @ turned.T))
    first, second = pca_maps(one, other, basis="own")
    assert torch.allclose(first, second, atol=1e-4)


def test_the_background_is_black_and_the_foreground_is_what_the_border_shows_less_of():
    patches = torch.randn(3, 10, 10, 6) * 0.1
    patches[:, 3:7, 3:7, 0] += 5
    one = Features(torch.zeros(3, 6), patches.flatten(1, 2), (10, 10))
    for flipped in (one, one._replace(patches=-one.patches)):
        (colours,) = pca_maps(flipped, foreground=0.5)
        shown = colours.amax(1) > 0
        assert shown[:, 3:7, 3:7].float().mean() > 0.95
        assert int(shown.sum()) == int(shown[:, 3:7, 3:7].sum())
    with pytest.raises(ValueError, match=r"no foreground is left. Got foreground=1.0"):
        pca_maps(one, foreground=1.0)


def test_an_unknown_basis_is_an_error():
    with pytest.raises(ValueError, match=r"no such basis\. Got 'each'"):
        pca_maps(features(), basis="each")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_pictures_are_written(tmp_path, dtype):
    images = (torch.rand(3, 3, 32, 40) * (255 if dtype == torch.uint8 else 1)).to(dtype)
    save_pca(images, {"teacher": features(), "student": features()}, tmp_path / "pca.png")
    names = ("step", "total", "token", "feature", "patch", "lr")
    save_curves([dict.fromkeys(names, float(i)) for i in range(30)], tmp_path / "curves.png")
    for name in ("pca.png", "curves.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 200


def test_no_rows_no_curves(tmp_path):
    with pytest.raises(ValueError, match="no rows"):
        save_curves([], tmp_path / "c.png")


def test_a_mask_covers_the_hidden_patches_and_nothing_else(tmp_path, monkeypatch):
    from proteus import visualize

    drawn = []
    monkeypatch.setattr(visualize, "save_rows", lambda rows, names, path: drawn.extend(rows))
    images = torch.zeros(2, 3, 128, 128)
    hidden = torch.zeros(2, 8, dtype=torch.bool)
    hidden[1, 5] = True  # second row, second column of 2 x 4
    visualize.save_masks(images, hidden, (2, 4), tmp_path / "m.png")
    plain, seen = drawn
    assert torch.equal(plain, images)
    assert torch.equal(seen[0], images[0])
    assert (seen[1, :, 64:, 32:64] == 0.5).all()
    assert seen[1].sum() == 3 * 64 * 32 * 0.5


def test_a_mask_picture_is_written_and_a_wrong_mask_is_an_error(tmp_path):
    images = torch.randint(0, 256, (3, 3, 56, 56), dtype=torch.uint8)
    save_masks(images, torch.rand(3, 16) < 0.5, (4, 4), tmp_path / "m.png")
    with Image.open(tmp_path / "m.png") as picture:
        assert min(picture.size) > 200
    with pytest.raises(ShapeError, match=r"\(3, 9\).*\(3, 16\)"):
        save_masks(images, torch.rand(3, 9) < 0.5, (4, 4), tmp_path / "m.png")


def test_a_thinned_curve_keeps_the_mean_and_every_extreme():
    steps, values = np.arange(10_007.0), np.random.default_rng(0).normal(size=10_007)
    values[[5, 7000]] = 50, -50
    curve = thin(steps, values, points=300)
    assert len(curve.steps) == 300
    assert curve.high.max() == 50
    assert curve.low.min() == -50
    assert (curve.low <= curve.mean).all()
    assert (curve.mean <= curve.high).all()
    edges = np.arange(300) * len(steps) // 300
    sizes = np.diff(np.append(edges, len(steps)))
    assert (curve.mean * sizes).sum() == pytest.approx(values.sum())


def test_a_short_curve_is_itself_and_what_is_not_finite_is_left_out():
    values = np.array([1.0, np.nan, 3.0, np.inf])
    curve = thin(np.arange(4.0), values)
    assert curve.steps.tolist() == [0, 2]
    assert curve.mean.tolist() == curve.low.tolist() == curve.high.tolist() == [1, 3]


def test_curves_are_drawn_of_whatever_terms_there_are(tmp_path):
    rows = [{"step": n, "total": 1.0, "kl": 0.5, "ce": 0.0, "lr": 0.1} for n in range(40)]
    save_curves(rows, tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.width == pytest.approx(3 * 3 * 110, abs=2)  # total, kl, lr: ce is off
