"""What a model says about its images (timm's `pretrained_cfg`), checked before it is used."""

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

from torch import Tensor

from ..features import IMAGENET

Statistics = tuple[Sequence[float], Sequence[float]]
_LARGEST = 8192  # pixels; a number in a file must not make us allocate all memory there is


class Description(NamedTuple):
    """What a model says about its images.

    Attributes:
        statistics: (mean, std) in [0, 1] units; ImageNet's where it does not say.
        image_size: (height, width); None where it does not say.
        architecture: timm's name; "" where it does not say.
        license: Of its weights; "" where it does not say.
    """

    statistics: Statistics
    image_size: tuple[int, int] | None
    architecture: str
    license: str


def read_config(config: Any, where: str) -> Description:
    """What a `pretrained_cfg` says.

    Args:
        config: A dictionary or None; an entry that is None is taken as missing.
        where: First words of error messages: whose description it is, or the file it stands in.

    Raises:
        ValueError: If it is no dictionary, or mean, std or input_size is not what timm writes.

    Examples:
        >>> read_config({"mean": [0.5, 0.5, 0.5], "input_size": [3, 64, 96]}, "Teacher").image_size
        (64, 96)
    """
    if not isinstance(config or {}, Mapping):
        raise ValueError(
            f"{where}: pretrained_cfg is no description. Got {_shown(config)}; expected a "
            f"dictionary with mean, std and input_size."
        )
    given = {k: v for k, v in dict(config or {}).items() if v is not None}
    both = (given.get("mean", IMAGENET[0]), given.get("std", IMAGENET[1]))
    size = given.get("input_size")
    texts = [given.get(name) for name in ("architecture", "license")]
    architecture, license_ = (text if isinstance(text, str) else "" for text in texts)
    if size is None:
        return Description(check_statistics(both, where), None, architecture, license_)
    whole = isinstance(size, list | tuple) and [type(side) for side in size] == [int] * 3
    if not whole or size[0] != 3 or not all(0 < side <= _LARGEST for side in size[1:]):
        raise ValueError(
            f"{where}: input_size is wrong. Got {_shown(size)}; expected [3, height, width], whole "
            f"numbers of at most {_LARGEST}."
        )
    statistics = check_statistics(both, where)
    return Description(statistics, (size[1], size[2]), architecture, license_)


def check_statistics(statistics: Any, where: str) -> Statistics:
    """(mean, std) as two tuples of three numbers.

    Raises:
        ValueError: If they are anything else, a mean is not in [0, 1], or a std is not above 0.
    """
    if not isinstance(statistics, list | tuple) or len(statistics) != 2:
        raise ValueError(
            f"{where}: no statistics. Got {_shown(statistics)}; expected (mean, std), three "
            f"numbers each."
        )
    mean, std = (_three_numbers(values) for values in statistics)
    if mean is None or not all(0 <= value <= 1 for value in mean):
        raise ValueError(
            f"{where}: mean is wrong. Got {_shown(statistics[0])}; expected three numbers from 0 "
            f"to 1, of RGB in [0, 1]. Divide those of 0-255 by 255."
        )
    if std is None or not all(0 < value < math.inf for value in std):
        raise ValueError(
            f"{where}: std is wrong. Got {_shown(statistics[1])}; expected three numbers above 0, "
            f"of RGB in [0, 1]."
        )
    return mean, std


def choose_statistics(normalize: Any, own: Statistics | None, subject: str) -> Statistics | None:
    """What `normalize=` stands for: True = the model's own, False = none, else (mean, std)."""
    if isinstance(normalize, bool):
        return own if normalize else None
    return check_statistics(normalize, f"{subject}: normalize=")


def _three_numbers(values: Any) -> tuple[float, float, float] | None:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        return None
    numbers = values.tolist() if isinstance(values, Tensor) else list(values)
    if len(numbers) != 3 or any(isinstance(n, bool) or not isinstance(n, Real) for n in numbers):
        return None
    red, green, blue = (float(number) for number in numbers)
    return red, green, blue


def _shown(value: Any) -> str:
    """A stranger's value, cut to what fits a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
