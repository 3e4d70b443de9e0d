"""Semantic segmentation: how well the patches of a model tell what is where."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...models.frozen import as_extractor
from ...models.parts import has_blocks, layer_rates
from .crops import SEGMENTATION
from .fit_head import train_dense
from .maps import SegmentationImages, open_both, open_segmentation
from .prediction import DensePredictor, score_set
from .seg_scores import (
    IGNORE,
    Areas,
    SegmentationScores,
    add_areas,
    segmentation_areas,
    segmentation_scores,
)
from .task import DenseResult, DenseTask, Paper

_PAPER = Paper(8e-4, 60_000, distance=(2, 3), flip=False, augmentation=SEGMENTATION)


@dataclass(frozen=True)
class SegmentationResult(DenseResult[SegmentationScores]):
    """What `segmentation` measured, see `DenseResult`.

    `predictor([image])` gives logits [1, C, H, W].

    Attributes:
        classes: Names of the classes, () where unknown.
    """

    classes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return {**self.scores.to_dict(), "classes": list(self.classes), **super().to_dict()}


def segmentation(
    model: Any,
    train: Any,
    test: Any = None,
    *,
    mode: Literal["linear", "upernet", "dpt"] = "linear",
    finetune: bool = False,
    image_size: int | None = None,
    iterations: int = 60_000,
    batch_size: int = 16,
    lr: float | None = None,
    weight_decay: float = 0.05,
    warmup: int | None = None,
    layer_decay: float | None = None,
    augment: bool | None = None,
    channels: int | None = None,
    num_classes: int | None = None,
    workers: int = 0,
    cache_bytes: int = 4 << 30,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> SegmentationResult:
    """Train a head for segmentation on the training images and score it on the test images.

    Images keep their ratio; windows of `image_size` slide over them with two thirds of it as
    distance (518 / 345), and sizes that are no multiples of the patch are filled up with the
    border. Labels are compared at their own size.

    In a distributed run the test images are shared out; every process trains the same head.

    Args:
        model: Anything `as_extractor` takes, except models without patches.
        train: Anything `open_segmentation` takes; a path is opened with the split `train`.
        test: The same, with the split `test`; None = of `train`, then a path with splits.
        mode: The head. "linear" = one 1x1 convolution (the paper's Linear), "upernet" (the paper's
            Fine-tune) or "dpt", which need the extra `eval`.
        finetune: Train the model, too, on a copy; not with "linear".
        image_size: Short side of the images and side of the windows; None = the multiple of the
            patch next to 512, as in the paper.
        iterations: Training steps; the paper takes 60,000, or 160,000 to fine-tune a ViT-L.
        batch_size: Images in a step.
        lr: Peak; None = 8e-4, or 1e-4 with `finetune`.
        weight_decay: Not for biases and norms when fine-tuning.
        warmup: Steps; None = 1,500 of 60,000, in proportion.
        layer_decay: Factor on the learning rate from block to block, down to the patch embedding,
            when fine-tuning; None = 0.65, or 1 for a model that is no transformer with `blocks`.
        augment: Scale, crop, mirror and recolour the training images; None = only with `finetune`.
            Without it a frozen model's features are computed once, if they fit `cache_bytes`.
        channels: Width of "upernet" (None = the features') or "dpt" (None = 256).
        num_classes: For sets that do not tell.
        workers: Processes that prepare training images, where they are not kept.
        cache_bytes: Memory for features.
        seed: Of the head's weights, the order and the augmentation.
        device: Where to run; None = where the model is.
        progress: Show bars.

    Returns:
        A `SegmentationResult`; `result.scores.miou` is the number of the paper, as a fraction.

    Raises:
        ValueError: If a set is empty, does not fit or is ignored as a whole, a label is no class, a
            setting would be ignored, or features, losses or weights are not finite.

    Examples:
        >>> from PIL import Image
        >>> halves = torch.cat([torch.zeros(8, 4), torch.ones(8, 4)], 1).long()
        >>> image = Image.fromarray((halves * 255).byte().numpy()).convert("RGB")
        >>> model = torch.nn.Conv2d(3, 8, 4, stride=4)
        >>> result = segmentation(
        ...     model,
        ...     [(image, halves)],
        ...     [(image, halves)],
        ...     num_classes=2,
        ...     image_size=8,
        ...     iterations=50,
        ...     batch_size=2,
        ...     lr=0.1,
        ... )
        >>> result.scores.miou
        1.0

    Source:
        Proteus A.1.4; `eval/dense_prediction/configs/mae`.
        *Same:* un-normed outputs of four blocks, heads, AdamW, schedule, learning rates, layer
        decay, windows, mmseg's scores. *Different:* `augment` is off for frozen models; no relative
        position bias is added to the model; no drop path; float32, not fp16; Pillow's resizing.
    """
    extractor = as_extractor(model, device=device)
    open_set = partial(open_segmentation, num_classes=num_classes)
    train_set, test_set = open_both(open_set, train, test)
    if train_set.num_classes != test_set.num_classes:
        raise ValueError(
            f"segmentation: the sets differ in their number of classes. Got "
            f"{train_set.num_classes} (train) and {test_set.num_classes} (test)."
        )
    if layer_decay is not None and not finetune:
        raise ValueError(
            f"segmentation: layer_decay= belongs to fine-tuning. Got {layer_decay} and "
            f"finetune=False."
        )
    decay = (0.65 if has_blocks(extractor.model) else 1.0) if layer_decay is None else layer_decay
    labelled = partial(torch.ne, other=IGNORE)
    task = DenseTask(
        trains=labelled,
        tests=labelled,
        missing=(
            "segmentation: no pixel of the {role} maps has a class",
            f" with the label {IGNORE} (ignored) everywhere.",
        ),
        num_outputs=train_set.num_classes,
        loss=segmentation_loss,
        groups=lambda backbone, decoder, settings: layer_decay_groups(
            backbone,
            decoder,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            decay=decay,
        ),
    )
    task.check(train_set, test_set)
    settings = _PAPER.settings(
        extractor, head=mode, finetune=finetune, image_size=image_size,
        iterations=iterations, batch_size=batch_size, lr=lr, weight_decay=weight_decay,
        warmup=warmup, augment=augment, channels=channels, workers=workers,
        cache_bytes=cache_bytes, seed=seed, progress=progress,
    )  # fmt: skip
    predictor = train_dense(extractor, train_set, settings, task=task)
    scores = score_segmentation(predictor, test_set, progress=progress)
    described = {**settings.describe(), **({"layer_decay": decay} if finetune else {})}
    return SegmentationResult(
        scores, described, len(train_set), len(test_set), predictor, train_set.classes
    )


def segmentation_loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy, averaged over all pixels, those that are ignored included, as in mmseg."""
    return F.cross_entropy(output, target.long(), ignore_index=IGNORE, reduction="none").mean()


def score_segmentation(
    predictor: DensePredictor, data: SegmentationImages, *, progress: bool = False
) -> SegmentationScores:
    """Predict every image of a set, see `score_set`, and score the areas of the whole set."""

    def score(output: Tensor, target: Tensor) -> Areas:
        areas = segmentation_areas(output.argmax(0), target, data.num_classes)
        return Areas(*(part.cpu() for part in areas))

    return segmentation_scores(add_areas(score_set(predictor, data, score, progress=progress)))


def layer_decay_groups(
    backbone: nn.Module,
    decoder: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    decay: float,
) -> list[dict[str, Any]]:
    """Parameter groups with a learning rate that falls from the head to the patch embedding.

    The head has `lr`, the backbone what `layer_rates` leaves of it. Biases and norms are not
    decayed.

    Raises:
        ValueError: If the model is not a transformer with `blocks`.

    Source:
        mmseg `LayerDecayOptimizerConstructor` (BEiT's).
        *Same:* factors; positions and class token are decayed (its rule against that never meets
        their names).
    """
    if decay != 1 and not has_blocks(backbone):
        raise ValueError(
            f"segmentation: layer decay needs a transformer with blocks. Got "
            f"{type(backbone).__name__}; use layer_decay=1.0 for one learning rate."
        )
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    rates = {} if decay == 1 else layer_rates(backbone, decay)
    for name, parameter in (*backbone.named_parameters(), *decoder.named_parameters()):
        plain = parameter.ndim == 1 or name.endswith(".bias")
        key = (lr * rates.get(parameter, 1.0), 0.0 if plain else weight_decay)
        found.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": shrink}
        for (rate, shrink), parameters in found.items()
    ]
