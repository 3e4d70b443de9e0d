"""Robustness: what a fitted classifier makes of images unlike those it was fitted on.

`robustness` corrupts any set on the fly; `imagenet_variant` and `imagenet_c` read the published
sets: ImageNet-A, -R and -Sketch, and ImageNet-C with its mCE.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from .classifier import Classifier
from .corruptions import CORRUPTIONS, SEVERITIES, corrupt
from .datasets import LabelledImages, check_labels, open_labelled
from .features import Resized
from .processes import gather, rank_and_world, together

# Error of AlexNet in per cent, mean over the five severities (Hendrycks & Dietterich 2019, their
# published code): what an error on ImageNet-C is divided by.
ALEXNET_ERRORS: Mapping[str, float] = MappingProxyType(
    {
        "gaussian_noise": 88.6,
        "shot_noise": 89.4,
        "impulse_noise": 92.3,
        "defocus_blur": 82.0,
        "glass_blur": 82.6,
        "motion_blur": 78.6,
        "zoom_blur": 79.8,
        "snow": 86.7,
        "frost": 82.7,
        "fog": 81.9,
        "brightness": 56.5,
        "contrast": 85.3,
        "elastic_transform": 64.6,
        "pixelate": 71.8,
        "jpeg_compression": 60.7,
    }
)


@dataclass(frozen=True)
class RobustnessResult:
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
        kept = self.kept if self.clean else None
        table = {name: {str(s): a for s, a in row.items()} for name, row in self.accuracy.items()}
        return {**asdict(self), "kept": kept, "accuracy": table}


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
    for name in corruptions:  # before the first batch, not after an hour
        corrupt(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), name, severities[0], seeds=[0])
    path = isinstance(dataset, str | Path)
    if classes and not path:
        raise ValueError(
            f"robustness: classes= would be ignored. Got {type(dataset).__name__}, which has its "
            f"own labels; expected a folder."
        )
    if classes:
        _check_classes(probe, classes)
    data = open_labelled(dataset, split=split if path else None, classes=classes)
    right: dict[tuple[str, int], int] = {("clean", 0): 0}
    right |= {(name, severity): 0 for name in corruptions for severity in severities}
    reading: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": progress}
    batches = together(_batches(probe, data, resize=probe.resize, **reading))
    for numbers, images, labels in batches:
        for name, severity in right:
            seen = images if not severity else corrupt(images, name, severity, seeds=numbers)
            found = probe(seen).argmax(1).cpu()
            right[name, severity] += int((found == labels).sum())
    rank, _ = rank_and_world()
    parts = gather({rank: right}).values()
    share = {key: sum(part[key] for part in parts) / len(data) for key in right}
    clean = share.pop(("clean", 0))
    corrupted = sum(share.values()) / len(share)
    table = {name: {s: share[name, s] for s in severities} for name in corruptions}
    kept = corrupted / clean if clean else float("nan")
    return RobustnessResult(clean, corrupted, kept, table, len(data))


@dataclass(frozen=True)
class VariantResult:
    """What `imagenet_variant` measured.

    Attributes:
        accuracy: Share of the images whose class has the largest score among `num_classes`.
        num_classes: Classes of the set, which alone are compared.
        num_images: Of the set.
    """

    accuracy: float
    num_classes: int
    num_images: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return asdict(self)


def imagenet_variant(
    probe: Classifier,
    folder: str | Path,
    classes: Sequence[str],
    *,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = False,
) -> VariantResult:
    """Accuracy on a set with a part of the classifier's classes: ImageNet-A, -R, -Sketch.

    Args:
        probe: A fitted classifier.
        folder: A folder for each class, named as in `classes` (ImageNet: the wnid, `n01440764`).
        classes: Names of the classifier's classes in the order of its scores; for ImageNet the 1000
            wnids, sorted.
        batch_size: Images in a forward pass.
        workers: Processes that decode images.
        progress: Show a bar.

    Raises:
        ValueError: If a folder is not among the classes, or there are more or fewer classes than
            scores.

    Source:
        Proteus Table 14; ImageNet-A and ImageNet-R compare the 200 classes they have, by the rule
        of their authors; ImageNet-Sketch has all.
    """
    _check_classes(probe, classes)
    data = open_labelled(folder, classes=classes)
    subset = torch.tensor(sorted({int(data.target(i)) for i in range(len(data))}))
    reading: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": progress}
    right = 0
    for _, images, labels in together(_batches(probe, data, resize=probe.resize, **reading)):
        found = subset[probe(images).cpu()[:, subset].argmax(1)]
        right += int((found == labels).sum())
    rank, _ = rank_and_world()
    total = sum(gather({rank: right}).values())
    return VariantResult(total / len(data), len(subset), len(data))


@dataclass(frozen=True)
class ImageNetCResult:
    """What `imagenet_c` measured.

    Attributes:
        mce: Mean corruption error, 1 = as AlexNet; NaN unless all 15 corruptions are there.
        relative: Corruption -> error divided by AlexNet's.
        error: Corruption -> error of each severity, fractions of 1.
        num_images: Of all folders together.
    """

    mce: float
    relative: Mapping[str, float]
    error: Mapping[str, tuple[float, ...]]
    num_images: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON; None stands for NaN."""
        mce = self.mce if len(self.relative) == len(ALEXNET_ERRORS) else None
        return {**asdict(self), "mce": mce}


