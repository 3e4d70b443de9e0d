import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proteus.features import Features, ShapeError
from proteus.grids import average_to, common_grid, meet, partner_size, resize, spread

sides = st.integers(1, 12)


def features(grid, width=5, images=2):
    count = grid[0] * grid[1]
    patches = torch.randn(images, count, width, dtype=torch.float64)
    return Features(torch.randn(images, width, dtype=torch.float64), patches, grid)


@given(sides, sides, sides, sides)
def test_the_common_grid_is_coarser_than_both_and_both_reach_it(a, b, c, d):
    one, other = meet(features((a, b)), features((c, d), width=3))
    assert one.grid == other.grid == common_grid((a, b), (c, d)) == (min(a, c), min(b, d))
    assert one.patches.shape == (2, min(a, c) * min(b, d), 5)


@given(sides, sides, st.data())
def test_averaging_keeps_constants_and_the_mean_over_the_image(rows, columns, data):
    grid = data.draw(st.tuples(st.integers(1, rows), st.integers(1, columns)))
    fine = features((rows, columns))
    coarse = average_to(fine, grid)
    torch.testing.assert_close(coarse.patches.mean(1), fine.patches.mean(1), rtol=1e-5, atol=1e-6)
    ones = fine._replace(patches=torch.ones_like(fine.patches))
    torch.testing.assert_close(average_to(ones, grid).patches, torch.ones_like(coarse.patches))


def test_whole_ratios_are_plain_means():
    fine = features((6, 9))
    maps = fine.patches.mT.unflatten(2, (6, 9))
    expected = torch.nn.functional.avg_pool2d(maps, (2, 3)).flatten(2).mT
    torch.testing.assert_close(average_to(fine, (3, 3)).patches, expected)


def test_a_patch_across_a_border_counts_by_its_share():
    fine = Features(torch.zeros(1, 1), torch.tensor([[[0.0], [3.0], [6.0]]]), (1, 3))
    # The left half holds the first third and half of the second.
    assert average_to(fine, (1, 2)).patches.flatten().tolist() == [1.0, 5.0]


def test_equal_grids_and_vectors_alone_come_back_as_they_are():
    one, other = features((4, 4)), features((4, 4), width=7)
    first, second = meet(one, other)
    assert first is one
    assert second is other
    vector = Features(torch.zeros(2, 3), torch.zeros(2, 0, 3), (0, 0))
    assert meet(one, vector) == (one, vector)


def test_patches_cannot_be_made_finer():
    with pytest.raises(ShapeError, match=r"\(2, 2\) to \(2, 3\)"):
        average_to(features((2, 2)), (2, 3))


@given(sides, sides, st.data())
def test_what_touches_a_hidden_cell_is_hidden(rows, columns, data):
    coarse = data.draw(st.tuples(st.integers(1, rows), st.integers(1, columns)))
    hidden = torch.rand(2, *coarse) < 0.5
    found = spread(hidden, (rows, columns))
    for row in range(rows):
        for column in range(columns):
            top, bottom = row * coarse[0] // rows, -(-(row + 1) * coarse[0] // rows)
            left, right = column * coarse[1] // columns, -(-(column + 1) * coarse[1] // columns)
            touched = hidden[:, top:bottom, left:right].flatten(1).any(1)
            assert torch.equal(found[:, row, column], touched)


def test_whole_ratios_hide_no_more_than_asked():
    hidden = torch.rand(3, 4, 5) < 0.5
    assert spread(hidden, (8, 15)).float().mean() == hidden.float().mean()


@pytest.mark.parametrize(
    ("patch", "expected"),
    [(14, 196), (16, 224), (12, 168), (20, 280), (10, 224), (8, 224), (32, 224), (0, 224)],
)
def test_the_partner_s_size_has_the_same_grid_if_it_is_within_a_third(patch, expected):
    assert partner_size((224, 224), (14, 14), (patch, patch)) == (expected, expected)


def test_images_of_the_right_size_are_not_touched():
    images = torch.randint(0, 256, (1, 3, 8, 6), dtype=torch.uint8)
    assert resize(images, (8, 6), "Teacher") is images


def test_resizing_is_antialiased_and_stays_in_range():
    stripes = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    stripes[..., ::2] = 255
    small = resize(stripes, (16, 16), "Teacher")
    torch.testing.assert_close(small, torch.full_like(small, 0.5), atol=0.05, rtol=0)
    noise = resize(torch.rand(1, 3, 50, 50), (20, 20), "Teacher")
    assert 0 <= noise.min() < noise.max() <= 1
