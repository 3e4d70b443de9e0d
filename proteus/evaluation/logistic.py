"""Logistic regression on class tokens with a sweep over the penalty: the fine-grained protocol."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from .classifier import LinearClassifier
from .extract import extract_features
from .feature_set import FeatureSet, check_sets
from .loading import BatchLoading, open_model
from .logistic_fit import (
    Standard,
    Sweep,
    fit_logistic,
    holdout_split,
    logistic_scores,
    penalties,
    standardise,
)
from .metrics import Metric, check_metric, score_of
from .result import Result
from .sets.labelled import open_splits
from .sets.paper_sets import metric_of


@dataclass(frozen=True)
class LogisticResult(Result):
    """Scores of a logistic regression with a sweep over C.

    Attributes:
        score: On the test set, per cent, by `metric`.
        metric: `accuracy`, `mean_class` or `map_11`.
        constant: The chosen C.
        index: Its place among the constants, 0 = the largest.
        val_scores: Validation score of each constant.
        sweep: `paper` or `official`.
        num_train: Images of train and val together, on which the final fit is made.
        num_test: Test images.
        num_classes: Classes.
        image_size: Pixels; 0 where features were given.
        weight: Of the final fit on raw features, [R, D].
        bias: [R].
        classifier: Images to scores; None where features were given.
    """

    protocol = "logistic_regression"
    score: float
    metric: Metric
    constant: float
    index: int
    val_scores: tuple[float, ...]
    sweep: Sweep
    num_train: int
    num_test: int
    num_classes: int
    image_size: int = 0
    weight: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, compare=False)
    bias: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, compare=False)
    classifier: LinearClassifier | None = field(default=None, repr=False, compare=False)


def logistic_regression(
    model: Any,
    train: Any,
    test: Any,
    *,
    val: Any = None,
    metric: Metric | None = None,
    sweep: Sweep = "paper",
    max_iter: int | None = None,
    **loading: Unpack[BatchLoading],
) -> LogisticResult:
    """The paper's fine-grained protocol: logistic regression on class tokens of a frozen model.

    Args:
        model: Anything `as_extractor` takes.
        train: Anything `open_labelled` takes; a path is opened with `split="train"`.
        test: The same; a path is opened with `split="test"`.
        val: Images that choose C; None = a fifth of train, drawn by `holdout_split`.
        metric: None = as the paper scores a set of this name (the folder's, or the one given to
            `open_labelled`), else accuracy; `map_11` where images have several labels.
        sweep: `paper` or `official`, see `penalties`.
        max_iter: Steps of the solver; None = the sweep's.
        **loading: See `BatchLoading`.

    Raises:
        ValueError: If there is one class only, labels are missing, or features are not finite.

    Examples:
        >>> from PIL import Image
        >>> images = [(Image.new("RGB", (8, 8), c), i) for i, c in enumerate(["red", "blue"] * 5)]
        >>> images = [(image, i % 2) for image, i in images]
        >>> model = torch.nn.Conv2d(3, 5, 4, stride=4)
        >>> logistic_regression(model, images, images, image_size=8).score
        100.0

    Source:
        Proteus (ICLR 2025), A.1.3; `eval/fine_grained/main_downstream_linear_dinov2.py`.
        *Same:* no augmentation, 45 constants, standardisation, C chosen on val, one fit on train
        and val, ties go to the largest C (so do 45 scores of zero).
        *Different:* each model normalises images with its own statistics; the authors use CLIP's
        for all.
    """
    penalties(sweep)  # before hours of extraction
    extractor, size, left = open_model(logistic_regression, model, loading)
    opened = open_splits(train, test, val)
    sets = [extract_features(extractor, data, resize=size, **left) for data in opened]
    if metric is None:
        name = Path(str(train)).name if isinstance(train, str | Path) else ""
        several = sets[0].labels.ndim == 2
        metric = "map_11" if several else opened[0].metric or metric_of(name)
    result = score_logistic(
        sets[0], sets[1], val=sets[2] if val is not None else None, metric=metric, sweep=sweep,
        max_iter=max_iter, device=extractor.device,
    )  # fmt: skip
    weight, bias = result.weight, result.bias
    if len(weight) == 1:
        weight, bias = torch.cat([-weight, weight]), torch.cat([-bias, bias])
    classifier = LinearClassifier(extractor, weight, bias, image_size=size, resize=size)
    return replace(result, image_size=size, classifier=classifier)


def score_logistic(
    train: FeatureSet,
    test: FeatureSet,
    *,
    val: FeatureSet | None = None,
    metric: Metric = "accuracy",
    sweep: Sweep = "paper",
    max_iter: int | None = None,
    device: str | torch.device = "cpu",
) -> LogisticResult:
    """`logistic_regression` on features that are there already.

    Examples:
        >>> features = FeatureSet(
        ...     torch.eye(2).repeat(5, 1), torch.zeros(10, 2), torch.arange(10) % 2
        ... )
        >>> score_logistic(features, features).score
        100.0
    """
    constants, steps = penalties(sweep)
    check_metric(metric, train.labels)
    if val is None:
        kept, held = holdout_split(len(train))
        fitted, chosen, whole = train.select(kept), train.select(held), train
        if len(chosen) == 0:
            raise ValueError(
                f"logistic regression: nothing to choose C on. Got {len(train)} training images "
                f"in {train.description}; expected at least 5, or val=."
            )
    else:
        fitted, chosen = train, val
        cls, labels = torch.cat([train.cls, val.cls]), torch.cat([train.labels, val.labels])
        whole = FeatureSet(cls, cls, labels)  # patches play no part
    check_sets(fitted, chosen, test, several=True)
    classes = max(whole.num_classes, test.num_classes)

    def fit(features: FeatureSet, values: Tensor) -> tuple[Standard, Tensor, Tensor]:
        x, y = features.cls.to(device), features.labels.to(device)
        scale = standardise(x)
        weights, bias = fit_logistic(
            scale(x), y, values, num_classes=classes,
            max_iter=steps if max_iter is None else max_iter,
        )  # fmt: skip
        return scale, weights, bias

    def scores(
        features: FeatureSet, scale: Standard, weights: Tensor, bias: Tensor
    ) -> tuple[float, ...]:
        x, y = scale(features.cls.to(device)), features.labels.to(device)
        found = (logistic_scores(x, w, b) for w, b in zip(weights, bias, strict=True))
        return tuple(score_of(f if metric == "map_11" else f.argmax(1), y, metric) for f in found)

    val_scores = scores(chosen, *fit(fitted, constants))
    index = max(range(len(val_scores)), key=lambda i: (val_scores[i], -i))
    scale, weights, bias = fit(whole, constants[index : index + 1])
    (score,) = scores(test, scale, weights, bias)
    raw = (weights[0] / scale.std).cpu()
    return LogisticResult(
        score=score,
        metric=metric,
        constant=float(constants[index]),
        index=index,
        val_scores=val_scores,
        sweep=sweep,
        num_train=len(whole),
        num_test=len(test),
        num_classes=classes,
        weight=raw,
        bias=bias[0].cpu() - raw @ scale.mean.cpu(),
    )
