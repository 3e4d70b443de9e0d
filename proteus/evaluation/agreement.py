"""How close a student is to its teacher, on images it was not trained on."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..data.workers import load
from ..distances import token_distance
from ..features import Features, ShapeError
from ..grids import meet, partner_size, resize
from ..losses import ProteusLoss
from ..models.frozen import Extractor, as_extractor
from ..models.read import evaluating
from ..traits import Trait
from .feature_set import Resized, check_finite, default_workers, probe_resize
from .result import Result, plain
from .sets.labelled import open_labelled


@runtime_checkable
class Distilling(Trait, Protocol):
    """`Distiller`: it has a loss and is the whole step."""

    loss: nn.Module

    def __call__(self, images: Tensor) -> Any:
        """Images to `Losses`."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Its weights, which tell where it is."""
        ...


@torch.no_grad()
def compare_features(student: Features, teacher: Features) -> dict[str, float]:
    """Mean cosine similarity and mean squared error, for class tokens and for patches.

    Args:
        student: Student features in the teacher's space, see `ProteusLoss.project`.
        teacher: Teacher features of the same images.

    Returns:
        `cls_cosine`, `patch_cosine` (-1 … 1, 1 = same direction), `cls_mse`, `patch_mse` (the
        training distances).

    Raises:
        ShapeError: If the shapes differ.

    Examples:
        >>> features = Features(torch.ones(2, 4), torch.ones(2, 9, 4), (3, 3))
        >>> compare_features(features, features)["cls_cosine"]
        1.0
    """
    pairs = {"cls": (student.cls, teacher.cls), "patch": (student.patches, teacher.patches)}
    return mean_over(_compare(pairs), 1)


@torch.no_grad()
def compare_projected(
    loss: ProteusLoss | None, student: Features, teacher: Features
) -> dict[str, float]:
    """As `compare_features`, for as much as can be compared; not rounded, to be averaged.

    Args:
        loss: Brings the two into one space, see `ProteusLoss.pairs`; what it has no head for is
            left out. None = equal widths are compared as they are, different ones not at all.
        student: Student features as they are.
        teacher: Teacher features of the same images; patches meet on the coarser grid.
    """
    student, teacher = meet(student, teacher)
    if loss is not None:
        return _compare(loss.pairs(student, teacher))
    pairs = {}
    if student.cls.shape == teacher.cls.shape:
        pairs["cls"] = student.cls, teacher.cls
    if student.patches.shape == teacher.patches.shape and student.patches.shape[1]:
        pairs["patch"] = student.patches, teacher.patches
    return _compare(pairs)


