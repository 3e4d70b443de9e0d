"""k-NN classification on class tokens, as in DINO and DINOv2."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.frozen import as_extractor
from .cache import FeatureCache
from .classifier import NeighbourClassifier
from .extract import extract_features
from .feature_set import FeatureSet, check_sets, probe_resize, square_size
from .metrics import accuracy, topk_accuracy
from .neighbours import KS, TEMPERATURE, check_ks, votes_in_pieces
from .sets.labelled import open_splits


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
    size = square_size(extractor, image_size)
    bank, queries = [
        extract_features(
            extractor, data, image_size=size, batch_size=batch_size, workers=workers, cache=cache,
            progress=progress,
        )
        for data in open_splits(train, test)
    ]  # fmt: skip
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
    check_ks(usable or ks, len(train))
    classes = max(train.num_classes, test.num_classes)
    bank = F.normalize(train.cls.to(device).float(), dim=1)
    labels, queries = train.labels.to(device), test.cls.to(device)
    found: dict[int, list[Tensor]] = {k: [] for k in usable}
    top5 = dict.fromkeys(usable, 0.0)
    seen = 0
    pieces = votes_in_pieces(
        bank, labels, queries, usable, temperature=temperature, classes=classes
    )
    for votes in pieces:
        wanted = test.labels[seen : seen + len(votes[usable[0]])]
        for k, vote in votes.items():
            found[k].append(vote.argmax(1).cpu())
            top5[k] += topk_accuracy(vote.cpu(), wanted, 5) * len(wanted) / len(test)
        seen += len(wanted)
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
