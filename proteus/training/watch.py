"""Watch: how close a student is to its teacher while it trains, on images it does not train on."""

import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..data import CorruptImageError, ImageSource, center_resize, decode, open_source
from ..data.places import join, number_labels
from ..evaluation import knn_predict
from ..evaluation.agreement import add_weighted, compare_projected, mean_over
from ..features import FeatureExtractor, Features, ShapeError
from ..models.image_model import ImageModel
from ..models.read import evaluating
from ..teacher import Teacher

_logger = logging.getLogger(__name__)

Labelled = tuple[Tensor, Tensor]


class Watch:
    """Measures of a student on held-out images, the same ones each time.

    It draws nothing, leaves the modes of all modules and the random numbers as they were, and runs
    the teacher once: the teacher's features are kept on the CPU, about
    `images * (1 + patches) * width * 4` bytes. Under DDP give it the module inside the wrapper.

    Args:
        images: Held-out RGB images, uint8 [n, 3, H, W], at the models' size.
        labels: Their classes, int64 [n]; None = no k-NN.
        bank: Labelled images `(images, labels)` that the k-NN votes with. None = the images with
            even numbers vote on those with odd ones. Only with `labels`.
        every: Steps between two looks, for the loop that calls it.
        k: Neighbours that vote.
        batch_size: Images a forward.

    Raises:
        ShapeError: If images or labels do not have these shapes.
        ValueError: If a setting is out of range or would be ignored.

    Examples:
        >>> from proteus import Distiller, Student
        >>> teacher = Teacher("vit_tiny_patch16_224", pretrained=False, image_size=32)
        >>> distiller = Distiller(teacher, Student("vit_tiny_patch16_224", image_size=32))
        >>> watch = Watch(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8))
        >>> sorted(watch(distiller))
        ['cls_cosine', 'cls_mse', 'patch_cosine', 'patch_mse']
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        bank: Labelled | None = None,
        *,
        every: int = 1000,
        k: int = 20,
        batch_size: int = 64,
    ) -> None:
        if every < 1 or batch_size < 1:
            raise ValueError(
                f"Watch: got every={every}, batch_size={batch_size}; expected at least 1 of both."
            )
        if labels is None and bank is not None:
            raise ValueError("Watch: the bank would be ignored. Got no labels of the images.")
        _check_images(images, labels, "images")
        self.images, self.labels = images.cpu(), labels
        self.every, self.k, self.batch_size = every, k, batch_size
        self.bank: Tensor | None = None
        if labels is not None:
            self.labels = labels.cpu()
            voters = len(images[::2])
            if bank is not None:
                _check_images(*bank, "bank")
                self.bank, self._bank_labels = bank[0].cpu(), bank[1].cpu()
                voters = len(self.bank)
            if not 1 <= k <= voters or len(images) < 2:
                raise ValueError(
                    f"Watch: k does not fit the images that vote. Got k={k} and {voters} of them; "
                    f"expected 1 to {voters}."
                )
        self._teacher: Teacher | None = None
        self._targets: list[Features] = []  # of a batch each, on the CPU
        self._teacher_top1 = 0.0

    @classmethod
    def from_sources(
        cls,
        images: Any,
        *,
        image_size: int,
        count: int = 256,
        labels: bool = False,
        bank: Any = None,
        bank_count: int = 2000,
        **options: Any,
    ) -> "Watch":
        """Read the images from where they are: centre crops, evenly spaced over the source.

        Args:
            images: Anything `proteus.data.open_source` takes, but no stream.
            image_size: Pixels, square; the models' size.
            count: Held-out images at most.
            labels: True = also k-NN, by the labels of the layout (folders, `KEY.cls`).
            bank: Labelled images that vote, as `images`; None = half of `images`.
            bank_count: Of these at most.
            options: `every`, `k`, `batch_size`.

        Raises:
            ValueError: As `open_source`; if labels are missing; if the source is a stream.
        """
        shown = _read(images, image_size, count)
        if not labels:
            if bank is not None:
                raise ValueError("Watch: the bank would be ignored. Got labels=False.")
            return cls(shown[1], **options)
        voters = None if bank is None else _read(bank, image_size, bank_count)
        if voters is None:
            return cls(shown[1], number_labels(shown[0])[1], **options)
        numbers = number_labels(join([shown[0], voters[0]]))[1]
        pair = voters[1], numbers[len(shown[1]) :]
        return cls(shown[1], numbers[: len(shown[1])], pair, **options)

    @torch.no_grad()
    def __call__(self, distiller: Any) -> dict[str, float]:
        """Look at the student as it is now.

        Args:
            distiller: See `Objective`; one without heads gets k-NN only. Every process of a run may
                call it; each computes the same.

        Returns:
            `cls_cosine`, `cls_mse` and `patch_cosine`, `patch_mse` between the teacher and the
            student as the loss's heads project it, where it has heads for them and the grids are
            equal (patches by the feature head, or by the patch head where there is no other).
            With labels also `knn_top1` of the student's class token and `teacher_knn_top1`, in
            0 … 1, of the `scored` images alone: see `margins` for what that leaves open.

        Raises:
            ValueError: If there is nothing to measure.
        """
        sums: dict[str, float] = {}
        tokens: list[Tensor] = []
        device = next(distiller.parameters()).device
        random = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
        with random, evaluating(distiller):
            self._remember(distiller.teacher)
            batches = self._features(distiller.student, self.images)
            for batch, target in zip(batches, self._targets, strict=True):
                tokens.append(batch.cls.float().cpu())
                if distiller.heads is not None:
                    values = compare_projected(distiller.heads, batch, target)
                    add_weighted(sums, values, len(batch.cls))
            result = mean_over(sums, len(self.images))
            if self.labels is not None:
                result["knn_top1"] = self._top1(distiller.student, torch.cat(tokens))
                result["teacher_knn_top1"] = self._teacher_top1
        if not result:
            raise ValueError(
                f"Watch: nothing to measure. Got no labels, and a {type(distiller).__name__} "
                f"without heads to compare through; pass labels for k-NN."
            )
        return result

    @property
    def scored(self) -> int:
        """Images that the k-NN is scored on: those that do not vote."""
        if self.labels is None:
            return 0
        return len(self.images) if self.bank is not None else len(self.images) // 2

    def margins(self, values: Mapping[str, float]) -> dict[str, float]:
        """How sure the shares are, being those of a sample.

        Args:
            values: What a look gave.

        Returns:
            `knn_images`, how many were scored, and for each share `NAME_margin`: half the width of
            its 95 % interval (Wilson's). Nothing without labels.
        """
        shares = {name: share for name, share in values.items() if name.endswith("_top1")}
        if not shares:
            return {}
        found = {f"{name}_margin": margin_of(share, self.scored) for name, share in shares.items()}
        return {"knn_images": self.scored, **found}

    def _remember(self, teacher: Teacher) -> None:
        """The teacher's features, once."""
        if teacher is self._teacher:
            return
        self._targets = [
            Features(f.cls.float().cpu(), f.patches.float().cpu(), f.grid)
            for f in self._features(teacher, self.images)
        ]
        if self.labels is not None:
            tokens = torch.cat([target.cls for target in self._targets])
            self._teacher_top1 = self._top1(teacher, tokens)
        self._teacher = teacher

    def _features(self, model: FeatureExtractor, images: Tensor) -> Iterator[Features]:
        assert isinstance(model, nn.Module)
        device = next(model.parameters()).device
        for part in torch.split(images, self.batch_size):
            batch = part.to(device)
            yield model(model.fit(batch) if isinstance(model, ImageModel) else batch)

    def _top1(self, model: FeatureExtractor, queries: Tensor) -> float:
        """Share of the images, class tokens [n, D], that the k-NN puts into their class."""
        assert self.labels is not None
        labels = self.labels
        if self.bank is not None:
            batches = self._features(model, self.bank)
            voters = torch.cat([features.cls.float().cpu() for features in batches])
            classes = self._bank_labels
        else:
            voters, classes = queries[::2], labels[::2]
            queries, labels = queries[1::2], labels[1::2]
        return float((knn_predict(voters, classes, queries, k=self.k) == labels).float().mean())


def margin_of(share: float, count: int) -> float:
    """Half the width of the 95 % interval of a share of `count` images, by Wilson.

    Examples:
        >>> round(margin_of(0.516, 128), 3), round(margin_of(0.516, 10_000), 3)
        (0.085, 0.01)
    """
    z = 1.96
    spread = math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return z * spread / (1 + z**2 / count)


def _check_images(images: Tensor, labels: Tensor | None, subject: str) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8 or not len(images):
        raise ShapeError(
            f"Watch: {subject} have the wrong shape. Got {images.dtype} {tuple(images.shape)}; "
            f"expected torch.uint8 [n, 3, H, W], RGB 0-255, at least one."
        )
    if labels is not None and (labels.shape != images.shape[:1] or labels.dtype != torch.int64):
        raise ShapeError(
            f"Watch: labels of the {subject} do not fit. Got {labels.dtype} "
            f"{tuple(labels.shape)}; expected torch.int64 {tuple(images.shape[:1])}."
        )


def _read(path: Any, size: int, count: int) -> tuple[ImageSource, Tensor]:
    """At most `count` images, evenly spaced, and their centres: uint8 [n, 3, size, size]."""
    source = path if isinstance(path, ImageSource) else open_source(path)
    if not isinstance(source, ImageSource):
        raise ValueError(
            f"Watch: a stream has no images to come back to. Got {source.description}; expected a "
            f"folder, shards, a list or a dataset with a length."
        )
    if count < 1:
        raise ValueError(f"Watch: got count={count}; expected at least one image.")
    number = min(count, len(source))
    from torchvision.transforms.functional import pil_to_tensor

    images: dict[int, Tensor] = {}
    for index in (i * len(source) // number for i in range(number)):
        try:
            images[index] = pil_to_tensor(center_resize(decode(source.read(index)), size))
        except CorruptImageError as error:
            _logger.warning("Watch: skipped a corrupt image: %s (%s)", source.name(index), error)
    if not images:
        raise ValueError(
            f"Watch: no image can be read. Got {number} corrupt ones in {source.description}."
        )
    part = source.select(list(images), source.description)
    return part, torch.stack(list(images.values()))
