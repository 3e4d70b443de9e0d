"""Depth: how well the patches of a model tell how far away things are."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...models.frozen import as_extractor
from .crops import DEPTH
from .decoders import Decoder, Head
from .depth_scores import (
    MAX_DEPTH,
    MIN_DEPTH,
    Convention,
    DepthScores,
    average_depth_scores,
    check_convention,
    depth_mask,
    depth_scores,
    silog_loss,
)
from .fit_head import train_dense
from .maps import DepthImages, open_both, open_depth
from .prediction import DensePredictor, score_set
from .task import DenseResult, DenseTask, Paper, Settings

_PAPER = Paper(4e-4, 25_000, distance=(1, 4), flip=True, augmentation=DEPTH)
_BACKBONE_FACTOR = 0.1


@dataclass(frozen=True)
class DepthResult(DenseResult[DepthScores]):
    """What `depth` measured, see `DenseResult`: `scores.rmse` is the number of the paper, metres.

    `predictor([image])` gives metres [1, 1, H, W].
    """


def depth(
    model: Any,
    train: Any,
    test: Any = None,
    *,
    mode: Literal["dpt", "linear"] = "dpt",
    finetune: bool = False,
    image_size: int | None = None,
    iterations: int = 25_000,
    batch_size: int = 16,
    lr: float | None = None,
    weight_decay: float = 0.01,
    warmup: int | None = None,
    augment: bool | None = None,
    channels: int | None = None,
    min_depth: float = MIN_DEPTH,
    max_depth: float = MAX_DEPTH,
    convention: Convention = "mmseg",
    clamp: bool = False,
    flip: bool = True,
    workers: int = 0,
    cache_bytes: int = 4 << 30,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> DepthResult:
    """Train a head for depth on the training images and score it on the test images.

    Images keep their ratio; windows of `image_size` slide over them with a quarter of it as
    distance (518 / 129), and sizes that are no multiples of the patch are filled up with the
    border. Depths are compared at their own size. In a distributed run the test images are shared
    out; every process trains the same head.

    Args:
        model: Anything `as_extractor` takes, except models without patches.
        train: Anything `open_depth` takes; a path is opened with the split `train`.
        test: The same, with the split `test`; None = of `train`, then a path with splits.
        mode: The head. "dpt" = the paper's, for frozen and fine-tuned models (extra `eval`);
            "linear" = a batch norm and one 1x1 convolution: cheaper, and a stricter question to the
            features.
        finetune: Train the model, too, on a copy, with a tenth of the learning rate; not with
            "linear".
        image_size: Short side of the images and side of the windows; None = the multiple of the
            patch next to 512, as in the paper.
        iterations: Training steps.
        batch_size: Images in a step.
        lr: Peak; None = 4e-4 frozen, 1e-4 fine-tuned, as in the paper.
        weight_decay: Not for positions, class token and norms of a fine-tuned model.
        warmup: Steps; None = 1,500 of 25,000, in proportion.
        augment: Scale, crop, mirror and recolour the training images; None = only with `finetune`.
            Without it a frozen model's features are computed once, if they fit `cache_bytes`.
        channels: Width of "dpt"; None = 256.
        min_depth: Metres; pixels at or below count nowhere.
        max_depth: Metres; pixels at or above count nowhere.
        convention: Of `silog` and of means over images, see `depth_scores`.
        clamp: Move predictions into the bounds before they are scored; the paper's code does not,
            and one prediction <= 0 then makes the logarithmic scores NaN.
        flip: Average with the prediction for the mirrored image.
        workers: Processes that prepare training images, where they are not kept.
        cache_bytes: Memory for features.
        seed: Of the head's weights, the order and the augmentation.
        device: Where to run; None = where the model is.
        progress: Show bars.

    Raises:
        ValueError: If a set is empty or has no depth, a setting would be ignored, or features,
            losses or weights are not finite.

    Examples:
        >>> from PIL import Image
        >>> near = torch.cat([torch.full((8, 4), 1.0), torch.full((8, 4), 4.0)], 1)
        >>> image = Image.fromarray((near * 60).byte().numpy()).convert("RGB")
        >>> model = torch.nn.Conv2d(3, 8, 4, stride=4)
        >>> result = depth(
        ...     model,
        ...     [(image, near)],
        ...     [(image, near)],
        ...     mode="linear",
        ...     image_size=32,
        ...     iterations=100,
        ...     batch_size=2,
        ...     lr=0.1,
        ... )
        >>> result.scores.rmse < 0.75  # 1.5 for the mean depth everywhere
        True

    Source:
        Proteus A.1.5; `eval/dense_prediction/configs/dpt`.
        *Same:* un-normed outputs of four blocks, DPT, SiLog loss, AdamW, schedule, learning rates,
        window positions with mirroring, mmseg's scores. *Different:* images are normalised with the
        model's statistics, not 127.5; the head's last bias starts at the mean training depth;
        depths outside the bounds are not trained on; `augment` is off for frozen models; all
        weights of a fine-tuned model have a tenth of the learning rate; float32; Pillow's resizing.
    """
    check_convention(convention)
    extractor = as_extractor(model, device=device)
    train_set, test_set = open_both(open_depth, train, test)
    between = partial(depth_mask, min_depth=min_depth, max_depth=max_depth)
    scoring = {"convention": convention, **between.keywords, "clamp": clamp}
    task = DenseTask(
        trains=between,
        tests=partial(between, crop=test_set.crop),
        missing=(
            f"depth: no pixel of the {{role}} maps lies between {min_depth} and {max_depth} metres",
            "; are the maps in metres?",
        ),
        num_outputs=1,
        mean_first=True,
        groups=_finetuning_groups,
        loss=lambda out, target: silog_loss(out[:, 0], torch.where(between(target), target, 0.0)),
    )
    task.check(train_set, test_set)
    head: Head = "norm_linear" if mode == "linear" else mode
    settings = _PAPER.settings(
        extractor, head=head, finetune=finetune, image_size=image_size,
        iterations=iterations, batch_size=batch_size, lr=lr, weight_decay=weight_decay,
        warmup=warmup, augment=augment, channels=channels, workers=workers,
        cache_bytes=cache_bytes, seed=seed, progress=progress,
    )  # fmt: skip
    predictor = train_dense(extractor, train_set, settings, task=task)
    scores = score_depth(predictor, test_set, progress=progress, **scoring)
    described = {**settings.describe(), **scoring, "crop": test_set.crop}
    return DepthResult(scores, described, len(train_set), len(test_set), predictor)


def score_depth(
    predictor: DensePredictor,
    data: DepthImages,
    *,
    convention: Convention = "mmseg",
    min_depth: float = MIN_DEPTH,
    max_depth: float = MAX_DEPTH,
    clamp: bool = False,
    progress: bool = False,
) -> DepthScores:
    """Predict every image of a set, see `score_set`, and score each, then take the mean."""

    def score(output: Tensor, target: Tensor) -> DepthScores:
        return depth_scores(
            [output[0]], [target], convention=convention, min_depth=min_depth, max_depth=max_depth,
            crop=data.crop, clamp=clamp,
        )  # fmt: skip

    return average_depth_scores(
        score_set(predictor, data, score, progress=progress), convention=convention
    )


def _finetuning_groups(
    backbone: nn.Module, decoder: Decoder, settings: Settings
) -> list[dict[str, Any]]:
    plain: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    for name, parameter in backbone.named_parameters():
        spared = any(word in name for word in ("pos_embed", "cls_token", "norm"))
        (plain if spared else decayed).append(parameter)
    rate = settings.lr * _BACKBONE_FACTOR
    return [
        {"params": list(decoder.parameters())},
        {"params": decayed, "lr": rate},
        {"params": plain, "lr": rate, "weight_decay": 0.0},
    ]
