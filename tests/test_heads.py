import pytest
import torch
from torch import nn

from proteus import ProjectionHead

DESIGNS = ["ln_linear", "linear_gelu", "gelu_linear", "linear", "mlp"]


@pytest.mark.parametrize("design", DESIGNS)
def test_every_design_maps_to_the_teacher_s_width(design):
    assert ProjectionHead(4, 6, design)(torch.randn(2, 5, 4)).shape == (2, 5, 6)


@pytest.mark.parametrize(
    ("design", "reference"),
    [
        ("ln_linear", lambda h, x: h.linear(nn.functional.layer_norm(x, (4,)))),
        ("linear_gelu", lambda h, x: nn.functional.gelu(h.linear(x))),
        ("gelu_linear", lambda h, x: h.linear(nn.functional.gelu(x))),
        ("linear", lambda h, x: x @ h.linear.weight.T + h.linear.bias),
        ("mlp", lambda h, x: h.linear2(nn.functional.gelu(h.linear(h.norm(x))))),
    ],
)
def test_every_design_computes_what_it_says(design, reference):
    head, x = ProjectionHead(4, 6, design), torch.randn(3, 4)
    torch.testing.assert_close(head(x), reference(head, x))


def test_identity_changes_nothing_and_has_no_parameters():
    head, x = ProjectionHead(4, 4, "identity"), torch.randn(3, 4)
    assert torch.equal(head(x), x)
    assert not list(head.parameters())


def test_identity_cannot_change_the_width():
    with pytest.raises(ValueError, match="4 -> 6"):
        ProjectionHead(4, 6, "identity")


def test_an_unknown_design_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'lnlinear'.*ln_linear, linear_gelu"):
        ProjectionHead(4, 6, "lnlinear")


def test_the_norm_has_pytorch_s_epsilon_and_not_the_backbone_s():
    assert ProjectionHead(4, 6).norm.eps == 1e-5
