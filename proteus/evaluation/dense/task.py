"""What segmentation and depth share: from the sets and the settings to the result."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor, nn

from ...models.frozen import Extractor
from .crops import Augmentation
from .decoders import Decoder, Head
from .depth_scores import DepthScores
from .maps import DenseImages
from .prediction import DensePredictor
from .seg_scores import SegmentationScores

Scores = TypeVar("Scores", SegmentationScores, DepthScores)
Loss = Callable[[Tensor, Tensor], Tensor]
_REFERENCE_SIZE = 512
_FINETUNING_LR, _WARMUP = 1e-4, 1500  # the paper's, of both tasks


@dataclass(frozen=True)
class Settings:
    """How a dense head is trained; see `segmentation` and `depth` for the paper's values."""

    head: Head
    finetune: bool
    image_size: int
    stride: int
    flip: bool
    iterations: int
    batch_size: int
    lr: float
    weight_decay: float
    warmup: int
    augmentation: Augmentation | None
    channels: int | None
    workers: int
    cache_bytes: int
    seed: int
    progress: bool

    def __post_init__(self) -> None:
        for name in ("image_size", "stride", "iterations", "batch_size", "channels"):
            value = vars(self)[name]
            if value is not None and value < 1:
                raise ValueError(f"{name}: must be at least 1. Got {value}.")
        if not 0 <= self.warmup < self.iterations:
            raise ValueError(
                f"warmup: must be shorter than the run. Got {self.warmup} of {self.iterations} "
                f"iterations."
            )
        if self.head == "upernet" and self.batch_size < 2:
            raise ValueError(
                "batch_size: UperNet pools an image to one pixel and normalises over the batch. "
                "Got 1; expected at least 2."
            )
        if self.finetune and self.head in ("linear", "norm_linear"):
            raise ValueError(
                "finetune: a linear head measures a frozen model. Got finetune=True and 'linear'; "
                "take 'upernet' or 'dpt'."
            )

    def describe(self) -> dict[str, Any]:
        """What belongs into a result: all that moves the numbers."""
        left_out = ("workers", "cache_bytes", "progress", "augmentation")
        plain = {name: value for name, value in vars(self).items() if name not in left_out}
        return {**plain, "augment": self.augmentation is not None}


@dataclass(frozen=True)
class DenseResult(Generic[Scores]):
    """What `segmentation` or `depth` measured.

    Attributes:
        scores: Of the test set.
        settings: How the head was trained and scored.
        num_train: Training images.
        num_test: Test images.
        predictor: The model with its head: `predictor([image])` gives a map [1, C, H, W].
    """

    scores: Scores
    settings: dict[str, Any]
    num_train: int
    num_test: int
    predictor: DensePredictor = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        counts = {"num_train": self.num_train, "num_test": self.num_test}
        return {**self.scores.to_dict(), **counts, **self.settings}


class Paper(NamedTuple):
    """How the paper trains for a task.

    Attributes:
        lr: Peak for a frozen model.
        iterations: Training steps, 1,500 of them to warm up.
        distance: Of windows: (a, b) = a / b of their side.
        flip: Average with the prediction for the mirrored image.
        augmentation: Of training images, where they are augmented.
    """

    lr: float
    iterations: int
    distance: tuple[int, int]
    flip: bool
    augmentation: Augmentation

    def settings(
        self,
        extractor: Extractor,
        *,
        finetune: bool,
        image_size: int | None,
        iterations: int,
        lr: float | None,
        warmup: int | None,
        augment: bool | None,
        **others: Any,
    ) -> Settings:
        """From those of `segmentation` and `depth`, None = the paper's; the others as they are."""
        size = default_size(extractor) if image_size is None else image_size
        part, whole = self.distance
        return Settings(
            finetune=finetune,
            image_size=size,
            stride=max(size * part // whole, 1),
            flip=self.flip,
            iterations=iterations,
            lr=(_FINETUNING_LR if finetune else self.lr) if lr is None else lr,
            warmup=iterations * _WARMUP // self.iterations if warmup is None else warmup,
            augmentation=self.augmentation if (finetune if augment is None else augment) else None,
            **others,
        )


@dataclass(frozen=True)
class DenseTask:
    """What the maps of a task mean.

    Attributes:
        trains: Map -> which of its pixels count in training.
        tests: Map -> which of its pixels are scored.
        missing: Of a set without such pixels: before and after its size and name, in a refusal.
        num_outputs: Channels of the map.
        loss: Of a map [B, C, H, W] and the targets [B, H, W].
        groups: Parameter groups of the model and the head when both are trained.
        mean_first: Start the head's last bias at the mean of the training maps.
    """

    trains: Callable[[Tensor], Tensor]
    tests: Callable[[Tensor], Tensor]
    missing: tuple[str, str]
    num_outputs: int
    loss: Loss
    groups: Callable[[nn.Module, Decoder, Settings], list[dict[str, Any]]]
    mean_first: bool = False

    def check(self, train: DenseImages, test: DenseImages) -> None:
        """Raise `ValueError` where a set has nothing to measure."""
        for role, data, counts in (("training", train, self.trains), ("test", test, self.tests)):
            if not data.any_pixel(counts):
                raise self._nothing(role, data)

    def mean(self, targets: Tensor, data: DenseImages) -> float:
        """Of the pixels that count in training maps of this set."""
        valid = targets[self.trains(targets)]
        if not len(valid):
            raise self._nothing("training", data)
        return float(valid.double().mean())

    def _nothing(self, role: str, data: DenseImages) -> ValueError:
        subject, rest = self.missing
        return ValueError(
            f"{subject.format(role=role)}. Got {len(data)} images in {data.description}{rest}"
        )


def default_size(extractor: Extractor, reference: int = _REFERENCE_SIZE) -> int:
    """The multiple of the patch that is next to 512: 512 for patch 16, 518 for patch 14."""
    patch = max(extractor.patch_size[0], 1)
    return max(round(reference / patch), 1) * patch
