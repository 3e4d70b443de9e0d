"""How long and how each protocol of a suite runs, by name."""

from dataclasses import dataclass
from typing import Any, Literal

from ...models.frozen import Extractor
from ..dense.task import default_size
from ..feature_set import square_size

_PROBE_SIZE = 224  # pixels, of the paper's classification


@dataclass(frozen=True)
class SuiteSettings:
    """How long and how each protocol runs; the defaults fit small sets on two cores.

    Attributes:
        image_size: Pixels, of all protocols.
        limit: At most this many images of each split; None = all.
        linear_iterations: Steps of the linear probe.
        linear_batch: Images in such a step.
        linear_augment: Random crops in every step; False = features of the centre, computed once.
        select: `test` = the best head on the test set, as the paper; or `holdout`.
        sweep: Of the logistic regression.
        dense_size: Pixels of segmentation and depth; None = `image_size`.
        dense_augment: Scale, crop, mirror and recolour their images for frozen models, too.
        segmentation_iterations: Steps of the linear head.
        depth_iterations: Steps of the depth head.
        depth_head: Of frozen models: `linear`, or `dpt` as in the paper.
        finetune_iterations: Steps of UperNet and DPT with the model; None = as of the heads alone,
            and 160,000 of segmentation for a model of 24 blocks or more.
        finetune_channels: Width of UperNet and DPT; None = the paper's.
        severities: Of the corruptions, of twelve kinds.
        seed: Of everything random.
    """

    image_size: int
    limit: int | None = None
    linear_iterations: int = 500
    linear_batch: int = 256
    linear_augment: bool = False
    select: Literal["test", "holdout"] = "test"
    sweep: Literal["paper", "official"] = "paper"
    dense_size: int | None = None
    dense_augment: bool = False
    segmentation_iterations: int = 500
    depth_iterations: int = 300
    depth_head: Literal["linear", "dpt"] = "linear"
    finetune_iterations: int | None = 100
    finetune_channels: int | None = 64
    severities: tuple[int, ...] = (3,)
    seed: int = 0


_PAPER: dict[str, Any] = {
    "linear_iterations": 25_020,
    "linear_batch": 512,
    "linear_augment": True,
    "dense_augment": True,
    "segmentation_iterations": 60_000,
    "depth_iterations": 25_000,
    "depth_head": "dpt",
    "finetune_iterations": None,
    "finetune_channels": None,
    "severities": (1, 2, 3, 4, 5),
}
# What each of these numbers is, the paper's, its code's or ours, is a table in docs/evaluation.md.
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {},
    "paper": _PAPER,
    "official": {**_PAPER, "sweep": "official"},
    "dinov2": {**_PAPER, "linear_iterations": 12_500},
}


def preset(name: str, model: Extractor, image_size: int | None, **changes: Any) -> SuiteSettings:
    """The settings of a name of `PRESETS` for a model.

    Args:
        name: `quick`, `paper`, `official` or `dinov2`.
        model: What is measured.
        image_size: Pixels, of all protocols; None = the model's own for `quick`, and for the others
            the multiples of its patch next to 224, and next to 512 for segmentation and depth.
        changes: Settings that are not the preset's.
    """
    sizes: dict[str, Any] = {"image_size": square_size(model, image_size)}
    if image_size is None and name != "quick":
        sizes = {"image_size": default_size(model, _PROBE_SIZE), "dense_size": default_size(model)}
    return SuiteSettings(**{**sizes, **PRESETS[name], **changes})
