"""Pictures of what a model sees: PCA maps at any size, masks, neighbours, predicted maps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..features import Features, ShapeError
from ..models.frozen import Extractor, as_extractor
from ..text import picture_text
from ..visualize import (
    Basis,
    new_figure,
    save_masks,
    save_pca,
    save_rows,
    to_shown,
    write_figure,
)
from .dense.maps import DepthImages, SegmentationImages
from .dense.prediction import DensePredictor
from .dense.seg_scores import IGNORE
from .feature_set import FeatureSet, check_finite, eval_transform
from .sets.labelled import LabelledImages

__all__ = [
    "patch_errors",
    "save_depth",
    "save_masks",
    "save_neighbours",
    "save_segmentation",
    "save_side_by_side",
]

_SHOWN = 128  # pixels of a picture in a row


def save_side_by_side(
    models: Mapping[str, Any],
    images: Sequence[Image.Image] | Tensor,
    path: str | Path,
    *,
    image_size: int = 518,
    basis: Basis | None = None,
    foreground: float | None = None,
) -> None:
    """PCA maps of several models, at any resolution: the paper's Figure 3.

    Args:
        models: Name -> anything `as_extractor` takes; the first is the reference (the teacher).
        images: RGB images, PIL or [B, 3, H, W], uint8 or float in [0, 1].
        path: PNG file.
        image_size: Square that images are resized to; every model gets the multiple of its patch
            that is next to it, so that grids can differ.
        basis: As for `pca_maps`; None = "joint" where widths agree, else "own".
        foreground: As for `pca_maps`.

    Raises:
        ValueError: If there are no models or images, or a model has no patches, or not finite ones.

    Source:
        Proteus A.10.
        *Same:* PCA over one set of images, resized to 518 x 518. *Different:* one basis for all
        models where their widths agree.
    """
    if not models or not len(images):
        raise ValueError(
            f"pictures: nothing to show. Got {len(models)} models and {len(images)} images."
        )
    squares = squares_of(images, image_size)
    features: dict[str, Features] = {}
    for name, model in models.items():
        extractor = as_extractor(model)
        patch = extractor.patch_size
        if 0 in patch:
            raise ValueError(f"pictures: the model has no patches to show. Got {name!r}.")
        size = [max(round(image_size / side), 1) * side for side in patch]
        features[name] = features_at(extractor, squares, (size[0], size[1]), name)
    if basis is None:
        widths = {one.patches.shape[-1] for one in features.values()}
        basis = "joint" if len(widths) == 1 else "own"
    save_pca(squares, features, path, basis=basis, foreground=foreground)


def patch_errors(student: Features, teacher: Features) -> Tensor:
    """1 - cosine of each patch, 0 (same direction) to 2, [B, N].

    Args:
        student: In the teacher's space, see `ProteusLoss.project`.
        teacher: Of the same images and grid.

    Raises:
        ShapeError: If the shapes differ.

    Examples:
        >>> one = Features(torch.ones(1, 4), torch.eye(4)[None], (2, 2))
        >>> patch_errors(one, one).tolist()
        [[0.0, 0.0, 0.0, 0.0]]
    """
    if student.patches.shape != teacher.patches.shape:
        raise ShapeError(
            f"patch_errors: shapes differ. Got {tuple(student.patches.shape)} and "
            f"{tuple(teacher.patches.shape)}; project the student with loss.project(features)."
        )
    return 1 - F.cosine_similarity(student.patches.float(), teacher.patches.float(), dim=-1)


def save_neighbours(
    queries: FeatureSet,
    bank: FeatureSet,
    query_images: LabelledImages,
    bank_images: LabelledImages,
    path: str | Path,
    *,
    count: int = 6,
    neighbours: int = 5,
) -> None:
    """Images and the nearest ones of another set, by cosine; green where the label is the same.

    Args:
        queries: Features of `query_images`.
        bank: Features of `bank_images`.
        query_images: What is shown in the first column, spread evenly over the set.
        bank_images: Where the neighbours come from.
        path: PNG file.
        count: Rows.
        neighbours: Columns after the first.

    Raises:
        ValueError: If features and images differ in number, or more neighbours than images are
            asked for.
    """
    for name, features, images in (
        ("queries", queries, query_images),
        ("bank", bank, bank_images),
    ):
        if len(features) != len(images):
            raise ValueError(
                f"save_neighbours: {name}: features and images differ in number. Got "
                f"{len(features)} and {len(images)}."
            )
    if not 1 <= neighbours <= len(bank) or not 1 <= count <= len(queries):
        raise ValueError(
            f"save_neighbours: there are {len(queries)} queries and {len(bank)} images to choose "
            f"from. Got count={count} and neighbours={neighbours}."
        )
    chosen = [i * len(queries) // count for i in range(count)]
    units = F.normalize(bank.cls.float(), dim=1)
    similarity, index = (F.normalize(queries.cls[chosen].float(), dim=1) @ units.T).topk(neighbours)
    figure = new_figure(1.35 * (neighbours + 1), 1.5 * count)
    axes = figure.subplots(count, neighbours + 1, squeeze=False)
    for line, query, values, found in zip(axes, chosen, similarity, index, strict=True):
        label = query_images.target(query)
        panel(line[0], query_images.image(query), str(label), "black")
        for axis, value, number in zip(line[1:], values.tolist(), found.tolist(), strict=True):
            same = torch.equal(torch.as_tensor(bank_images.target(number)), torch.as_tensor(label))
            title = f"{bank_images.target(number)}  {value:.2f}"
            panel(axis, bank_images.image(number), title, "green" if same else "red")
    write_figure(figure, path)


def save_segmentation(
    predictor: DensePredictor, data: SegmentationImages, path: str | Path, *, count: int = 6
) -> None:
    """Images, their labels and the predictions; what is ignored is black."""
    colours = _class_colours(data.num_classes).permute(1, 0)
    columns = []
    chosen = data.first(count)
    for image, target in (chosen[i] for i in range(len(chosen))):
        found = predictor([image])[0].argmax(0).cpu()
        labels = target.long().masked_fill(target == IGNORE, data.num_classes)
        columns.append([_pixels(image), colours[:, labels], colours[:, found]])
    _save_columns(columns, ["image", "labels", "prediction"], path)


def save_depth(
    predictor: DensePredictor, data: DepthImages, path: str | Path, *, count: int = 6
) -> None:
    """Images, their depths and the predictions, in one scale for each image; near is bright."""
    columns = []
    chosen = data.first(count)
    for image, target in (chosen[i] for i in range(len(chosen))):
        found = predictor([image])[0, 0].cpu()
        valid = target > 0
        kept = target[valid] if valid.any() else found.flatten()
        low, high = kept.quantile(0.02), kept.quantile(0.98)
        near, guess = (1 - ((m - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
                       for m in (target, found))  # fmt: skip
        maps = [one.expand(3, *one.shape) for one in (near * valid, guess)]
        columns.append([_pixels(image), *maps])
    _save_columns(columns, ["image", "depth", "prediction"], path)


def _save_columns(columns: Sequence[Sequence[Tensor]], names: Sequence[str], path: Any) -> None:
    """Pictures [3, H, W] of several images, one below the other for each image."""
    rows = [torch.stack([_fit(picture) for picture in row]) for row in zip(*columns, strict=True)]
    save_rows(rows, names, path)


def features_at(extractor: Extractor, images: Tensor, size: tuple[int, int], name: str) -> Features:
    """Features of RGB images [B, 3, S, S] in [0, 1] that are resized to (height, width) before.

    Raises:
        ValueError: If they are not finite; `name` is the model's in the message.
    """
    shown = F.interpolate(images, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    found = [extractor(one[None]) for one in shown]  # one by one: 518 pixels take memory
    patches = torch.cat([one.patches for one in found])
    check_finite(patches.flatten(1), f"pictures by {name!r} at {size[0]}x{size[1]} pixels")
    return Features(torch.cat([one.cls for one in found]), patches, found[0].grid)


def squares_of(images: Sequence[Image.Image] | Tensor, size: int) -> Tensor:
    """[B, 3, S, S] in [0, 1]; PIL images lose what is beyond the middle square."""
    if isinstance(images, Tensor):
        return F.interpolate(
            to_shown(images), size=(size, size), mode="bicubic", antialias=True
        ).clamp(0, 1)
    transform = eval_transform(size)
    return torch.stack([transform(image.convert("RGB")) for image in images]).float() / 255


def _pixels(image: Image.Image) -> Tensor:
    """[3, H, W] in [0, 1]."""
    from torchvision.transforms.functional import pil_to_tensor

    return to_shown(pil_to_tensor(image))


def _fit(picture: Tensor) -> Tensor:
    """[3, H, W] into a square, so that a row holds images of any shape."""
    scale = _SHOWN / max(picture.shape[1:])
    height, width = (max(round(side * scale), 1) for side in picture.shape[1:])
    small = F.interpolate(picture[None].float(), size=(height, width), mode="nearest")[0]
    return F.pad(small, (0, _SHOWN - width, 0, _SHOWN - height), value=1.0)


def _class_colours(count: int) -> Tensor:
    """[count + 1, 3]: colours far from one another, and black for what is ignored."""
    golden = 0.618034  # steps of the golden ratio never come close to an earlier hue
    hues = torch.arange(count) * golden % 1
    value = 0.95 - 0.35 * (torch.arange(count) % 3) / 2
    phases = (hues[:, None] * 6 + torch.tensor([0.0, 4.0, 2.0])) % 6
    rgb = ((phases - 3).abs() - 1).clamp(0, 1) * 0.75 + 0.25
    return torch.cat([rgb * value[:, None], torch.zeros(1, 3)])


def panel(axis: Any, image: Image.Image, title: str, colour: str) -> None:
    """One image with a title and a frame."""
    axis.imshow(image)
    axis.set_title(picture_text(title, 22), fontsize=8, color=colour)
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_edgecolor(colour)
        side.set_linewidth(2)
