"""Votes of the nearest neighbours, as plain functions on tensors."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features import ShapeError
from .feature_set import check_finite

KS = (10, 20, 100, 200)
TEMPERATURE = 0.07
_QUERIES, _BANK = 1024, 1 << 17  # rows of the similarity matrix, and columns, at once


@torch.no_grad()
def knn_votes(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    ks: Sequence[int] = KS,
    *,
    temperature: float = TEMPERATURE,
    num_classes: int | None = None,
) -> dict[int, Tensor]:
    """Votes of the nearest neighbours for each class, on the device of the bank.

    Weights are softmax(cosine / temperature) over the neighbours of the *largest* k; a smaller k
    sums the first k of these, so its votes do not sum to 1 (the order of the classes is the same).

    Args:
        bank: Features [n, D] of the labelled images; scaled to length one here.
        bank_labels: long [n], 0 … classes - 1.
        queries: Features [m, D].
        ks: Numbers of neighbours, each at most n.
        temperature: Of the softmax.
        num_classes: Width of the votes; None = the largest label + 1.

    Returns:
        k -> float32 [m, classes].

    Raises:
        ShapeError: If the shapes do not fit.
        ValueError: If a k is larger than the bank, a label is not in the range above, or features
            are not finite.

    Examples:
        >>> bank, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
        >>> knn_votes(bank, labels, torch.tensor([[2.0, 0.1]]), [1, 2])[2].argmax(1).tolist()
        [0]

    Source:
        DINOv2 `dinov2/eval/knn.py` (`KnnModule`).
        *Same:* the softmax over the largest k; votes within 1e-5.
        *Different:* queries and bank are taken in pieces, so memory is bounded.
    """
    _check_shapes(bank, bank_labels, queries)
    check_ks(ks, len(bank))
    classes = num_classes or int(bank_labels.max()) + 1
    if not 0 <= int(bank_labels.min()) <= int(bank_labels.max()) < classes:
        raise ValueError(
            f"knn: labels must be in 0 … {classes - 1}. Got {int(bank_labels.min())} to "
            f"{int(bank_labels.max())}."
        )
    check_finite(bank, "train features")
    check_finite(queries, "test features")
    ready = F.normalize(bank.float(), dim=1)
    parts = list(
        votes_in_pieces(ready, bank_labels, queries, ks, temperature=temperature, classes=classes)
    )
    return {k: torch.cat([part[k] for part in parts]) for k in ks}


def knn_predict(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    *,
    k: int = 20,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Predict labels by a weighted vote of the nearest training features.

    Args:
        train: Features [n, D] of the labelled images; scaled to length one here.
        train_labels: long [n], 0 … classes - 1.
        test: Features [m, D].
        k: Neighbours, at most n.
        temperature: Votes are softmax(cosine / temperature) over the k neighbours.

    Returns:
        Predicted labels, long [m].

    Raises:
        ShapeError: If the shapes do not fit.
        ValueError: If k is larger than the training set, or features are not finite.

    Examples:
        >>> train = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> knn_predict(train, torch.tensor([0, 1]), torch.tensor([[2.0, 0.1]]), k=1).tolist()
        [0]
    """
    return knn_votes(train, train_labels, test, [k], temperature=temperature)[k].argmax(1)


def votes_in_pieces(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    ks: Sequence[int],
    *,
    temperature: float,
    classes: int,
) -> Iterator[dict[int, Tensor]]:
    """`knn_votes`, unchecked, for one piece of the queries after the other.

    The bank is float32 and scaled to length one.
    """
    for chunk in torch.split(F.normalize(queries.float(), dim=1), _QUERIES):
        similarity, index = _nearest(bank, chunk, max(ks))
        weights, neighbours = (similarity / temperature).softmax(1), labels[index].long()
        empty = chunk.new_zeros(len(chunk), classes)
        yield {k: empty.scatter_add(1, neighbours[:, :k], weights[:, :k]) for k in ks}


def _nearest(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest similarities and where they are, [m, k], over the bank in pieces."""
    best = queries.new_zeros(len(queries), 0)
    where = best.long()
    for start in range(0, len(bank), _BANK):
        piece = queries @ bank[start : start + _BANK].T
        values, index = piece.topk(min(k, piece.shape[1]), dim=1)
        best, where = torch.cat([best, values], 1), torch.cat([where, index + start], 1)
        best, order = best.topk(min(k, best.shape[1]), dim=1)
        where = where.gather(1, order)
    return best, where


def check_ks(ks: Sequence[int], count: int) -> None:
    """Raise `ValueError` for a k that is less than 1, or larger than the training set."""
    wrong = [k for k in ks if not 1 <= k <= count]
    if wrong or not ks:
        raise ValueError(
            f"knn: k must be in 1 … {count} (training images). Got {', '.join(map(str, wrong))}; "
            f"usable: {[k for k in KS if k <= count] or [count]}."
        )


def _check_shapes(train: Tensor, labels: Tensor, test: Tensor) -> None:
    if train.ndim != 2 or test.ndim != 2 or train.shape[1] != test.shape[1]:
        raise ShapeError(
            f"knn: features do not fit. Got train {tuple(train.shape)} and test "
            f"{tuple(test.shape)}; expected [n, D] and [m, D]."
        )
    if labels.shape != train.shape[:1]:
        raise ShapeError(
            f"knn: one label for each training feature. Got {tuple(labels.shape)} labels "
            f"for {train.shape[0]} features."
        )
