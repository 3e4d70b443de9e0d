import math

import pytest
import torch

from proteus import ProteusLoss
from proteus.features import ShapeError
from proteus.losses import token_loss
from proteus.token_queue import QueueKL


def one_by_one(student, teacher, past, temperature):
    """KL of the distributions over the own teacher token and the past ones, image by image."""

    def distribution(token, places):
        scores = [
            math.exp(float(token @ p / token.norm() / p.norm()) / temperature) for p in places
        ]
        return [score / sum(scores) for score in scores]

    found = []
    for s, t in zip(student, teacher, strict=True):
        pairs = zip(distribution(t, [t, *past]), distribution(s, [t, *past]), strict=True)
        found.append(sum(p * math.log(p / q) for p, q in pairs))
    return torch.tensor(found)


def test_it_compares_distributions_over_the_teacher_s_earlier_tokens():
    distance = QueueKL(4, queue_size=5, temperature=0.5)
    batches = torch.randn(4, 2, 2, 4)
    past = []
    for student, teacher in batches:
        expected = one_by_one(student, teacher, past[-5:], 0.5)
        torch.testing.assert_close(distance(student, teacher), expected, rtol=1e-4, atol=1e-6)
        past.extend(teacher)
    assert distance.filled == 8


def test_a_student_like_the_teacher_is_at_no_distance_and_another_is():
    distance = QueueKL(4, queue_size=8)
    teacher = torch.randn(3, 4)
    assert distance(torch.randn(3, 4), teacher).abs().max() < 1e-6  # nothing to be near to yet
    assert distance(3 * teacher, teacher).abs().max() < 1e-5
    assert distance(-teacher, teacher).min() > 0.1


def test_in_eval_the_queue_stays():
    distance = QueueKL(4, queue_size=8).eval()
    distance(torch.randn(3, 4), torch.randn(3, 4))
    assert distance.filled == distance.queue.abs().sum() == 0


def test_the_gradient_is_that_of_differences_and_survives_the_queue_s_change():
    distance = QueueKL(3, queue_size=4).double()
    distance(*torch.randn(2, 4, 3, dtype=torch.float64))
    student, teacher = torch.randn(2, 2, 3, dtype=torch.float64)
    student.requires_grad_(True)
    distance(student, teacher).sum().backward()
    assert student.grad.abs().sum() > 0
    distance.eval()
    assert torch.autograd.gradcheck(lambda x: distance(x, teacher), student)


def test_the_token_term_alone_uses_it(distiller_parts):
    student, teacher = distiller_parts
    loss = ProteusLoss(4, 6, patch=0, token_distance="queue", queue_size=16)
    loss(student, teacher)
    found = loss.eval()(student, teacher)
    head = loss.token_head(student.cls)
    torch.testing.assert_close(found.token, loss.queue(head, teacher.cls).mean())
    rest = (loss.feature_head(student.patches) - teacher.patches).square().mean((0, 2)).sum()
    expected = (token_loss(head, teacher.cls) + rest) / 7
    torch.testing.assert_close(found.feature, expected)


def test_another_token_distance_is_of_the_token_term_alone(distiller_parts):
    student, teacher = distiller_parts
    torch.manual_seed(0)
    plain = ProteusLoss(4, 6, patch=0)
    torch.manual_seed(0)
    other = ProteusLoss(4, 6, patch=0, token_distance="cosine")
    ours, theirs = other(student, teacher), plain(student, teacher)
    assert ours.feature == theirs.feature
    assert ours.token == token_loss(plain.token_head(student.cls), teacher.cls, "cosine")


@pytest.fixture
def distiller_parts():
    from test_losses import features

    return features(4), features(6)


def test_what_does_not_fit_is_named():
    with pytest.raises(ShapeError, match="Got 3 at once; expected at most 2"):
        QueueKL(4, queue_size=2)(torch.randn(3, 4), torch.randn(3, 4))
    with pytest.raises(ShapeError, match=r"\[images, 4\]"):
        QueueKL(4)(torch.randn(3, 5), torch.randn(3, 5))
    with pytest.raises(ValueError, match="queue_size would be ignored"):
        ProteusLoss(4, 6, queue_size=8)
    with pytest.raises(ValueError, match="token_distance would be ignored"):
        ProteusLoss(4, 6, token=0, token_distance="queue")
    with pytest.raises(ValueError, match="unknown distance"):
        ProteusLoss(4, 6, token_distance="huber")
    with pytest.raises(ValueError, match="temperature is out of range"):
        ProteusLoss(4, 6, token_distance="queue", temperature=0)
