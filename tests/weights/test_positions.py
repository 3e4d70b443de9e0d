import pytest
import timm
import torch

from proteus.models.names import position_rule
from proteus.weights.positions import fit_positions, resample_positions


def test_the_trained_grid_gives_the_very_table():
    table = torch.randn(1, 17, 8)
    assert resample_positions(table, (4, 4), prefix=1, rule="dinov2") is table


@pytest.mark.parametrize("grid", [(6, 6), (3, 5), (2, 8)])
def test_timm_s_rule_is_timm_s(grid):
    table = torch.randn(1, 17, 8)
    expected = timm.layers.resample_abs_pos_embed(table, new_size=list(grid), num_prefix_tokens=1)
    torch.testing.assert_close(resample_positions(table, grid, prefix=1, rule="timm"), expected)


@pytest.mark.parametrize("grid", [(16, 16), (8, 32), (37, 36)])
def test_the_two_rules_differ_and_both_keep_the_prefix(grid):
    table = torch.randn(1, 2 + 37 * 37, 4)
    ours, timms = (resample_positions(table, grid, prefix=2, rule=r) for r in ("dinov2", "timm"))
    assert ours.shape == timms.shape == (1, 2 + grid[0] * grid[1], 4)
    assert torch.equal(ours[:, :2], table[:, :2])
    assert (ours - timms).abs().max() > 1e-3


def test_a_grid_of_equal_count_but_another_shape_is_resampled():
    table = torch.randn(1, 16, 4)
    assert not torch.equal(resample_positions(table, (2, 8), prefix=0, rule="dinov2"), table)


def test_a_table_that_is_no_square_is_refused():
    with pytest.raises(ValueError, match="13 patch"):
        resample_positions(torch.randn(1, 14, 4), (2, 2), prefix=1, rule="timm")


def test_dinov2_without_registers_has_its_own_rule():
    assert position_rule("vit_base_patch14_dinov2.lvd142m") == "dinov2"
    assert position_rule("vit_base_patch14_reg4_dinov2") == "timm"
    assert position_rule("vit_base_patch16_224") == "timm"


def test_positions_stay_trainable_when_they_were():
    model = timm.create_model("vit_small_patch14_dinov2", img_size=56, depth=1)
    fit_positions(model, (70, 70), "dinov2", "test")
    assert isinstance(model.pos_embed, torch.nn.Parameter)
    assert model.pos_embed.requires_grad
    assert model(torch.zeros(1, 3, 70, 70)).shape == (1, 384)
