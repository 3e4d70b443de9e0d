"""Targets of labelled images, asked for one by one; classes, so that they travel to workers."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

Target = int | Tensor


class Selected:
    """Targets of a selection."""

    def __init__(self, target: Callable[[int], Target], numbers: list[int]) -> None:
        self.target, self.numbers = target, numbers

    def __call__(self, index: int) -> Target:
        """Target of the image with this number in the selection."""
        return self.target(self.numbers[index])


class LastItem(Dataset[Any]):
    """A dataset that remembers the last item: image and target are asked for one by one."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.last: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        if self.last[0] != index:
            self.last = (index, self.dataset[index])
        return self.last[1]


class ItemTargets:
    """Targets of a dataset: the second of each item."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __call__(self, index: int) -> Target:
        """The class of an item, or its 0/1 tensor.

        Raises:
            ValueError: If it has neither.
        """
        item = self.dataset[index]
        target = item[1] if isinstance(item, tuple | list) and len(item) > 1 else None
        if isinstance(target, Tensor) and target.ndim == 1:
            if not ((target == 0) | (target == 1)).all():
                raise ValueError(
                    f"evaluation: several labels of an image must be 0 or 1. Got "
                    f"{target.tolist()[:8]} for item {index} of the dataset."
                )
            return target
        try:
            number = float(target)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = math.nan
        if not number.is_integer():
            shown = target if isinstance(target, int | float | str) else type(target).__name__
            raise ValueError(
                f"evaluation: item {index} of the dataset has no label. Got {shown!r}; expected "
                f"(image, class number) or (image, 0/1 tensor)."
            )
        return int(number)


def check_labels(labels: Tensor, description: str) -> None:
    """Raise `ValueError` for numbers below 0, such as the -1 of Hugging Face's test sets."""
    if labels.numel() and int(labels.min()) < 0:
        raise ValueError(
            f"evaluation: images without a label. Got {int((labels < 0).sum())} labels below 0, "
            f"such as {int(labels.min())}, in {description}; expected class numbers from 0 on. "
            f"Test sets are often published without labels: take a split that has them."
        )
