import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from proteus.evaluation import (
    accuracy,
    eleven_point_ap,
    eleven_point_map,
    mean_class_accuracy,
    topk_accuracy,
)
from proteus.features import ShapeError


def test_mean_class_accuracy_is_scikit_learns_balanced_accuracy():
    labels, predictions = torch.randint(0, 6, (2, 200))
    expected = balanced_accuracy_score(labels, predictions) * 100
    assert mean_class_accuracy(predictions, labels) == pytest.approx(expected)


def test_a_class_that_is_only_predicted_is_left_out_where_the_authors_get_nan():
    predictions, labels = torch.tensor([0, 5, 1, 1]), torch.tensor([0, 0, 1, 1])
    assert mean_class_accuracy(predictions, labels) == 75.0


def test_topk_counts_the_label_among_the_best():
    scores = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    labels = torch.tensor([1, 0])
    assert [topk_accuracy(scores, labels, k) for k in (1, 2, 3, 9)] == [0, 50, 100, 100]
    assert accuracy(scores.argmax(1), torch.tensor([0, 2])) == 100


def test_a_recall_of_exactly_three_tenths_misses_its_point_as_in_the_authors_code():
    # Three of ten positives first, then a negative: the point 0.3 is a rounded 0.30000000000000004.
    positives = torch.tensor([1, 1, 1, *[0] * 7, *[1] * 7])
    scores = torch.arange(17, 0, -1).double()
    beyond = max(float(positives[:n].sum()) / n for n in range(11, 18))
    assert eleven_point_ap(scores, positives) == pytest.approx(100 * (3 + 8 * beyond) / 11)


def test_equal_scores_are_counted_together():
    positives = torch.tensor([1, 0])
    assert eleven_point_ap(torch.ones(2), positives) == eleven_point_ap(
        torch.ones(2), positives.flip(0)
    )


def test_a_class_without_positives_is_an_error_in_the_mean_and_nan_alone():
    assert eleven_point_ap(torch.rand(3), torch.zeros(3)) != eleven_point_ap(
        torch.rand(3), torch.zeros(3)
    )
    with pytest.raises(ValueError, match=r"classes \[1\]"):
        eleven_point_map(torch.rand(3, 2), torch.tensor([[1, 0], [0, 0], [1, 0]]))


def test_scores_of_nan_are_an_error_and_not_the_highest():
    scores = torch.tensor([[float("nan"), 0.1], [0.2, 0.1]])
    with pytest.raises(ValueError, match="Got NaN for 1 of 4"):
        topk_accuracy(scores, torch.tensor([0, 0]), 1)
    with pytest.raises(ValueError, match="Got NaN for 1 of 2"):
        eleven_point_map(scores, torch.tensor([[1, 0], [0, 1]]))


def test_shapes_are_checked():
    with pytest.raises(ShapeError, match=r"\(2,\) and \(3,\)"):
        accuracy(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ShapeError):
        accuracy(torch.zeros(0), torch.zeros(0))
