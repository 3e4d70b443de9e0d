import random

import pytest
import torch
from oracles import block_mask

from proteus import MaskGenerator, masking


def test_the_default_is_the_authors_half_of_the_first_half():
    counts = MaskGenerator(16).masks(5).sum(1)
    assert counts.tolist() == [128, 128, 0, 0, 0]


def test_a_fixed_ratio_hides_exactly_that_many():
    assert set(MaskGenerator(16, ratio=0.3, probability=1).masks(9).sum(1).tolist()) == {76}


def test_every_patch_is_hidden_equally_often():
    share = MaskGenerator((4, 6), probability=1).masks(20_000).float().mean(0)
    torch.testing.assert_close(share, torch.full((24,), 0.5), rtol=0, atol=0.02)


def test_a_range_of_ratios_is_stratified_over_the_batch():
    counts = MaskGenerator(16, ratio=(0.1, 0.5), probability=1).masks(8).sum(1)
    for i, count in enumerate(counts.tolist()):
        low, high = (256 * (0.1 + 0.4 * j / 8) for j in (i, i + 1))
        assert int(low) <= count <= high


def test_shuffle_masks_a_random_subset_of_the_same_size():
    generator = MaskGenerator(4, shuffle=True)
    which = torch.stack([generator.masks(10).any(1) for _ in range(400)])
    assert which.sum(1).eq(5).all()
    torch.testing.assert_close(which.float().mean(0), torch.full((10,), 0.5), rtol=0, atol=0.1)


@pytest.mark.parametrize("strategy", ["random", "block"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_the_same_seed_gives_the_same_masks(strategy, shuffle):
    generator = MaskGenerator(8, strategy=strategy, shuffle=shuffle, ratio=(0.2, 0.6))
    first, second = (generator.masks(6, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, generator.masks(6, torch.Generator().manual_seed(8)))


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_images_said_to_be_masked_are_the_masked_ones(shuffle):
    hidden, images, _ = MaskGenerator(4, shuffle=shuffle).draw(9)
    rows = torch.arange(9)[images]
    assert sorted(rows.tolist()) == hidden.any(1).nonzero().squeeze(1).tolist()


@pytest.mark.parametrize("strategy", ["random", "block"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_drawing_never_asks_the_device(strategy, shuffle):
    masks = MaskGenerator(8, strategy=strategy, shuffle=shuffle, ratio=(0.2, 0.6))
    # The meta device has no answers.
    hidden, images, count = masks.draw(6, device="meta", part=(1, 2)).part(0, 3)
    assert (hidden.device.type, hidden.shape, count.shape) == ("meta", (2, 64), ())
    assert isinstance(images, slice) or images.device.type == "cpu"


@pytest.mark.parametrize(("probability", "count"), [(0.0, 0), (0.5, 3), (1.0, 7)])
def test_probability_is_the_share_of_masked_images(probability, count):
    hidden = MaskGenerator(4, probability=probability).masks(7)
    assert int(hidden.any(1).sum()) == count


@pytest.fixture(scope="module")
def hidden():
    generator = MaskGenerator(16, ratio=0.5, probability=1, strategy="block")
    return generator.masks(4000, torch.Generator().manual_seed(0))


class TestBlock:
    """Against the statistics of iBOT's own generator: 0.5 of a 16x16 grid."""

    def test_it_never_hides_more_than_asked_and_often_a_few_less(self, hidden):
        share = hidden.float().mean(1)
        assert share.max() <= 0.5
        assert share.mean() == pytest.approx(0.497, abs=0.002)
        assert share.min() >= 0.42

    def test_corners_are_hidden_far_less_than_the_centre(self, hidden):
        share = hidden.float().mean(0).view(16, 16)
        corners = torch.stack([share[0, 0], share[0, -1], share[-1, 0], share[-1, -1]])
        assert corners.mean() == pytest.approx(0.05, abs=0.02)
        assert share[7:9, 7:9].mean() == pytest.approx(0.88, abs=0.02)

    def test_hidden_patches_come_in_rectangles(self, hidden):
        grid = hidden.view(-1, 16, 16)
        alike = (grid[:, 1:] == grid[:, :-1]).float().mean()
        assert alike > 0.85  # 0.5 for independent patches

    def test_more_rounds_would_change_nothing(self, monkeypatch, hidden):
        monkeypatch.setattr(masking, "_ROUNDS", 100)
        longer = MaskGenerator(16, probability=1, strategy="block")
        assert torch.equal(longer.masks(4000, torch.Generator().manual_seed(0)), hidden)

    @pytest.mark.parametrize(("grid", "ratio"), [((16, 16), 0.3), ((5, 12), 0.5), ((9, 9), 0.75)])
    def test_masks_are_distributed_as_those_of_the_plain_loop(self, grid, ratio):
        count, generator = 1500, random.Random(0)
        wanted = int(ratio * grid[0] * grid[1])
        ours = MaskGenerator(grid, ratio=ratio, probability=1, strategy="block")
        ours = ours.masks(count).float().unflatten(1, grid)
        theirs = torch.stack([block_mask(grid, wanted, generator) for _ in range(count)])
        for statistic in (
            lambda masks: masks.flatten(1),  # how often each patch is hidden
            lambda masks: masks.sum((1, 2))[:, None],
            lambda masks: (masks[:, 1:] == masks[:, :-1]).float().mean((1, 2))[:, None],
            lambda masks: (masks[:, :, 1:] == masks[:, :, :-1]).float().mean((1, 2))[:, None],
        ):
            mine, other = statistic(ours), statistic(theirs)
            error = ((mine.var(0) + other.var(0)) / count).sqrt().clamp(min=1e-3)
            assert ((mine.mean(0) - other.mean(0)) / error).abs().max() < 4.5

    def test_it_works_on_grids_of_any_shape(self):
        for grid in [(1, 1), (2, 3), (4, 4), (5, 20)]:
            hidden = MaskGenerator(grid, probability=1, strategy="block").masks(8)
            assert hidden.sum(1).max() <= grid[0] * grid[1] // 2


@pytest.mark.parametrize(
    "options",
    [
        {"ratio": 50},
        {"ratio": (0.5, 0.1)},
        {"ratio": 0},
        {"ratio": -0.1},
        {"probability": 1.5},
        {"strategy": "blocks"},
    ],
)
def test_numbers_out_of_range_are_shown(options):
    value = next(iter(options.values()))
    with pytest.raises(ValueError, match=r"Got .*" + str(value).replace("(", r"\(")[:3]):
        MaskGenerator(4, **options)
