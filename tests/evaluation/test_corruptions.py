import itertools

import pytest
import torch

from proteus.data import open_source
from proteus.data.decoding import decode
from proteus.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from proteus.features import ShapeError


@pytest.fixture(scope="module")
def photographs():
    """Four real images of the demo, uint8 [4, 3, 128, 128]."""
    import numpy as np

    import proteus

    source = open_source(f"{proteus.__path__[0]}/demo/images/test.tar")
    pixels = [np.asarray(decode(source.read(i)).resize((128, 128))) for i in range(4)]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()


def distance(a, b):
    return float((a.float() - b.float()).abs().mean())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_stronger_severity_moves_photographs_further(photographs, name):
    moved = [
        distance(corrupt(photographs, name, severity, seeds=range(4)), photographs)
        for severity in SEVERITIES
    ]
    assert moved[0] > 0.2
    if name == "saturate":  # severities 1-2 take colour away, 3-5 add it
        assert moved[1] > moved[0] and moved[4] > moved[3] > moved[2]
    else:
        # Squares that do not divide the image evenly move its pixels aside, at any size.
        slack = 1.5 if name == "pixelate" else 0
        assert all(b >= a - slack for a, b in itertools.pairwise(moved)), moved
        assert moved[4] > 1.2 * moved[0]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_in_the_same_way_in_any_batch(photographs, name):
    together = corrupt(photographs, name, 3, seeds=[5, 6, 7, 8])
    alone = corrupt(photographs[2:3], name, 3, seeds=[7])
    assert torch.equal(together[2], alone[0])
    assert together.dtype == torch.uint8 and together.shape == photographs.shape


@pytest.mark.parametrize(
    "name", ["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "motion_blur"]
)
def test_another_seed_is_another_corruption(photographs, name):
    a, b = (corrupt(photographs[:1], name, 3, seeds=[seed]) for seed in (0, 1))
    assert not torch.equal(a, b)


def test_the_noises_have_their_published_strength():
    grey = torch.full((1, 3, 200, 200), 128, dtype=torch.uint8)
    noisy = corrupt(grey, "gaussian_noise", 1, seeds=[0]).float() / 255
    assert float(noisy.std()) == pytest.approx(0.08, abs=0.002)
    shot = corrupt(grey, "shot_noise", 1, seeds=[0]).float() / 255
    assert float(shot.std()) == pytest.approx((0.502 / 60) ** 0.5, abs=0.003)
    impulse = corrupt(grey, "impulse_noise", 5, seeds=[0])
    assert float((impulse != 128).float().mean()) == pytest.approx(0.27, abs=0.01)
    contrast = corrupt(torch.cat([grey[:, :, :100] - 60, grey[:, :, :100] + 60], 2), "contrast", 1,
                       seeds=[0])  # fmt: skip
    assert sorted(contrast.unique().tolist()) == [104, 152]


@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur", "motion_blur"])
def test_a_blur_keeps_flat_images_and_the_mean_of_others(photographs, name):
    flat = torch.full((1, 3, 40, 30), 77, dtype=torch.uint8)
    assert torch.equal(corrupt(flat, name, 5, seeds=[0]), flat)
    blurred = corrupt(photographs, name, 5, seeds=range(4))
    assert float(blurred.float().mean()) == pytest.approx(float(photographs.float().mean()), abs=4)
    assert blurred.float().std() < photographs.float().std()


def test_blurs_shrink_with_the_image():
    line = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    line[..., 16] = 255
    big = torch.nn.functional.interpolate(line, size=(224, 224), mode="nearest")
    peaks = [int(corrupt(image, "gaussian_blur", 5, seeds=[0]).max()) for image in (line, big)]
    assert peaks[0] == pytest.approx(peaks[1], rel=0.1)  # without scaling: 17 and 114


def test_grey_stays_grey_and_black_gets_brighter():
    grey = torch.full((1, 3, 8, 8), 99, dtype=torch.uint8)
    assert torch.equal(corrupt(grey, "saturate", 5, seeds=[0]), grey)
    black = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    assert corrupt(black, "brightness", 5, seeds=[0]).unique().tolist() == [128]


def test_what_cannot_be_corrupted_is_an_error(photographs):
    with pytest.raises(ValueError, match=r"Got 'fog'; expected one of gaussian_noise"):
        corrupt(photographs, "fog", 1, seeds=range(4))
    with pytest.raises(ValueError, match="must be 1 to 5"):
        corrupt(photographs, "jpeg_compression", 0, seeds=range(4))
    with pytest.raises(ValueError, match=r"uint8 0-255. Got torch.float32"):
        corrupt(photographs.float(), "contrast", 1, seeds=range(4))
    with pytest.raises(ShapeError, match="and 1 seeds"):
        corrupt(photographs, "contrast", 1, seeds=[0])
