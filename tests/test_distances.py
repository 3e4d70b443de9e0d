from typing import get_args

import pytest
import torch
from oracles import cosine, relations, smooth_l1

from proteus import Features, ProteusLoss
from proteus.distances import Distance, feature_loss, patch_loss, token_distance, token_loss

DISTANCES = get_args(Distance)


@pytest.mark.parametrize("distance", DISTANCES)
def test_every_distance_is_zero_between_equals_and_positive_between_others(distance):
    x, y = torch.randn(2, 3, 5)
    assert token_distance(x, x, distance).abs().max() < 1e-6
    assert token_distance(x, y, distance).min() > 0


@pytest.mark.parametrize("distance", DISTANCES)
def test_every_distance_has_the_gradient_of_its_differences(distance):
    student, teacher = torch.randn(2, 2, 4, 3, dtype=torch.float64)
    student.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: token_distance(x, teacher, distance), student)


def test_cosine_smooth_l1_is_nine_parts_cosine_and_one_part_smooth_l1():
    student, teacher = 3 * torch.randn(2, 4, 5)
    expected = 0.9 * cosine(student, teacher) + 0.1 * smooth_l1(student, teacher)
    torch.testing.assert_close(token_loss(student, teacher, "cosine_smooth_l1"), expected)


def test_relation_compares_the_two_matrices_of_cosines():
    student, teacher = torch.randn(2, 2, 5, 3)
    torch.testing.assert_close(
        token_distance(student, teacher, "relation").mean(), relations(student, teacher)
    )


def test_relation_does_not_see_a_rotation_or_the_length_of_tokens():
    x = torch.randn(2, 5, 4)
    turned = x @ torch.linalg.qr(torch.randn(4, 4)).Q * torch.rand(2, 5, 1).add(0.5)
    assert token_distance(x, turned, "relation").max() < 1e-10
    assert token_distance(x, turned, "cosine").max() > 0.01


def test_relation_of_hidden_patches_is_to_all_patches_of_their_image():
    student, teacher, hidden = torch.randn(2, 5, 3), torch.randn(2, 5, 3), torch.rand(2, 5) < 0.5
    rows = token_distance(student, teacher, "relation")[hidden]
    torch.testing.assert_close(patch_loss(student, teacher, hidden, "relation"), rows.mean())


def test_class_tokens_have_no_relations_and_are_compared_by_cosine():
    student, teacher = torch.randn(2, 3, 5, 4)
    one, other = student[:, 0], teacher[:, 0]
    assert token_loss(one, other, "relation") == token_loss(one, other, "cosine")
    rest = token_distance(student[:, 1:], teacher[:, 1:], "relation").sum(1)
    expected = (token_distance(one, other, "cosine") + rest).mean() / 5
    torch.testing.assert_close(feature_loss(student, teacher, "relation"), expected)
    loss = ProteusLoss(4, 4, token=0, patch=0, head="identity", distance="relation")
    given = (Features(x[:, 0], x[:, 1:], (2, 2)) for x in (student, teacher))
    torch.testing.assert_close(loss(*given).feature, expected)


def test_relation_under_autocast_is_not_of_half_precision():
    student, teacher = torch.randn(2, 2, 5, 64)
    with torch.autocast("cpu", torch.bfloat16):
        found = token_distance(student, teacher, "relation")
    assert torch.equal(found, token_distance(student, teacher, "relation"))
