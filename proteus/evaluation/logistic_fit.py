"""Fitting a logistic regression with many penalties at once, and what belongs to it."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..features import ShapeError
from .feature_set import check_finite
from .lbfgs import minimise

Sweep = Literal["paper", "official"]
_RANGES = {"paper": (-6, 3, 500), "official": (-6, 5, 1000)}  # 10^a … 10^b, steps of the solver
_CONSTANTS = 45
_ELEMENTS = 1 << 24  # of the scores that are held at once
_PARAMETERS = 1 << 24  # that are solved at once, of all constants together


def penalties(sweep: Sweep) -> tuple[Tensor, int]:
    """The 45 constants C, from the largest (weakest penalty) down, and the solver's steps.

    `paper` has penalties 1e-6 … 1e3 and 500 steps, as section A.1.3 says; `official` has
    1e-6 … 1e5 and 1000 steps, as the released code does.

    Examples:
        >>> values, steps = penalties("official")
        >>> len(values), steps, round(float(values[0])), float(values[24])
        (45, 1000, 1000000, 1.0)
    """
    if sweep not in _RANGES:
        raise ValueError(
            f"logistic regression: unknown sweep. Got {sweep!r}; expected 'paper' or 'official'."
        )
    low, high, steps = _RANGES[sweep]
    return 1 / torch.logspace(low, high, _CONSTANTS).double(), steps


def holdout_split(count: int) -> tuple[Tensor, Tensor]:
    """Numbers of the training and of the validation part of n images, for sets without their own.

    Shuffled by NumPy with seed 0; the first fifth (rounded down) is validation. Not stratified.

    Examples:
        >>> train, val = holdout_split(50)
        >>> len(train), val.tolist()[:4]
        (40, [28, 11, 10, 41])
    """
    order = torch.from_numpy(np.random.RandomState(0).permutation(count))
    held = count // 5
    return order[held:], order[:held]


class Standard(NamedTuple):
    """Mean and deviation of features; columns that are constant get deviation 1."""

    mean: Tensor
    std: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Standardise, in float64."""
        return (features.double() - self.mean) / self.std


