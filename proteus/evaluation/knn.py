"""k-NN classification on class tokens, as in DINO and DINOv2: votes, scores, protocol."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from ..features import ShapeError
from ..models.frozen import Extractor
from .extract import extract_features
from .feature_set import FeatureSet, check_finite, check_sets, probe_resize
from .loading import BatchLoading, open_model
from .metrics import accuracy, topk_accuracy
from .result import Result
from .sets.labelled import open_splits

KS = (10, 20, 100, 200)
TEMPERATURE = 0.07
_QUERIES, _BANK = 1024, 1 << 17  # rows of the similarity matrix, and columns, at once


class NeighbourClassifier(nn.Module):
    """A frozen model with the votes of the nearest training images.

    Args:
        extractor: The model.
        bank: Features of the training images, [n, D]; scaled to length one here.
        labels: long [n].
        k: Neighbours.
        temperature: Of the votes.
        image_size: Side of the square images, pixels.
        resize: Short side before the centre was cut out.
    """

    bank: Tensor
    labels: Tensor

    def __init__(
        self,
        extractor: Extractor,
        bank: Tensor,
        labels: Tensor,
        *,
        k: int,
        temperature: float,
        image_size: int,
        resize: int,
    ) -> None:
        super().__init__()
        self.extractor, self.k, self.temperature = extractor, k, temperature
        self.image_size, self.resize = image_size, resize
        self.num_classes = int(labels.max()) + 1
        ready = F.normalize(bank.float(), dim=1)
        self.register_buffer("bank", ready.to(extractor.device))
        self.register_buffer("labels", labels.to(extractor.device))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """RGB images [B, 3, S, S] to votes [B, classes], float32."""
        queries = self.extractor(images).cls.float()
        check_finite(queries, "images")
        pieces = votes_in_pieces(
            self.bank, self.labels, queries, [self.k],
            temperature=self.temperature, classes=self.num_classes,
        )  # fmt: skip
        return torch.cat([votes[self.k] for votes in pieces])


@dataclass(frozen=True)
class KnnResult(Result):
    """Scores of k-NN classification.

    Attributes:
        top1: k -> accuracy, per cent.
        top5: k -> share of images with the label among the five classes with most votes.
        best: The highest of `top1`.
        best_k: The k it belongs to; the smallest on ties.
        dropped: Values of k that were asked for and are larger than the training set.
        num_train: Training images.
        num_test: Test images.
        num_classes: Largest label + 1.
        image_size: Pixels; 0 where features were given.
        predictions: Of the test images with `best_k`, long [m].
        classifier: Images to votes with `best_k`; None where features were given.
    """

    protocol = "knn"
    top1: dict[int, float]
    top5: dict[int, float]
    best: float
    best_k: int
    dropped: tuple[int, ...]
    num_train: int
    num_test: int
    num_classes: int
    image_size: int = 0
    predictions: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, compare=False)
    classifier: NeighbourClassifier | None = field(default=None, repr=False, compare=False)


def knn(
    model: Any,
    train: Any,
    test: Any,
    *,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
    **loading: Unpack[BatchLoading],
) -> KnnResult:
    """Classify test images by the votes of the nearest training images.

    Args:
        model: Anything `as_extractor` takes.
        train: Anything `open_labelled` takes; a path is opened with `split="train"`.
        test: The same; a path is opened with `split="test"`.
        ks: Numbers of neighbours; those larger than the training set are left out and named in
            `dropped`.
        temperature: Votes are softmax(cosine / temperature).
        **loading: See `BatchLoading`.

    Raises:
        ValueError: If every k is too large, there is one class only, or features are not finite.

    Examples:
        >>> from PIL import Image
        >>> images = [
        ...     (Image.new("RGB", (8, 8), colour), i) for i, colour in enumerate(["red", "blue"])
        ... ]
        >>> model = torch.nn.Conv2d(3, 5, 4, stride=4)
        >>> knn(model, images, images, ks=[1], image_size=8).top1
        {1: 100.0}

    Source:
        DINOv2 `dinov2/eval/knn.py`.
        *Same:* preprocessing, cosine similarity, temperature 0.07, votes.
        *Different:* a k that is too large is left out, where DINOv2 fails.
    """
    extractor, size, left = open_model(knn, model, loading)
    bank, queries = [extract_features(extractor, data, **left) for data in open_splits(train, test)]
    result = score_knn(bank, queries, ks=ks, temperature=temperature, device=extractor.device)
    classifier = NeighbourClassifier(
        extractor, bank.cls, bank.labels, k=result.best_k, temperature=temperature,
        image_size=size, resize=probe_resize(size),
    )  # fmt: skip
    return replace(result, image_size=size, classifier=classifier)


def score_knn(
    train: FeatureSet,
    test: FeatureSet,
    *,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
    device: str | torch.device = "cpu",
) -> KnnResult:
    """`knn` on features that are there already.

    Examples:
        >>> features = FeatureSet(torch.eye(2), torch.eye(2), torch.tensor([0, 1]))
        >>> score_knn(features, features, ks=[1, 20]).dropped
        (20,)
    """
    check_sets(train, test)
    usable = [k for k in ks if k <= len(train)]
    _check_ks(usable or ks, len(train))
    classes = max(train.num_classes, test.num_classes)
    bank = F.normalize(train.cls.to(device).float(), dim=1)
    labels, queries = train.labels.to(device), test.cls.to(device)
    found: dict[int, list[Tensor]] = {k: [] for k in usable}
    top5 = dict.fromkeys(usable, 0.0)
    pieces = votes_in_pieces(
        bank, labels, queries, usable, temperature=temperature, classes=classes
    )
    for votes, wanted in zip(pieces, torch.split(test.labels, _QUERIES), strict=True):
        for k, vote in votes.items():
            found[k].append(vote.argmax(1).cpu())
            top5[k] += topk_accuracy(vote.cpu(), wanted, 5) * len(wanted) / len(test)
    predictions = {k: torch.cat(parts) for k, parts in found.items()}
    top1 = {k: accuracy(predicted, test.labels) for k, predicted in predictions.items()}
    best_k = min(usable, key=lambda k: (-top1[k], k))
    return KnnResult(
        top1=top1,
        top5=top5,
        best=top1[best_k],
        best_k=best_k,
        dropped=tuple(k for k in ks if k not in usable),
        num_train=len(train),
        num_test=len(test),
        num_classes=classes,
        predictions=predictions[best_k],
    )


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
    _check_ks(ks, len(bank))
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
    """Predict labels, long [m]: of each test feature the class with most votes of `knn_votes`.

    What goes in, and what is an error, is as there.

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


def _check_ks(ks: Sequence[int], count: int) -> None:
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
