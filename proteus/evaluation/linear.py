"""DINOv2's linear probe: 52 linear classifiers trained at once on a frozen model's features."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..models.frozen import Extractor
from ..world import rank_and_world
from .classifier import LinearClassifier
from .extract import extract_features
from .feature_set import FeatureSet, check_sets, probe_resize
from .linear_heads import BLOCKS, LEARNING_RATES, Head, ProbeHeads, draw_batches, head_grid
from .loading import Loading, open_model
from .logistic_fit import holdout_split
from .metrics import Metric, check_metric, score_of
from .result import Result
from .sets.labelled import open_splits
from .views import View, augmented_views, stored_views

Select = Literal["test", "holdout"]
_ROWS = 4096


@dataclass(frozen=True)
class LinearProbeResult(Result):
    """Scores of a linear probe.

    Attributes:
        score: Of the chosen head on the test set, per cent.
        head: The chosen one.
        scores: Test score of each head; with `holdout` of the chosen one, and `selection` has all.
        selection: Score of each head where it was chosen.
        select: `test` or `holdout`.
        metric: `accuracy` or `mean_class`.
        augment: Whether training saw random crops.
        iterations: Steps.
        batch_size: Images a step.
        num_train: Training images.
        num_test: Test images.
        num_classes: Classes.
        image_size: Pixels; 0 where features were given.
        weight: Of the chosen head, [classes, F].
        bias: [classes].
        classifier: Images to scores; None where features were given.
    """

    protocol = "linear_probe"
    score: float
    head: Head
    scores: dict[Head, float]
    selection: dict[Head, float]
    select: Select
    metric: Metric
    augment: bool
    iterations: int
    batch_size: int
    num_train: int
    num_test: int
    num_classes: int
    image_size: int = 0
    weight: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, compare=False)
    bias: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, compare=False)
    classifier: LinearClassifier | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The numbers, ready for JSON."""
        return {
            **super().to_dict(),
            "head": self.head._asdict(),
            "scores": [{**head._asdict(), "score": s} for head, s in self.scores.items()],
            "selection": [{**head._asdict(), "score": s} for head, s in self.selection.items()],
        }


def linear_probe(
    model: Any,
    train: Any,
    test: Any,
    *,
    select: Select = "test",
    augment: bool = True,
    iterations: int = 12_500,
    batch_size: int = 512,
    learning_rates: Sequence[float] = LEARNING_RATES,
    num_blocks: Sequence[int] | None = None,
    metric: Metric = "accuracy",
    seed: int = 0,
    **loading: Unpack[Loading],
) -> LinearProbeResult:
    """Train linear classifiers on a frozen model and report the best.

    Args:
        model: Anything `as_extractor` takes.
        train: Anything `open_labelled` takes; a path is opened with `split="train"`.
        test: The same; a path is opened with `split="test"`.
        select: `test` = the head that is best on the test set, as DINOv2 and the paper report it;
            the number is too good. `holdout` = the head that is best on a fifth of the training
            images which it has not seen, then trained again on all of them.
        augment: Random resized crops and flips in every step, as in the paper. False = features of
            the centre are computed once, which is hundreds of times faster on a small machine.
        iterations: Steps; the paper has 25,020, DINOv2 12,500.
        batch_size: Images a step, over all processes.
        learning_rates: Base rates, multiplied by batch_size / 256.
        num_blocks: Last blocks whose class tokens are the input; None = DINOv2's 1 and 4, or 1 for
            a CNN and for models of fewer blocks.
        metric: `accuracy` or `mean_class`.
        seed: Of weights, batches and crops.
        **loading: See `Loading`. Augmented views are not cached.

    Raises:
        ValueError: If there is one class only, labels are missing, or features are not finite.

    Examples:
        >>> from PIL import Image
        >>> images = [(Image.new("RGB", (8, 8), c), i) for i, c in enumerate(["red", "blue"])]
        >>> result = linear_probe(
        ...     torch.nn.Conv2d(3, 5, 4, stride=4),
        ...     images,
        ...     images,
        ...     image_size=8,
        ...     augment=False,
        ...     iterations=20,
        ...     batch_size=256,
        ... )
        >>> result.score, len(result.scores)
        (100.0, 26)

    Source:
        Proteus (ICLR 2025), A.1.2; DINOv2 `dinov2/eval/linear.py`.
        *Same:* 13 rates x {1, 4} blocks x mean patch or not, input, optimizer, schedule, crops.
        *Different:* heads are known by their exact settings and none is lost; `augment=False` and
        `select="holdout"` exist; the order of the images is drawn from our own generator.
    """
    _check_settings(select, iterations, batch_size)
    extractor, size, left = open_model(linear_probe, model, loading)
    blocks = fitting_blocks(extractor) if num_blocks is None else tuple(num_blocks)
    depth = max(blocks)
    opened = open_splits(train, test)
    training, testing = [extract_features(extractor, one, blocks=depth, **left) for one in opened]

    def crops(batches: Iterable[Tensor]) -> Iterable[View]:
        return augmented_views(
            extractor, opened[0], (batch.tolist() for batch in batches), size=size, blocks=depth,
            seed=seed, workers=left.get("workers"),
        )  # fmt: skip

    result = score_linear(
        training, testing, select=select, iterations=iterations, batch_size=batch_size,
        learning_rates=learning_rates, num_blocks=blocks, metric=metric, seed=seed,
        device=extractor.device, progress=left.get("progress", False),
        views=crops if augment else None,
    )  # fmt: skip
    classifier = LinearClassifier(
        extractor, result.weight, result.bias, image_size=size, resize=probe_resize(size),
        blocks=result.head.blocks, avgpool=result.head.avgpool,
    )  # fmt: skip
    return replace(result, image_size=size, classifier=classifier)


