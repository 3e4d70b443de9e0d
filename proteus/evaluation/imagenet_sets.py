"""The published sets beside ImageNet: -A, -R and -Sketch, and ImageNet-C with its mCE."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from .classifier import Classifier
from .corruptions import SEVERITIES
from .result import Result
from .robustness import accuracies, check_classes
from .sets.labelled import open_labelled

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
class VariantResult(Result):
    """What `imagenet_variant` measured.

    Attributes:
        accuracy: Share of the images whose class has the largest score among `num_classes`.
        num_classes: Classes of the set, which alone are compared.
        num_images: Of the set.
    """

    accuracy: float
    num_classes: int
    num_images: int


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
    check_classes(probe, classes)
    data = open_labelled(folder, classes=classes)
    subset = sorted({int(data.target(i)) for i in range(len(data))})
    others = torch.ones(len(classes), dtype=torch.bool)
    others[subset] = False

    def scores(images: Tensor, numbers: list[int]) -> list[Tensor]:
        return [probe(images).cpu().masked_fill(others, -torch.inf)]

    (share,) = accuracies(
        probe, data, scores, resize=probe.resize, batch_size=batch_size, workers=workers,
        progress=progress,
    )  # fmt: skip
    return VariantResult(share, len(subset), len(data))


@dataclass(frozen=True)
class ImageNetCResult(Result):
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
    check_classes(probe, classes)
    root = Path(folder)
    folders = {
        name: [root / name / str(severity) for severity in SEVERITIES]
        for name in ALEXNET_ERRORS
        if (root / name).is_dir()
    }
    if not folders:
        raise ValueError(
            f"imagenet_c: no corruption found. Got {str(root)!r}; expected folders such as "
            f"{root / 'gaussian_noise' / '1' / classes[0]}."
        )
    missing = [str(one) for row in folders.values() for one in row if not one.is_dir()]
    if missing:  # before the first image, not after an hour
        raise ValueError(
            f"imagenet_c: a severity is missing. Got no {missing[0]!r}; expected folders 1 to 5 "
            f"for each corruption."
        )
    errors: dict[str, tuple[float, ...]] = {}
    count = 0
    for name, severities in folders.items():
        row = []
        for one in severities:
            data = open_labelled(one, classes=classes)
            (share,) = accuracies(
                probe, data, lambda images, numbers: [probe(images)], resize=probe.image_size,
                batch_size=batch_size, workers=workers, progress=progress,
            )  # fmt: skip
            row.append(1 - share)
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
