"""Robustness: what a fitted classifier makes of any images, corrupted as they come.

The published sets (ImageNet-A, -R, -Sketch, -C) are in `proteus.evaluation.imagenet_sets`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from ..data.workers import load
from ..world import gather, rank_and_world, together
from .classifier import Classifier
from .corruptions import CORRUPTIONS, SEVERITIES, corrupt
from .feature_set import Resized
from .result import Result
from .sets.labelled import LabelledImages, open_labelled
from .sets.targets import check_labels


@dataclass(frozen=True)
class RobustnessResult(Result):
    """What `robustness` measured; fractions of 1.

    Attributes:
        clean: Accuracy on the images as they are.
        corrupted: Accuracy, mean over corruptions and severities.
        kept: `corrupted / clean`; NaN where nothing was right.
        accuracy: Corruption -> severity -> accuracy.
        num_images: Of the set.
    """

    clean: float
    corrupted: float
    kept: float
    accuracy: Mapping[str, Mapping[int, float]]
    num_images: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON; None stands for NaN."""
        table = {name: {str(s): a for s, a in row.items()} for name, row in self.accuracy.items()}
        return {**super().to_dict(), "accuracy": table}


def robustness(
    probe: Classifier,
    dataset: Any,
    *,
    split: str = "test",
    classes: Sequence[str] = (),
    corruptions: Sequence[str] = tuple(CORRUPTIONS),
    severities: Sequence[int] = SEVERITIES,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = False,
) -> RobustnessResult:
    """Accuracy of a fitted classifier on images that are corrupted as they come.

    Images are resized and cut as for the probe, then corrupted at that size. What is random depends
    on the number of the image alone, so models see the same corrupted images.

    Args:
        probe: A fitted classifier: `.classifier` of the result of `knn`, `linear_probe` or
            `logistic_regression`, or anything that satisfies `Classifier`.
        dataset: Anything `open_labelled` takes, one label an image.
        split: For `open_labelled`.
        classes: Names of the classifier's classes in the order of its scores, for folders: a folder
            that lacks a class must not shift the others. () = the folder's own, sorted.
        corruptions: Names of `CORRUPTIONS`.
        severities: 1 to 5.
        batch_size: Images in a forward pass.
        workers: Processes that decode images.
        progress: Show a bar.

    Raises:
        ValueError: If the set is empty, a name is unknown or a label is beyond the classifier's
            classes.

    Examples:
        >>> from PIL import Image
        >>> class Bright:
        ...     num_classes, image_size, resize = 2, 8, 8
        ...
        ...     def __call__(self, images):
        ...         mean = images.float().mean((1, 2, 3)) / 255
        ...         return torch.stack([1 - mean, mean], 1)
        >>> images = [(Image.new("RGB", (8, 8), (v, v, v)), v // 128) for v in (20, 60, 190, 230)]
        >>> result = robustness(Bright(), images, corruptions=["brightness"], severities=[5])
        >>> result.clean, result.accuracy["brightness"][5]
        (1.0, 0.5)

    Source:
        ImageNet-C's idea for any set; the paper's Table 14 is on the published files, see
        `imagenet_c`. *Different:* see `corrupt`; accuracies, not divided by AlexNet's.
    """
    if not corruptions or not severities:
        raise ValueError("robustness: nothing to do. Got no corruption or no severity.")
    shown = list(product(corruptions, severities))
    for name, severity in shown:  # before the images are opened
        corrupt(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), name, severity, seeds=[0])
    path = isinstance(dataset, str | Path)
    if classes and not path:
        raise ValueError(
            f"robustness: classes= would be ignored. Got {type(dataset).__name__}, which has its "
            f"own labels; expected a folder."
        )
    if classes:
        check_classes(probe, classes)
    data = open_labelled(dataset, split=split if path else None, classes=classes)

    def scores(images: Tensor, numbers: list[int]) -> Iterator[Tensor]:
        yield probe(images)
        for name, severity in shown:
            yield probe(corrupt(images, name, severity, seeds=numbers))

    clean, *shares = accuracies(
        probe, data, scores, resize=probe.resize, batch_size=batch_size, workers=workers,
        progress=progress,
    )  # fmt: skip
    share = dict(zip(shown, shares, strict=True))
    corrupted = sum(share.values()) / len(share)
    table = {name: {s: share[name, s] for s in severities} for name in corruptions}
    kept = corrupted / clean if clean else float("nan")
    return RobustnessResult(clean, corrupted, kept, table, len(data))


def accuracies(
    probe: Classifier,
    data: LabelledImages,
    score: Callable[[Tensor, list[int]], Iterable[Tensor]],
    *,
    resize: int,
    batch_size: int,
    workers: int,
    progress: bool,
) -> list[float]:
    """Accuracy of several scores of the same images, fractions of 1.

    `score` takes images, uint8 [B, 3, S, S], and their numbers, and gives scores [B, classes].
    """
    if len(data) == 0:
        raise ValueError(f"robustness: no images. Got an empty set, {data.description}.")
    rank, world = rank_and_world()
    mine = list(range(rank, len(data), world))
    images = Subset(Resized(data, probe.image_size, resize), mine)
    loader = DataLoader(images, batch_size, num_workers=workers)

    def right() -> Iterator[list[int]]:
        from tqdm import tqdm

        numbers = iter(mine)
        for pixels, labels in tqdm(
            load(loader),
            total=len(loader),
            desc=data.description[-40:],
            disable=None if progress else True,
        ):
            _check_labels(probe, labels, data.description)
            found = score(pixels, list(islice(numbers, len(pixels))))
            yield [int((_predict(scores).cpu() == labels).sum()) for scores in found]

    everyone = gather({rank: list(together(right()))}).values()
    columns = zip(*(row for rows in everyone for row in rows), strict=True)
    return [sum(column) / len(data) for column in columns]


def _check_labels(probe: Classifier, labels: Tensor, description: str) -> None:
    if labels.ndim != 1:
        raise ValueError(
            f"robustness: one label an image. Got {tuple(labels.shape[1:])} labels an image "
            f"in {description}."
        )
    check_labels(labels, description)
    if int(labels.max()) >= probe.num_classes:
        raise ValueError(
            f"robustness: the classifier does not know a class. Got label "
            f"{int(labels.max())} in {description}; it has {probe.num_classes} classes."
        )


def _predict(scores: Tensor) -> Tensor:
    unknown = int(scores.isnan().any(1).sum())
    if unknown:  # NaN would count as the largest
        raise ValueError(
            f"robustness: the classifier gives no scores. Got NaN for {unknown} of {len(scores)} "
            f"images. Check the model's weights, and whether its precision is enough."
        )
    return scores.argmax(1)


def check_classes(probe: Classifier, classes: Sequence[str]) -> None:
    """Raise `ValueError` unless there is a name for each class of the classifier."""
    if len(classes) != probe.num_classes:
        raise ValueError(
            f"robustness: a name for each of the classifier's classes. Got {len(classes)} names; "
            f"expected {probe.num_classes}, in the order of its scores."
        )