def fitting_blocks(extractor: Extractor) -> tuple[int, ...]:
    """DINOv2's (1, 4) for a transformer of four blocks or more, (1,) for other models."""
    if extractor.num_layers < max(BLOCKS):
        return (1,)
    with torch.no_grad():
        blank = torch.full((1, 3, *extractor.image_size), 0.5)
        widths = {layer.cls.shape[-1] for layer in extractor.layers(blank, max(BLOCKS))}
    return BLOCKS if len(widths) == 1 else (1,)


def score_linear(
    train: FeatureSet,
    test: FeatureSet,
    *,
    select: Select = "test",
    iterations: int = 12_500,
    batch_size: int = 512,
    learning_rates: Sequence[float] = LEARNING_RATES,
    num_blocks: Sequence[int] | None = None,
    metric: Metric = "accuracy",
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = False,
    views: Callable[[Iterable[Tensor]], Iterable[View]] | None = None,
) -> LinearProbeResult:
    """`linear_probe` on features that are there already.

    Settings are those of `linear_probe`; heads whose blocks `train` lacks are left out. `views`
    brings augmentation: from numbers of training images, batch by batch, to what is trained on.

    Examples:
        >>> features = FeatureSet(torch.eye(2), torch.eye(2), torch.tensor([0, 1]))
        >>> score_linear(features, features, iterations=20, batch_size=256).score
        100.0
    """
    _check_settings(select, iterations, batch_size)
    check_sets(train, test)
    check_metric(metric, train.labels)
    kept, held = holdout_split(len(train))
    if select == "holdout" and len(held) == 0:
        raise ValueError(
            f"linear probe: nothing to choose a head on. Got {len(train)} training images in "
            f"{train.description}; expected at least 5, or select='test'."
        )
    depth = 1 if train.blocks is None else train.blocks.shape[1]
    blocks = tuple(n for n in BLOCKS if n <= depth) if num_blocks is None else num_blocks
    heads = head_grid(learning_rates, blocks)
    classes = max(train.num_classes, test.num_classes)

    def fit(numbers: Tensor, chosen: Sequence[Head]) -> ProbeHeads:
        probes = ProbeHeads(
            chosen, width=train.cls.shape[1], num_classes=classes, iterations=iterations,
            scale=batch_size / 256, seed=seed, device=device,
        )  # fmt: skip
        drawn = draw_batches(len(numbers), batch_size, iterations, seed)
        batches = (numbers[batch] for batch in drawn)
        source = views(batches) if views else stored_views(train, batches, device)
        _train(probes, source, iterations, progress and rank_and_world()[0] == 0)
        return probes

    everything = torch.arange(len(train))
    if select == "test":
        probes = fit(everything, heads)
        selection = scores = _score(probes, test, metric, device)
    else:
        selection = _score(fit(kept, heads), train.select(held), metric, device)
    best = max(selection, key=lambda head: selection[head])  # the first on ties
    if select == "holdout":
        probes = fit(everything, [best])
        scores = _score(probes, test, metric, device)
    weight, bias = probes.of(best)
    return LinearProbeResult(
        score=scores[best],
        head=best,
        scores=scores,
        selection=selection,
        select=select,
        metric=metric,
        augment=views is not None,
        iterations=iterations,
        batch_size=batch_size,
        num_train=len(train),
        num_test=len(test),
        num_classes=classes,
        weight=weight.cpu(),
        bias=bias.cpu(),
    )


def _check_settings(select: str, iterations: int, batch_size: int) -> None:
    if select not in ("test", "holdout"):
        raise ValueError(
            f"linear probe: unknown selection. Got {select!r}; expected 'test' or 'holdout'."
        )
    if min(iterations, batch_size) < 1:
        raise ValueError(
            f"linear probe: nothing to train. Got iterations={iterations} and "
            f"batch_size={batch_size}; expected at least 1 each."
        )


def _train(probes: ProbeHeads, source: Iterable[View], iterations: int, progress: bool) -> None:
    from tqdm import tqdm

    bar = tqdm(source, "linear probe", iterations, unit="step", disable=None if progress else True)
    for blocks, patches, labels in bar:
        losses = probes.step(blocks, patches, labels)
    if not losses.isfinite().any():
        raise ValueError(
            "linear probe: every head diverged. Got no finite loss after the last step; expected "
            "features of usual size. Check the model, or pass smaller learning_rates=."
        )


def _score(
    probes: ProbeHeads, features: FeatureSet, metric: Metric, device: str | torch.device
) -> dict[Head, float]:
    """Score of each head; a head whose scores are not finite gets 0."""
    found = []
    for view in stored_views(features, torch.split(torch.arange(len(features)), _ROWS), device):
        scores = probes.scores(view.blocks, view.patches)
        found.append(torch.where(scores.isfinite().all(-1), scores.argmax(-1), -1).cpu())
    predictions = torch.cat(found, 1)
    return {
        head: score_of(row, features.labels, metric) if (row >= 0).all() else 0.0
        for head, row in zip(probes.heads, predictions, strict=True)
    }