def standardise(features: Tensor) -> Standard:
    """Mean and population deviation of each column [n, D].

    Source:
        Proteus `eval/fine_grained`.
        *Same:* population deviation, nothing added to it.
        *Different:* a constant column becomes 0, where the authors' becomes NaN and fails.
    """
    wide = features.double()
    mean, std = wide.mean(0), wide.std(0, correction=0)
    # Rounding leaves a constant column a deviation of a few units in the last place.
    constant = std <= 1e-9 * wide.abs().amax(0)
    return Standard(mean, torch.where(constant, 1.0, std))


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    constants: Sequence[float] | Tensor,
    *,
    num_classes: int,
    max_iter: int = 1000,
    tolerance: float = 1e-12,
    start: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Minimise C * sum of cross entropies + |W|^2 / 2, for several C at once.

    Two classes have one row of weights and a sigmoid; so has each class where an image may have
    several labels. The intercept is not penalised. A class without an image has weights of 0 and an
    intercept of minus infinity, and the others are fitted as if it did not exist.

    Args:
        features: [n, D], standardised; solved in their dtype, float64 for the last digits.
        labels: long [n], 0 … K - 1, or 0/1 [n, classes] for several labels an image.
        constants: C, [P], above 0.
        num_classes: K.
        max_iter: Steps of L-BFGS.
        tolerance: Of the largest entry of the gradient.
        start: (weights, bias) to start from, as returned; None = zeros, as where a class is absent.

    Returns:
        Weights [P, R, D] and bias [P, R], R = 1 for two classes, else K.

    Raises:
        ShapeError: If features and labels do not fit.
        ValueError: If features are not finite, a label is not in the range above, or a C is not
            positive.

    Examples:
        >>> x, y = torch.tensor([[-1.0], [0.0], [1.0]]).double(), torch.tensor([0, 0, 1])
        >>> weights, bias = fit_logistic(x, y, [1.0, 100.0], num_classes=2)
        >>> weights.shape, bool(weights[1] > weights[0])
        (torch.Size([2, 1, 1]), True)

    Source:
        scikit-learn `LogisticRegression`, whose minimiser this is; cuML scales the same function.
        *Same:* objective, stopping rule; converged coefficients to 1e-5.
        *Different:* all constants in the same matrix products.
    """
    values = torch.as_tensor(constants, dtype=features.dtype, device=features.device)
    _check(features, labels, values, num_classes)
    if labels.ndim == 1:
        present = labels.bincount(minlength=num_classes).nonzero().flatten()
        if 1 < len(present) < num_classes:
            fitted = fit_logistic(
                features, torch.searchsorted(present, labels), values, num_classes=len(present),
                max_iter=max_iter, tolerance=tolerance,
            )  # fmt: skip
            return _with_absent(*fitted, present, num_classes)
    targets, rows = _targets(labels, num_classes, features.dtype)
    count, width = features.shape
    inputs = F.pad(features, (0, 1), value=1.0)  # the intercept's column
    begin = features.new_zeros(len(values), rows, width + 1)
    if start is not None:
        begin = torch.cat([start[0], start[1][..., None]], -1).to(features)

    def objective(theta: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        weights = theta.view(len(which), rows, width + 1)
        ridge = (1 / (values[which] * count))[:, None, None]
        penalised = F.pad(weights[..., :width], (0, 1)) * ridge
        loss = (penalised * weights).sum((1, 2)) / 2
        gradient = penalised
        flat = weights.reshape(-1, width + 1)
        length = max(1, _ELEMENTS // len(flat))
        pieces = zip(torch.split(inputs, length), torch.split(targets, length), strict=True)
        for x, y in pieces:
            part, slope = _cross_entropy((x @ flat.T).view(len(x), len(which), rows), y)
            loss = loss + part / count
            gradient = gradient + (slope.flatten(1).T @ x).view(weights.shape) / count
        return loss, gradient.flatten(1)

    solved = []
    group = max(1, _PARAMETERS // (rows * (width + 1)))
    for chosen in torch.split(torch.arange(len(values), device=features.device), group):

        def part_of(theta: Tensor, which: Tensor, chosen: Tensor = chosen) -> tuple[Tensor, Tensor]:
            return objective(theta, chosen[which])

        begun = begin[chosen].flatten(1)
        solved.append(minimise(part_of, begun, max_iter=max_iter, tolerance=tolerance)[0])
    theta = torch.cat(solved).view(len(values), rows, width + 1)
    return theta[..., :width], theta[..., width]


def _with_absent(
    weights: Tensor, bias: Tensor, present: Tensor, classes: int
) -> tuple[Tensor, Tensor]:
    """Rows for all classes, of a fit of those that are present; of two, the first scores 0."""
    all_weights = weights.new_zeros(len(weights), classes, weights.shape[2])
    all_bias = bias.new_full((len(bias), classes), -torch.inf)
    all_bias[:, present] = 0
    rows = present[-weights.shape[1] :]
    all_weights[:, rows], all_bias[:, rows] = weights, bias
    return all_weights, all_bias


def _targets(labels: Tensor, classes: int, dtype: torch.dtype) -> tuple[Tensor, int]:
    """Long [n] for a softmax, or 0/1 [n, R] for sigmoids; and R."""
    if labels.ndim == 2:
        return labels.to(dtype), labels.shape[1]
    return (labels[:, None].to(dtype), 1) if classes == 2 else (labels, classes)


def _cross_entropy(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over images of the loss [P], and its slope in the scores [n, P, R]."""
    if targets.ndim == 2:
        loss = F.softplus(scores) - scores * targets[:, None]
        return loss.sum((0, 2)), scores.sigmoid() - targets[:, None]
    # One exponential: `log_softmax` and its `exp` are two. A probability that underflows gives an
    # infinite loss, which the line search takes for a step too far.
    slope = scores.softmax(-1)
    index = targets[:, None, None].expand(-1, scores.shape[1], 1)
    loss = -slope.gather(-1, index).log().sum((0, 2))
    return loss, slope.scatter_add_(-1, index, scores.new_full(index.shape, -1.0))


def logistic_scores(features: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    """Scores [n, K] of standardised features; two classes get the sigmoid's score and its negative.

    Args:
        features: [n, D].
        weights: [R, D].
        bias: [R].
    """
    scores = F.linear(features, weights.to(features), bias.to(features))
    return torch.cat([-scores, scores], 1) if scores.shape[1] == 1 else scores


def _check(features: Tensor, labels: Tensor, constants: Tensor, classes: int) -> None:
    if features.ndim != 2 or labels.shape[:1] != features.shape[:1] or labels.ndim > 2:
        raise ShapeError(
            f"logistic regression: features and labels do not fit. Got {tuple(features.shape)} "
            f"and {tuple(labels.shape)}; expected [n, D] and [n], or [n, classes]."
        )
    check_finite(features, "features")
    highest = 1 if labels.ndim == 2 else classes - 1
    if not 0 <= int(labels.min()) <= int(labels.max()) <= highest:
        raise ValueError(
            f"logistic regression: labels must be in 0 … {highest}. Got {int(labels.min())} to "
            f"{int(labels.max())}."
        )
    if not (constants > 0).all():
        raise ValueError(
            f"logistic regression: constants C must be above 0. Got {constants.tolist()}."
        )
