"""k-NN classification on class tokens, as in DINO and DINOv2."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features import FeatureExtractor, ShapeError


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


@torch.no_grad()
def knn(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
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
        ValueError: If k is larger than the training set.

    Examples:
        >>> train = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> knn(train, torch.tensor([0, 1]), torch.tensor([[2.0, 0.1]]), k=1).tolist()
        [0]

    Source:
        DINOv2 `dinov2/eval/knn.py`.
        *Same:* cosine similarity, temperature 0.07, softmax votes.
    """
    if train.ndim != 2 or test.ndim != 2 or train.shape[1] != test.shape[1]:
        raise ShapeError(
            f"knn: features do not fit. Got train {tuple(train.shape)} and test "
            f"{tuple(test.shape)}; expected [n, D] and [m, D]."
        )
    if train_labels.shape != train.shape[:1]:
        raise ShapeError(
            f"knn: one label for each training feature. Got {tuple(train_labels.shape)} labels "
            f"for {train.shape[0]} features."
        )
    if not 1 <= k <= train.shape[0]:
        raise ValueError(f"knn: k must be in 1 … {train.shape[0]} (training images). Got {k}.")
    bank, classes = F.normalize(train, dim=1), int(train_labels.max()) + 1
    predictions = []
    for chunk in torch.split(F.normalize(test, dim=1), 1024):  # bounds the similarity matrix
        similarity, index = (chunk @ bank.T).topk(k, dim=1)
        votes = chunk.new_zeros(chunk.shape[0], classes)
        votes.scatter_add_(1, train_labels[index], (similarity / temperature).softmax(1))
        predictions.append(votes.argmax(1))
    return torch.cat(predictions)
