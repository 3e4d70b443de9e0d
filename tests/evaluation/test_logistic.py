import warnings

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from proteus.evaluation import FeatureSet, fit_logistic, score_logistic, standardise
from proteus.evaluation.logistic_fit import logistic_scores
from proteus.features import ShapeError


def sample(count=150, width=6, classes=4, seed=0):
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=random)
    centres = torch.randn(classes, width, generator=random)
    noise = torch.randn(count, width, generator=random)
    return (centres[labels] + noise).double(), labels


@pytest.mark.parametrize("classes", [2, 4])
def test_the_minimiser_is_scikit_learns(classes):
    x, y = sample(classes=classes)
    constants = [10.0, 0.1, 1e-3]
    weights, bias = fit_logistic(x, y, constants, num_classes=classes)
    for row, constant in enumerate(constants):
        oracle = LogisticRegression(C=constant, tol=1e-10, max_iter=5000).fit(x, y)
        torch.testing.assert_close(weights[row], torch.from_numpy(oracle.coef_), atol=1e-5, rtol=0)
        scores = logistic_scores(x, weights[row], bias[row])
        assert (scores.argmax(1).numpy() == oracle.predict(x)).all()


@pytest.mark.parametrize("present", [[0, 3], [1, 2, 4]])
def test_classes_without_images_change_nothing_for_the_others(present):
    x, y = sample(classes=len(present))
    labels = torch.tensor(present)[y]
    weights, bias = fit_logistic(x, labels, [0.1], num_classes=5)
    oracle = LogisticRegression(C=0.1, tol=1e-10, max_iter=5000).fit(x, labels)
    scores = logistic_scores(x, weights[0], bias[0])
    expected = torch.zeros(len(x), 5).double()
    expected[:, present] = torch.from_numpy(oracle.predict_proba(x))
    torch.testing.assert_close(scores.softmax(1), expected, atol=1e-5, rtol=0)


def test_several_labels_are_as_many_separate_fits():
    x, y = sample(classes=3)
    several = torch.stack([(y == c).long() for c in range(3)], 1)
    weights, bias = fit_logistic(x, several, [0.5], num_classes=3)
    for c in range(3):
        oracle = LogisticRegression(C=0.5, tol=1e-10, max_iter=5000).fit(x, several[:, c])
        torch.testing.assert_close(
            weights[0, c], torch.from_numpy(oracle.coef_[0]), atol=1e-5, rtol=0
        )
        assert float(bias[0, c]) == pytest.approx(float(oracle.intercept_[0]), abs=1e-5)


def test_constants_do_not_influence_each_other_and_a_start_changes_nothing():
    x, y = sample()
    together = fit_logistic(x, y, [1.0, 0.01], num_classes=4)
    alone = fit_logistic(x, y, [0.01], num_classes=4)
    torch.testing.assert_close(together[0][1], alone[0][0], atol=1e-6, rtol=0)
    start = (together[0][:1], together[1][:1])
    warm = fit_logistic(x, y, [0.01], num_classes=4, start=start)
    torch.testing.assert_close(warm[0], alone[0], atol=1e-6, rtol=0)


def test_pieces_of_the_images_and_groups_of_constants_change_nothing(monkeypatch):
    x, y = sample()
    whole = fit_logistic(x, y, [1.0, 0.1, 0.01], num_classes=4)
    monkeypatch.setattr("proteus.evaluation.logistic_fit._ELEMENTS", 64)
    monkeypatch.setattr("proteus.evaluation.logistic_fit._PARAMETERS", 64)
    pieces = fit_logistic(x, y, [1.0, 0.1, 0.01], num_classes=4)
    torch.testing.assert_close(whole, pieces, atol=1e-6, rtol=0)


def test_a_constant_column_becomes_zero_where_the_authors_get_nan():
    x, y = sample()
    with_constant = torch.cat([x, torch.full((len(x), 1), 0.1)], 1)
    scaled = standardise(with_constant.float())(with_constant.float())
    assert scaled.isfinite().all()
    assert scaled[:, -1].abs().max() < 1e-6
    features = FeatureSet(with_constant.float(), with_constant.float(), y)
    plain = FeatureSet(x.float(), x.float(), y)
    assert score_logistic(features, features).score == score_logistic(plain, plain).score


def test_ties_go_to_the_largest_constant_and_so_do_scores_of_zero():
    x = torch.tensor([[-1.0], [1.0]]).repeat(20, 1)
    y = torch.tensor([0, 1]).repeat(20)
    features = FeatureSet(x, x, y)
    result = score_logistic(features, features)
    assert (result.index, result.val_scores[:10]) == (0, (100.0,) * 10)
    # Validation labels that nothing can hit: every score is zero.
    upside_down = FeatureSet(x[:2], x[:2], 1 - y[:2])
    result = score_logistic(features, features, val=upside_down)
    assert (result.index, set(result.val_scores)) == (0, {0.0})


def test_mean_class_and_accuracy_differ_where_classes_do():
    x, y = sample(count=200)
    few = torch.cat([torch.where(y == 0)[0], torch.where(y == 1)[0][:3]])
    train, test = FeatureSet(x.float(), x.float(), y), FeatureSet(x[few], x[few], y[few])
    scores = [score_logistic(train, test, metric=m).score for m in ("accuracy", "mean_class")]
    assert scores[0] != scores[1]


def test_what_cannot_be_fitted_is_said():
    x, y = sample()
    one_class = FeatureSet(x, x, torch.zeros_like(y))
    with pytest.raises(ValueError, match=r"one class only.*\[0\]"):
        score_logistic(one_class, one_class)
    tiny = FeatureSet(x[:4], x[:4], torch.tensor([0, 1, 0, 1]))
    with pytest.raises(ValueError, match="nothing to choose C on"):
        score_logistic(tiny, tiny)
    with pytest.raises(ValueError, match="not finite"):
        fit_logistic(x * float("nan"), y, [1.0], num_classes=4)
    with pytest.raises(ShapeError):
        fit_logistic(x, y[:3], [1.0], num_classes=4)
    with pytest.raises(ValueError, match="unknown sweep"):
        score_logistic(tiny, tiny, sweep="long")
    features = FeatureSet(x, x, y)
    with pytest.raises(ValueError, match="map_11"):
        score_logistic(features, features, metric="map_11")


@pytest.mark.parametrize("labels", [[-1, 1], [1, 2]])
def test_labels_that_are_no_class_numbers_are_an_error(labels):
    x, y = sample(classes=2)
    with pytest.raises(ValueError, match=rf"in 0 … 1. Got {labels[0]} to {labels[1]}"):
        fit_logistic(x, torch.tensor(labels)[y], [1.0], num_classes=2)
    with pytest.raises(ValueError, match="above 0"):
        fit_logistic(x, y, [1.0, 0.0], num_classes=2)


def test_test_features_that_are_not_finite_are_an_error_and_not_class_zero():
    x, y = sample()
    bad = x.clone()
    bad[7, 1] = float("inf")
    with pytest.raises(ValueError, match=r"NaN or infinity in 1 of 150 .*number 7"):
        score_logistic(FeatureSet(x, x, y), FeatureSet(bad, x, y))


def test_an_unconverged_fit_stops_after_its_steps():
    x, y = sample()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = LogisticRegression(C=1e6, tol=1e-12, max_iter=5).fit(x, y)
    weights, _ = fit_logistic(x, y, [1e6], num_classes=4, max_iter=5)
    assert weights.norm() < 10 * float(torch.from_numpy(oracle.coef_).norm())
