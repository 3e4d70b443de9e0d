"""Which classes a classifier gets wrong, and examples; small enough for the file of results."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor

_WORST = 8  # classes
_EXAMPLES = 12  # images


def mistakes_of(predictions: Tensor, labels: Tensor, classes: Sequence[str] = ()) -> dict[str, Any]:
    """The classes with the smallest share of images put right, and some of the wrong images.

    Args:
        predictions: long [n].
        labels: long [n].
        classes: Names, in the order of the labels; () = numbers.

    Returns:
        `worst`: of each class `class`, `right`, `of`, and what it was mostly `taken_for`;
        `examples`: `image` (a number in the test set), `class` and `taken_for`, from the worst
        class on, a few of each; `num_classes`, those with test images.

    Examples:
        >>> import torch
        >>> found = mistakes_of(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), ["cat", "dog"])
        >>> found["worst"]
        [{'class': 'dog', 'right': 1, 'of': 2, 'taken_for': 'cat'}]
        >>> found["examples"]
        [{'image': 1, 'class': 'dog', 'taken_for': 'cat'}]
    """
    pairs = list(zip(labels.tolist(), predictions.tolist(), strict=True))
    count = Counter(label for label, _ in pairs)
    right = Counter(label for label, found in pairs if label == found)
    worst = sorted((one for one in count if right[one] < count[one]), key=lambda c: (
        right[c] / count[c], c
    ))[:_WORST]  # fmt: skip

    def name(label: int) -> str:
        return classes[label] if label < len(classes) else str(label)

    rows, examples = [], []
    for label in worst:
        wrong = [(n, found) for n, (wanted, found) in enumerate(pairs)
                 if wanted == label != found]  # fmt: skip
        ((mostly, _),) = Counter(found for _, found in wrong).most_common(1)
        rows.append({"class": name(label), "right": right[label], "of": count[label],
                     "taken_for": name(mostly)})  # fmt: skip
        examples += [
            {"image": n, "class": name(label), "taken_for": name(found)} for n, found in wrong[:3]
        ]
    return {"worst": rows, "examples": examples[:_EXAMPLES], "num_classes": len(count)}