def imagenet_c(
    probe: Classifier,
    folder: str | Path,
    classes: Sequence[str],
    *,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = False,
) -> ImageNetCResult:
    """Mean corruption error on the published ImageNet-C.

    Args:
        probe: A fitted classifier.
        folder: `CORRUPTION/SEVERITY/CLASS/IMAGE`, severities 1 to 5; corruptions beyond the 15 that
            count (`speckle_noise`, …) are left out.
        classes: Names of the classifier's classes in the order of its scores.
        batch_size: Images in a forward pass.
        workers: Processes that decode images.
        progress: Show a bar.

    Raises:
        ValueError: If there is none of the 15 corruptions, or a severity is missing.

    Source:
        Hendrycks & Dietterich 2019; Proteus Table 14 (in per cent).
        *Same:* the published files are 224 pixels and are not cut again. *Different:* with some of
        the 15 corruptions missing, errors are given and the mCE is NaN.
    """
    _check_classes(probe, classes)
    root = Path(folder)
    names = [name for name in ALEXNET_ERRORS if (root / name).is_dir()]
    if not names:
        raise ValueError(
            f"imagenet_c: no corruption found. Got {str(root)!r}; expected folders such as "
            f"{root / 'gaussian_noise' / '1' / classes[0]}."
        )
    reading: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": progress}
    errors: dict[str, tuple[float, ...]] = {}
    count = 0
    for name in names:
        row = []
        for severity in SEVERITIES:
            data = open_labelled(root / name / str(severity), classes=classes)
            right = 0
            for _, images, labels in together(
                _batches(probe, data, resize=probe.image_size, **reading)
            ):
                right += int((probe(images).argmax(1).cpu() == labels).sum())
            rank, _ = rank_and_world()
            row.append(1 - sum(gather({rank: right}).values()) / len(data))
            count += len(data)
        errors[name] = tuple(row)
    mce, relative = mean_corruption_error(errors)
    return ImageNetCResult(mce, relative, errors, count)


def mean_corruption_error(
    errors: Mapping[str, Sequence[float]],
) -> tuple[float, dict[str, float]]:
    """(mCE, each corruption's error divided by AlexNet's).

    Args:
        errors: Corruption -> error of each severity, fractions of 1.

    Returns:
        mCE is NaN unless all 15 corruptions are there.

    Raises:
        ValueError: If a corruption is not one of the 15.

    Examples:
        >>> alexnet = {name: [error / 100] * 5 for name, error in ALEXNET_ERRORS.items()}
        >>> round(mean_corruption_error(alexnet)[0], 6)
        1.0
    """
    unknown = sorted(set(errors) - set(ALEXNET_ERRORS))
    if unknown:
        raise ValueError(
            f"mean_corruption_error: AlexNet's error is not known. Got {unknown}; expected some of "
            f"{list(ALEXNET_ERRORS)}."
        )
    relative = {
        name: sum(row) / len(row) / (ALEXNET_ERRORS[name] / 100) for name, row in errors.items()
    }
    whole = len(relative) == len(ALEXNET_ERRORS)
    return sum(relative.values()) / len(relative) if whole else float("nan"), relative


def _batches(
    probe: Classifier,
    data: LabelledImages,
    *,
    resize: int,
    batch_size: int,
    workers: int,
    progress: bool,
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """(numbers, uint8 images, labels) of this process's share."""
    from tqdm import tqdm

    if len(data) == 0:
        raise ValueError(f"robustness: no images. Got an empty set, {data.description}.")
    rank, world = rank_and_world()
    numbers = list(range(rank, len(data), world))
    images = Subset(Resized(data, probe.image_size, resize), numbers)
    loader = DataLoader(images, batch_size, num_workers=workers)
    bar = tqdm(loader, desc=data.description[-40:], disable=None if progress else True)
    for place, (pixels, labels) in enumerate(bar):
        if labels.ndim != 1:
            raise ValueError(
                f"robustness: one label an image. Got {tuple(labels.shape[1:])} labels an image "
                f"in {data.description}."
            )
        check_labels(labels, data.description)
        if int(labels.max()) >= probe.num_classes:
            raise ValueError(
                f"robustness: the classifier does not know a class. Got label "
                f"{int(labels.max())} in {data.description}; it has {probe.num_classes} classes."
            )
        start = place * batch_size
        yield numbers[start : start + batch_size], pixels, labels


def _check_classes(probe: Classifier, classes: Sequence[str]) -> None:
    if len(classes) != probe.num_classes:
        raise ValueError(
            f"robustness: a name for each of the classifier's classes. Got {len(classes)} names; "
            f"expected {probe.num_classes}, in the order of its scores."
        )
