"""k-NN classification on class tokens, as in DINO and DINOv2."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features import FeatureExtractor, ShapeError
from .cache import FeatureCache
from .classifier import NeighbourClassifier
from .datasets import open_labelled
from .extraction import extract_features
from .extractor import as_extractor
from .features import FeatureSet, probe_resize
from .metrics import accuracy, topk_accuracy

KS = (10, 20, 100, 200)
TEMPERATURE = 0.07
_QUERIES, _BANK = 1024, 1 << 17  # rows of the similarity matrix, and columns, at once


@dataclass(frozen=True)
class KnnResult:
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

    def to_dict(self) -> dict[str, Any]:
        """The numbers, ready for JSON."""
        kept = {k: v for k, v in vars(self).items() if k not in ("predictions", "classifier")}
        return {"protocol": "knn", **kept}


def knn(
    model: Any,
    train: Any,
    test: Any,
    *,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
    image_size: int | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    device: str | torch.device | None = None,
    cache: str | Path | FeatureCache | None = None,
    progress: bool = False,
) -> KnnResult:
    """Classify test images by the votes of the nearest training images.

    Args:
        model: Anything `as_extractor` takes.
        train: Anything `open_labelled` takes; a path is opened with `split="train"`.
        test: The same; a path is opened with `split="test"`.
        ks: Numbers of neighbours; those larger than the training set are left out and named in
            `dropped`.
        temperature: Votes are softmax(cosine / temperature).
        image_size: Pixels; None = the model's own. The short side is resized to 256/224 of it.
        batch_size: Images in a forward pass.
        workers: Processes that decode images; None = chosen by the size of the set.
        device: Where to run; None = where the model is.
        cache: Folder for features, or None.
        progress: Show bars.

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
    extractor = as_extractor(model, image_size=image_size, device=device)
    size = image_size or extractor.image_size[0]
    opened = open_labelled(train, split="train")
    # A test folder that lacks a class must not shift the numbers of the others.
    wanted = open_labelled(test, split="test", classes=opened.classes)
    sets = [
        extract_features(
            extractor, data, image_size=size, batch_size=batch_size, workers=workers, cache=cache,
            progress=progress,
        )
        for data in (opened, wanted)
    ]  # fmt: skip
    result = score_knn(*sets, ks=ks, temperature=temperature, device=extractor.device)
    classifier = NeighbourClassifier(
        extractor, sets[0].cls, sets[0].labels, k=result.best_k, temperature=temperature,
        image_size=size, resize=probe_resize(size),
    )  # fmt: skip
    return KnnResult(**{**vars(result), "image_size": size, "classifier": classifier})


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
    check_single_labels(train, test)
    _check_finite(train.cls, test.cls)
    usable = [k for k in ks if k <= len(train)]
    if not usable:
        _check_ks(list(ks), len(train))
    bank, labels = train.cls.to(device), train.labels.to(device)
    classes = max(train.num_classes, test.num_classes)
    scores: dict[int, list[Tensor]] = {k: [] for k in usable}
    chunks = _votes(
        bank, labels, test.cls.to(device), usable, temperature=temperature, classes=classes
    )
    top5: dict[int, float] = dict.fromkeys(usable, 0.0)
    seen = 0
    for votes in chunks:
        for k, vote in votes.items():
            wanted = test.labels[seen : seen + len(vote)]
            scores[k].append(vote.argmax(1).cpu())
            top5[k] += topk_accuracy(vote.cpu(), wanted, 5) * len(wanted) / len(test)
        seen += len(next(iter(votes.values())))
    predictions = {k: torch.cat(parts) for k, parts in scores.items()}
    top1 = {k: accuracy(found, test.labels) for k, found in predictions.items()}
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
        ValueError: If a k is larger than the bank, or features are not finite.

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
    _check_finite(bank, queries)
    _check_ks(list(ks), bank.shape[0])
    classes = num_classes or int(bank_labels.max()) + 1
    parts = list(
        _votes(bank, bank_labels, queries, list(ks), temperature=temperature, classes=classes)
    )
    if not parts:
        return {k: bank.new_zeros(0, classes) for k in ks}
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


@torch.no_grad()
def extract_cls(model: FeatureExtractor, batches: Iterable[Tensor]) -> Tensor:
    """Class tokens of many images, on the CPU.

    Args:
        model: Anything that returns `Features`; put it in eval first.
        batches: Images [B, 3, H, W], on the model's device.

    Returns:
        float32 [images, D].
    """
    return torch.cat([model(batch).cls.float().cpu() for batch in batches])


def check_single_labels(train: FeatureSet, test: FeatureSet) -> None:
    """Raise `ValueError` unless each image has one label and training has two classes."""
    for features in (train, test):
        if features.labels.ndim != 1:
            raise ValueError(
                f"evaluation: one label an image is needed. Got {tuple(features.labels.shape)} "
                f"labels in {features.description}; use logistic_regression for several labels."
            )
    present = sorted(set(train.labels.tolist()))
    if len(present) < 2:
        raise ValueError(
            f"evaluation: one class only. Got {len(train)} training images of class "
            f"{present} in {train.description}; expected at least two."
        )


def _votes(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    ks: list[int],
    *,
    temperature: float,
    classes: int,
) -> Iterator[dict[int, Tensor]]:
    """Votes for one piece of the queries after the other."""
    bank = F.normalize(bank.float(), dim=1)
    for chunk in torch.split(F.normalize(queries.float(), dim=1), _QUERIES):
        similarity, index = _nearest(bank, chunk, max(ks))
        weights, neighbours = (similarity / temperature).softmax(1), labels[index]
        yield {
            k: chunk.new_zeros(len(chunk), classes).scatter_add_(
                1, neighbours[:, :k], weights[:, :k]
            )
            for k in ks
        }


def _nearest(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest similarities and where they are, [m, k], over the bank in pieces."""
    best, where = (
        queries.new_zeros(len(queries), 0),
        torch.zeros(len(queries), 0).to(queries).long(),
    )
    for start in range(0, len(bank), _BANK):
        piece = queries @ bank[start : start + _BANK].T
        values, index = piece.topk(min(k, piece.shape[1]), dim=1)
        best, where = torch.cat([best, values], 1), torch.cat([where, index + start], 1)
        best, order = best.topk(min(k, best.shape[1]), dim=1)
        where = where.gather(1, order)
    return best, where


def _check_ks(ks: list[int], count: int) -> None:
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


def _check_finite(train: Tensor, test: Tensor) -> None:
    """Raise for NaN or infinity: a similarity of NaN counts as the largest, for every query."""
    for name, features in (("train", train), ("test", test)):
        bad = ~features.isfinite().all(1)
        if bad.any():
            raise ValueError(
                f"knn: features are not finite. Got NaN or infinity in {int(bad.sum())} of "
                f"{len(features)} {name} features, first in number {int(bad.nonzero()[0])}. Check "
                f"the model's weights, and whether its precision is enough."
            )
