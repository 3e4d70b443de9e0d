import itertools

import pytest
import torch

from proteus.evaluation.dense.sliding import pad_to_multiple, slide, window_positions


@pytest.mark.parametrize(
    ("length", "window", "stride"),
    [(691, 518, 345), (691, 518, 129), (518, 518, 345), (86, 64, 16)],
)
def test_windows_cover_a_side_and_are_full_size(length, window, stride):
    positions = window_positions(length, window, stride)
    assert {end - start for start, end in positions} == {window}
    assert positions[0][0] == 0 and positions[-1][1] == length
    assert all(b[0] <= a[0] + stride for a, b in itertools.pairwise(positions))


def test_the_papers_windows():
    assert window_positions(691, 518, 129) == [(0, 518), (129, 647), (173, 691)]
    assert window_positions(1000, 518, 345) == [(0, 518), (345, 863), (482, 1000)]


def test_maps_are_averaged_where_windows_overlap():
    calls = iter([1.0, 3.0])

    def constant(part):
        return torch.full((1, 2, *part.shape[2:]), next(calls))

    result = slide(constant, torch.zeros(1, 3, 4, 6), window=4, stride=2)
    assert result[0, 0, 0].tolist() == [1, 1, 2, 2, 3, 3]


def test_the_mirrored_prediction_is_mirrored_back():
    image = torch.rand(2, 3, 8, 20)
    assert torch.allclose(
        slide(lambda x: x, image, window=8, stride=3, flip=True), image, atol=1e-6
    )
    position = torch.arange(8.0).expand(2, 1, 8, 8)  # a prediction that does not look at the image
    result = slide(lambda x: position, image[..., :8], window=8, stride=8, flip=True)
    assert torch.equal(result, torch.full_like(result, 3.5))


def test_a_stride_that_would_miss_pixels_is_an_error():
    with pytest.raises(ValueError, match="window 64 and stride 65"):
        window_positions(100, 64, 65)


def test_padding_repeats_the_border():
    padded = pad_to_multiple(torch.arange(3.0).view(1, 1, 1, 3).expand(1, 3, 1, 3), (4, 4))
    assert padded.shape == (1, 3, 4, 4)
    assert padded[0, 0, 3].tolist() == [0, 1, 2, 2]
