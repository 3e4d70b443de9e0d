import pytest
import torch
from oracles import mse

from proteus import Features, ProteusLoss
from proteus.features import ShapeError
from proteus.losses import feature_loss, patch_loss, token_loss


def features(dim, batch=3, grid=(2, 3), patch_dim=None):
    count = grid[0] * grid[1]
    return Features(torch.randn(batch, dim), torch.randn(batch, count, patch_dim or dim), grid)


@pytest.fixture
def pair():
    return features(4), features(6)


def test_the_functions_equal_the_loops():
    student, teacher, hidden = torch.randn(3, 5, 4), torch.randn(3, 5, 4), torch.rand(3, 5) < 0.5
    torch.testing.assert_close(
        token_loss(student[:, 0], teacher[:, 0]), mse(student[:, 0], teacher[:, 0])
    )
    torch.testing.assert_close(feature_loss(student, teacher), mse(student, teacher))
    expected = mse(student[hidden], teacher[hidden])
    torch.testing.assert_close(patch_loss(student, teacher, hidden), expected)
    torch.testing.assert_close(patch_loss(student[hidden], teacher[hidden]), expected)


def test_nothing_hidden_is_zero_with_zero_gradients():
    student = torch.randn(2, 5, 4, requires_grad=True)
    loss = patch_loss(student, torch.randn(2, 5, 4), torch.zeros(2, 5, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert student.grad.eq(0).all()


def test_half_precision_is_compared_in_float32():
    student, teacher = torch.randn(2, 8).half(), torch.randn(2, 8).half()
    loss = token_loss(student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, token_loss(student.float(), teacher.float()))


def test_the_class_token_of_the_feature_term_goes_through_the_token_head(pair):
    student, teacher = pair
    loss = ProteusLoss(4, 6, patch=0)
    rows = torch.cat([loss.token_head(student.cls)[:, None], loss.feature_head(student.patches)], 1)
    expected = feature_loss(rows, torch.cat([teacher.cls[:, None], teacher.patches], 1))
    torch.testing.assert_close(loss(student, teacher).feature, expected)


def test_weights_act_linearly_and_terms_are_unweighted(pair):
    student, teacher = pair
    loss = ProteusLoss(4, 6)
    hidden = torch.rand(3, 6) < 0.5
    one = loss(student, teacher, student, hidden)
    loss.token, loss.feature, loss.patch = 2.0, 3.0, 5.0
    other = loss(student, teacher, student, hidden)
    assert one[1:] == other[1:]
    torch.testing.assert_close(other.total, 2 * one.token + 3 * one.feature + 5 * one.patch)


@pytest.mark.parametrize(
    ("weights", "heads"),
    [
        ({"token": 0}, {"token_head", "feature_head", "patch_head"}),
        ({"feature": 0, "patch": 0}, {"token_head"}),
        ({"patch": 0}, {"token_head", "feature_head"}),
        ({"token": 0, "feature": 0}, {"patch_head"}),
    ],
)
def test_heads_exist_where_they_are_used(weights, heads):
    assert {name for name, _ in ProteusLoss(4, 6, **weights).named_children()} == heads


def test_a_term_of_weight_zero_is_not_computed(pair):
    student, teacher = pair
    losses = ProteusLoss(4, 6, token=0, patch=0)(student, teacher)
    assert losses.token == losses.patch == 0
    assert losses.total == losses.feature > 0
    nan = Features(student.cls, student.patches * torch.nan, student.grid)
    assert ProteusLoss(4, 6, feature=0, patch=0)(nan, teacher).total.isfinite()


def test_a_masked_view_of_some_images_is_compared_with_those(pair):
    student, teacher = pair
    loss, hidden = ProteusLoss(4, 6), torch.rand(3, 6) < 0.5
    hidden[1] = False
    rows = torch.tensor([0, 2])
    part = Features(student.cls[rows], student.patches[rows], student.grid)
    some, all_ = (
        loss(student, teacher, part, hidden, images=rows),
        loss(student, teacher, student, hidden),
    )
    torch.testing.assert_close(some.patch, all_.patch)


@pytest.mark.parametrize("weights", [{"token": -1}, {"token": 0, "feature": 0, "patch": 0}])
def test_weights_must_make_sense(weights):
    with pytest.raises(ValueError, match=r"token is out of range|weights"):
        ProteusLoss(4, 6, **weights)


def test_a_patch_term_without_masked_view_is_refused_and_the_reverse(pair):
    student, teacher = pair
    with pytest.raises(ValueError, match="patch=0"):
        ProteusLoss(4, 6)(student, teacher)
    with pytest.raises(ValueError, match=r"patch=0"):
        ProteusLoss(4, 6, patch=0)(student, teacher, student, torch.zeros(3, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="belong together"):
        ProteusLoss(4, 6)(student, teacher, student)


def test_shapes_that_do_not_fit_are_named(pair):
    student, teacher = pair
    loss = ProteusLoss(4, 6, patch=0)
    with pytest.raises(ShapeError, match=r"\(6, 6\).*ProteusLoss\(6, 6\)"):
        loss(teacher, teacher)
    with pytest.raises(ShapeError, match="student 3x2 and teacher 2x3"):
        loss(features(4, grid=(3, 2)), teacher)
    with pytest.raises(ShapeError, match=r"\(3, 5\)"):
        ProteusLoss(4, 6)(student, teacher, student, torch.zeros(3, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="huber"):
        ProteusLoss(4, 6, distance="huber")
    with pytest.raises(ShapeError, match=r"\(2, 3\)"):
        token_loss(torch.zeros(2, 3), torch.zeros(2, 4))


def test_patches_may_have_a_width_of_their_own():
    student, teacher = features(4, patch_dim=5), features(6)
    loss = ProteusLoss((4, 5), 6)
    assert (loss.student_dim, loss.teacher_dim) == ((4, 5), 6)
    assert loss.project(student).patches.shape == (3, 6, 6)
    loss(student, teacher, student, torch.rand(3, 6) < 0.5).total.backward()
    assert all(p.grad is not None for p in loss.parameters())
    with pytest.raises(ShapeError, match=r"\(4, \(4, 5\)\).*\(\(4, 5\), 6\)"):
        loss(features(4), features(4, patch_dim=5), student, torch.rand(3, 6) < 0.5)
    tokens = ProteusLoss(4, 6, feature=0, patch=0)
    assert tokens(student, teacher).total > 0  # patches are not looked at


@pytest.mark.parametrize("width", [0, (4,), (4, 0), 4.0])
def test_a_width_that_is_none_is_refused(width):
    with pytest.raises(ValueError, match="not a width"):
        ProteusLoss(width, 6)


def test_a_pair_of_equal_widths_is_a_width():
    assert ProteusLoss((4, 4), 6).student_dim == 4


def test_project_needs_the_feature_head(pair):
    with pytest.raises(ValueError, match="feature=0"):
        ProteusLoss(4, 6, feature=0, patch=0).project(pair[0])
    assert ProteusLoss(4, 6).project(pair[0]).patches.shape == (3, 6, 6)
