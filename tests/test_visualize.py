import pytest
import torch
from PIL import Image

from proteus import Features
from proteus.features import ShapeError
from proteus.visualize import pca_maps, save_curves, save_pca


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
