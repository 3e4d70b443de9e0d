"""What the numbers among the settings may be, in one table for all that take them."""

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple


class Range(NamedTuple):
    """Numbers between two bounds.

    Attributes:
        low: The smallest.
        high: The largest.
        whole: Whole numbers only.
        open: The bounds themselves are none of them.
        optional: None is, too: the default, or nothing.
        said: What to say is expected, where the bounds say it badly.
    """

    low: float
    high: float = sys.float_info.max
    whole: bool = False
    open: bool = False
    optional: bool = False
    said: str = ""


_COUNT = Range(1, 10**12, whole=True)
_RATE = Range(0, said="a finite number of at least 0")
_LENGTH = Range(0, 10**12, open=True, optional=True, said="a positive number, such as 100")
# Finite, never negative, and small enough that no array or loop is asked for that cannot be.
RANGES: dict[str, Range] = {
    "steps": _COUNT._replace(optional=True),
    "minutes": Range(0, 10**7, open=True, optional=True, said="a positive number, such as 8"),
    "images": _COUNT._replace(optional=True),
    "epochs": _LENGTH,
    "batch_size": _COUNT,
    "accumulate": _COUNT,
    "repeats": _COUNT,
    "views": _COUNT._replace(optional=True),
    "hold_out": _COUNT._replace(optional=True),
    "save_every": _COUNT,
    "watch_every": _COUNT,
    "keep": _COUNT,
    "image_size": Range(1, 2**16, whole=True, optional=True),
    "lanes": Range(1, 2**20, whole=True, optional=True),
    "workers": Range(0, 1024, whole=True, optional=True),
    "seed": Range(-(2**63), 2**63 - 1, whole=True, said="a whole number of 64 bits"),
    "lr": _RATE,
    "peak": _RATE,
    "warmup_rate": _RATE,
    "min_rate": _RATE,
    "steps_per_epoch": _COUNT,
    "weight_decay": _RATE,
    "layer_decay": Range(
        2**-53, 1, optional=True, said="a factor above 0 and at most 1, such as 0.65, or None"
    ),
    "warmup": Range(
        0, 1 - 2**-53, optional=True, said="a share of the steps in [0, 1), such as 0.05"
    ),
    "first_scale": Range(
        0, 1, open=True, optional=True, said="a share of the side between 0 and 1, such as 0.5"
    ),
    "first_share": Range(
        0, 1, open=True, optional=True, said="a share of the steps between 0 and 1, such as 0.5"
    ),
    "warmup_epochs": _RATE._replace(optional=True),
    "warmup_lr": _RATE._replace(optional=True),
    "min_lr": _RATE._replace(optional=True),
    "clip_grad": Range(0, open=True, optional=True, said="a positive, finite norm, or None"),
    "drop_path": Range(0, 1 - 2**-53, said="a rate in [0, 1), such as 0.1"),
    "token": _RATE._replace(optional=True),
    "feature": _RATE._replace(optional=True),
    "patch": _RATE._replace(optional=True),
    "weight": _RATE,
    "drop": Range(0, 1 - 2**-53, said="a probability in [0, 1), such as 0.25"),
    "queue_size": _COUNT._replace(high=2**24, optional=True),
    "kl": _RATE,
    "ce": _RATE,
    "temperature": Range(0, open=True, said="a positive, finite number"),
    "ema": Range(
        0, 1, open=True, optional=True, said="a decay between 0 and 1, such as 0.99996, or None"
    ),
}


def check_numbers(subject: str, values: Mapping[str, Any]) -> None:
    """Refuse numbers of a wrong type, NaN, infinite or out of range.

    Args:
        subject: Whose settings these are, for the message.
        values: Setting -> what was given; a path such as `science.optimizer.lr` ends in its name.

    Raises:
        ValueError: Naming the first that cannot be.

    Examples:
        >>> check_numbers("fit", {"steps": 3, "clip_grad": None})
        >>> check_numbers("fit", {"steps": 1.5})
        Traceback (most recent call last):
        ...
        ValueError: fit: steps is out of range. Got 1.5; expected a whole number of at least 1.
    """
    for path, value in values.items():
        allowed = RANGES[path.rpartition(".")[2]]
        if value is None and allowed.optional:
            continue
        kinds = int if allowed.whole else (int, float)
        number = isinstance(value, kinds) and not isinstance(value, bool)
        if number and _within(value, allowed):
            continue
        raise ValueError(
            f"{subject}: {path} is out of range. Got {value!r}; expected {_described(allowed)}."
        )


def _within(value: float, allowed: Range) -> bool:
    if allowed.open:
        return allowed.low < value < allowed.high
    return allowed.low <= value <= allowed.high  # NaN is neither


def _described(allowed: Range) -> str:
    if allowed.said:
        return allowed.said
    most = "" if allowed.high >= _COUNT.high else f", at most {allowed.high}"
    return f"a whole number of at least {allowed.low}{most}"