def _compare(pairs: dict[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    result = {}
    for name, (ours, target) in pairs.items():
        theirs = target.to(ours.device)
        squared = token_distance(ours, theirs).mean()  # which checks the shapes
        wide = torch.float32 if ours.device.type == "mps" else torch.float64  # MPS has no float64
        cosine = F.cosine_similarity(ours.to(wide), theirs.to(wide), dim=-1).mean()
        result[f"{name}_cosine"] = float(cosine)
        result[f"{name}_mse"] = float(squared)
    return result


def add_weighted(sums: dict[str, float], values: dict[str, float], count: int) -> None:
    """Add means over `count` images to sums over images."""
    for name, value in values.items():
        sums[name] = sums.get(name, 0.0) + value * count


def mean_over(sums: dict[str, float], count: int) -> dict[str, float]:
    """Means over `count` images; cosines to six digits, so that of equal features they are 1."""
    means = {name: total / count for name, total in sums.items()}
    return {n: round(mean, 6) if n.endswith("_cosine") else mean for n, mean in means.items()}


@torch.no_grad()
def linear_cka(ours: Tensor, theirs: Tensor) -> float:
    """Linear centred kernel alignment of two sets of features of the same images.

    1 = the same up to rotation and one scale; 0 = unrelated. Widths may differ, so no head is
    needed. It is biased upwards where images are fewer than dimensions.

    Args:
        ours: [n, D1].
        theirs: [n, D2].

    Returns:
        0 … 1; NaN where the features of all images are the same.

    Raises:
        ShapeError: If the numbers of images differ.

    Examples:
        >>> features = torch.randn(20, 3)
        >>> rotation = torch.linalg.qr(torch.randn(3, 3)).Q
        >>> round(linear_cka(features, 2 * features @ rotation), 4)
        1.0

    Source:
        Kornblith et al. 2019, "Similarity of neural network representations revisited", Eq. 5.
    """
    if ours.ndim != 2 or theirs.ndim != 2 or len(ours) != len(theirs):
        raise ShapeError(
            f"linear_cka: features of the same images are needed. Got {tuple(ours.shape)} and "
            f"{tuple(theirs.shape)}; expected [n, D1] and [n, D2]."
        )
    return _alignment(_centred(ours), _centred(theirs))


def _centred(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features [n, D] about their mean, float64, and the norm of their scatter matrix."""
    x = features.double() - features.double().mean(0)
    return x, (x.T @ x).norm()


def _alignment(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> float:
    cross = (ours[0].T @ theirs[0]).square().sum()
    return float(cross / (ours[1] * theirs[1]))


@dataclass(frozen=True)
class AgreementResult(Result):
    """How a student compares with its teacher on held-out images.

    Attributes:
        num_images: Images.
        distances: `cls_cosine`, `cls_mse`, `patch_cosine`, `patch_mse` of the projected student; {}
            where widths differ and no loss was given; only what the loss has heads for; patches
            on the coarser of the two grids.
        terms: Mean `total`, `token`, `feature`, `patch` of the training objective; {} unless a
            `Distiller` was given.
        cka_cls: Linear CKA of the class tokens, no head involved.
        cka_patches: Of the mean patch tokens; NaN where a model has none.
        cka_layers: Of the class tokens of student layer i (row) and teacher layer j (column); ()
            where not asked for.
    """

    protocol = "agreement"
    num_images: int
    distances: dict[str, float]
    terms: dict[str, float]
    cka_cls: float
    cka_patches: float
    cka_layers: tuple[tuple[float, ...], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The numbers, ready for JSON; None stands for NaN."""
        layers = [[plain(cka) for cka in row] for row in self.cka_layers]
        return {**super().to_dict(), "cka_layers": layers}


@torch.no_grad()
def agreement(
    student: Any,
    teacher: Any,
    dataset: Any,
    *,
    loss: Any = None,
    split: str = "test",
    layers: bool = False,
    image_size: int | None = None,
    batch_size: int = 64,
    max_images: int | None = 2000,
    workers: int | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
) -> AgreementResult:
    """Compare a student with its teacher on images it was not trained on.

    Args:
        student: Anything `as_extractor` takes.
        teacher: The same.
        dataset: Anything `open_labelled` takes; labels need not be there.
        loss: The `ProteusLoss` of the training, whose heads bring the student to the teacher's
            space, or the `Distiller`, which gives the terms of the objective as well. None = equal
            widths are compared as they are, and of different ones only CKA is told.
        split: For `open_labelled`.
        layers: Compare every layer of one with every layer of the other.
        image_size: Pixels, of both; None = the student's own, and for the teacher that at which
            its grid is the student's, where it is near (`proteus.grids.partner_size`); with a
            `Distiller` each has the size that it was trained with.
        batch_size: Images in a forward pass.
        max_images: At most this many, evenly spread over the set; None = all.
        workers: Processes that decode images; None = chosen by the size of the set.
        device: Where to run; None = where each model is.
        seed: Of the masks of the patch term.

    Raises:
        ValueError: If `loss` is neither, or features are not finite.

    Examples:
        >>> from PIL import Image
        >>> images = [(Image.new("RGB", (8, 8), colour), 0) for colour in ("red", "blue", "lime")]
        >>> model = torch.nn.Conv2d(3, 5, 4, stride=4)
        >>> result = agreement(model, model, images, image_size=8)
        >>> result.distances["cls_cosine"], round(result.cka_cls, 6)
        (1.0, 1.0)
    """
    ours = as_extractor(student, image_size=image_size, device=device)
    theirs = as_extractor(teacher, image_size=image_size, device=device)
    if image_size is None and not isinstance(loss, Distilling):
        theirs = as_extractor(theirs, image_size=_partner(ours, theirs))
    size = max(ours.image_size[0], theirs.image_size[0])
    heads = loss.loss if isinstance(loss, Distilling) else loss
    if not isinstance(heads, ProteusLoss | None):
        raise ValueError(
            f"agreement: not a loss. Got {type(loss).__name__}; expected a ProteusLoss, a "
            f"Distiller, or None."
        )
    data = open_labelled(dataset, split=split, labels=False)
    data = data if max_images is None else data.first(max_images)
    distances: dict[str, float] = {}
    terms: dict[str, float] = {}
    kept: dict[str, list[Tensor]] = {}
    quiet = contextlib.nullcontext() if loss is None else evaluating(loss)
    loader = DataLoader(
        Resized(data, size, probe_resize(size)),
        batch_size,
        num_workers=default_workers(workers, len(data)),
        collate_fn=_images,
    )
    with torch.random.fork_rng(), quiet:
        torch.manual_seed(seed)
        for images in load(loader):
            sized = [resize(images, model.image_size, "agreement") for model in (ours, theirs)]
            found = ours(sized[0]), theirs(sized[1])
            add_weighted(distances, compare_projected(heads, *found), len(images))
            if isinstance(loss, Distilling):
                place = next(loss.parameters()).device
                losses = loss(images.to(place))._asdict()
                add_weighted(terms, {n: float(term) for n, term in losses.items()}, len(images))
            _keep(kept, found, (ours, theirs) if layers else (), sized)
    joined = {name: torch.cat(parts) for name, parts in kept.items()}
    for number, model in enumerate(("student", "teacher")):
        for part in ("cls", "patches"):
            what = f"images of {data.description}, by the {model}"
            check_finite(joined[f"{part}{number}"], what)
    return AgreementResult(
        num_images=len(data),
        distances=mean_over(distances, len(data)),
        terms=mean_over(terms, len(data)),
        cka_cls=linear_cka(joined["cls0"], joined["cls1"]),
        cka_patches=linear_cka(joined["patches0"], joined["patches1"]),
        cka_layers=_layer_table(joined, ours, theirs) if layers else (),
    )


def _partner(ours: Extractor, theirs: Extractor) -> tuple[int, int]:
    """The teacher's image size beside a student's."""
    sides = zip(ours.image_size, ours.patch_size, strict=True)
    rows, columns = (side // patch if patch else 0 for side, patch in sides)
    return partner_size(ours.image_size, (rows, columns), theirs.patch_size)


def _images(rows: list[tuple[Tensor, Any]]) -> Tensor:
    return torch.stack([image for image, _ in rows])


def _keep(
    kept: dict[str, list[Tensor]],
    found: tuple[Features, Features],
    models: tuple[Extractor, ...],
    images: list[Tensor],
) -> None:
    for number, features in enumerate(found):
        mean = features.patches.mean(1) if features.patches.shape[1] else features.cls * 0
        kept.setdefault(f"cls{number}", []).append(features.cls.float().cpu())
        kept.setdefault(f"patches{number}", []).append(mean.float().cpu())
    for number, model in enumerate(models):
        for index, layer in enumerate(model.layers(images[number], model.num_layers)):
            kept.setdefault(f"layer{number}.{index}", []).append(layer.cls.float().cpu())


def _layer_table(
    joined: dict[str, Tensor], ours: Extractor, theirs: Extractor
) -> tuple[tuple[float, ...], ...]:
    """CKA of every layer with every layer; what one layer needs of itself is computed once."""
    rows, columns = (
        [_centred(joined[f"layer{number}.{index}"]) for index in range(model.num_layers)]
        for number, model in enumerate((ours, theirs))
    )
    return tuple(tuple(_alignment(row, column) for column in columns) for row in rows)
