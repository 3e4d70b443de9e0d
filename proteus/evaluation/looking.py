"""Given images as models see them: PCA maps, and the nearest images of a set."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data import CorruptImageError, ImageSource, decode, open_source
from ..data.places import Place, join
from ..features import Features
from ..models.frozen import Extractor
from ..text import picture_text
from ..visualize import Basis, new_figure, pca_maps, write_figure
from ..weights.positions import is_resizable
from .feature_set import check_finite, default_workers, eval_transform, square_size
from .pictures import features_at, panel

_PAPER_SIZE = 518  # pixels of the paper's maps
_SET = {".tar", ".txt", ".json"}  # files that hold or list images


class Look(NamedTuple):
    """A model to look through.

    Attributes:
        extractor: See `as_extractor`.
        project: Its features -> those of another model's width; None = as they are.
    """

    extractor: Extractor
    project: Callable[[Features], Features] | None = None


@dataclass(frozen=True)
class Photos:
    """Images to look at.

    Attributes:
        images: RGB.
        names: Of the images.
        encoded: Their bytes; None where a dataset holds them decoded.
        total: How many there were to choose from.
        skipped: Name of what cannot be read -> why.
    """

    images: list[Image.Image]
    names: list[str]
    encoded: list[bytes | None]
    total: int
    skipped: dict[str, str]


def open_photos(paths: Sequence[str | Path], count: int = 8) -> Photos:
    """Read at most `count` images, evenly spread; what is damaged is passed over.

    Args:
        paths: Image files, and whatever `open_source` takes.
        count: Images.

    Raises:
        ValueError: If there are none, or none can be read.
    """
    source = join([_open(str(path)) for path in paths])
    spread = [i * len(source) // count for i in range(count)] if len(source) > count else []
    skipped = dict(source.passed_over)
    found: dict[int, tuple[Image.Image, bytes | None]] = {}
    for index in dict.fromkeys([*spread, *range(len(source))]):
        if len(found) == count:
            break
        try:
            data = source.read(index)
            found[index] = decode(data), data if isinstance(data, bytes) else None
        except CorruptImageError as error:
            skipped[source.name(index)] = str(error)
    if not found:
        first = ", ".join(f"{name} ({why})" for name, why in list(skipped.items())[:3])
        raise ValueError(
            f"pictures: no image can be read. Got {len(source)} in {source.description}: {first}."
        )
    order = sorted(found)
    return Photos(
        [found[i][0] for i in order],
        [source.name(i) for i in order],
        [found[i][1] for i in order],
        len(source),
        skipped,
    )


def _open(path: str) -> ImageSource:
    file = Path(path)
    if file.is_file() and file.suffix.lower() not in _SET:
        return ImageSource(path, [Place(path, file.name)])
    return with_length(open_source(path))


def with_length(source: Any) -> ImageSource:
    """The source, if it can be asked for image n."""
    if not isinstance(source, ImageSource):
        raise ValueError(
            f"pictures: images must be there to be asked for. Got {source.description}, a stream; "
            f"expected files, shards or a dataset with a length."
        )
    return source


def pca_columns(
    looks: Mapping[str, Look], images: Tensor, image_size: int | None = None
) -> tuple[dict[str, Tensor], Basis]:
    """PCA maps of each model: in one basis where widths agree, else each in its own.

    Args:
        looks: Name -> model.
        images: RGB [B, 3, S, S] in [0, 1].
        image_size: Pixels; None = each model's own size where one is projected into another's
            space, which holds at the trained size and less and less beyond. Else up to four times
            a transformer's own size, at most the paper's 518, for finer maps.

    Raises:
        ValueError: If a model has no patches, or there are too few.
    """
    features = {}
    compared = any(look.project for look in looks.values())
    for name, (extractor, project) in looks.items():
        if 0 in extractor.patch_size:
            raise ValueError(
                f"pictures: the model has no patches to show. Got {name!r}, whose features are "
                f"one vector an image; --what neighbours can be shown."
            )
        size = extractor.image_size
        finer = is_resizable(extractor.model) and not compared
        if image_size is not None or finer:
            wanted = image_size or max(size[0], min(4 * size[0], _PAPER_SIZE))
            rows, columns = (max(round(wanted / side), 1) * side for side in extractor.patch_size)
            size = rows, columns
        found = features_at(extractor, images, size, name)
        with torch.no_grad():
            features[name] = project(found) if project else found
    widths = {one.patches.shape[-1] for one in features.values()}
    basis: Basis = "joint" if len(widths) == 1 else "own"
    return dict(zip(features, pca_maps(*features.values(), basis=basis), strict=True)), basis


class Neighbours(NamedTuple):
    """The nearest images of a set, by the cosine of class tokens.

    Attributes:
        indices: For each image, numbers in the set, nearest first.
        similarity: Cosines, likewise.
    """

    indices: list[list[int]]
    similarity: list[list[float]]


def find_neighbours(
    looks: Mapping[str, Look],
    photos: Photos,
    source: ImageSource,
    count: int = 5,
    *,
    workers: int | None = None,
    progress: bool = False,
) -> tuple[dict[str, Neighbours], dict[str, str]]:
    """The nearest images of a set for each model; an image is no neighbour of itself.

    Args:
        looks: Name -> model.
        photos: What is looked for.
        source: The set.
        count: Neighbours, at most.
        workers: Processes that decode images; None = by the set's size.
        progress: Show a bar.

    Returns:
        Name of the model -> neighbours; and the images that were skipped, with the reason.

    Raises:
        ValueError: If the set holds nothing but the images themselves, or features are not finite.
    """
    sizes = {name: square_size(look.extractor, None) for name, look in looks.items()}
    vectors, kept, skipped = _embed(looks, sizes, source, workers, progress)
    found = {}
    for name, (extractor, _) in looks.items():
        transform = eval_transform(sizes[name])
        queries = torch.cat([extractor(transform(image)[None]).cls for image in photos.images])
        check_finite(queries, "images", photos.names)
        units = F.normalize(queries.float().cpu(), dim=1)
        similarity = units @ F.normalize(vectors[name], dim=1).T
        chosen = [
            _nearest(row, encoded, kept, source, count)
            for row, encoded in zip(similarity, photos.encoded, strict=True)
        ]
        found[name] = Neighbours([one[0] for one in chosen], [one[1] for one in chosen])
    return found, skipped


def _nearest(
    similarity: Tensor, encoded: bytes | None, kept: list[int], source: ImageSource, count: int
) -> tuple[list[int], list[float]]:
    indices: list[int] = []
    cosines: list[float] = []
    for place in similarity.argsort(descending=True).tolist():
        index, cosine = kept[place], float(similarity[place])
        itself = cosine > 0.999 and encoded is not None and source.read(index) == encoded
        if not itself:
            indices.append(index)
            cosines.append(cosine)
        if len(indices) == count:
            break
    if not indices:
        raise ValueError(
            f"pictures: no neighbours. Got {len(kept)} images in {source.description}, and none "
            f"but the image itself; expected a larger set."
        )
    return indices, cosines


class _Readable(Dataset[tuple[int, Any]]):
    """(number, the image at each size, or why it cannot be read)."""

    def __init__(self, source: ImageSource, sizes: Sequence[int]) -> None:
        self.source, self.transforms = source, {size: eval_transform(size) for size in sizes}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        try:
            image = decode(self.source.read(index))
        except CorruptImageError as error:
            return index, str(error)
        return index, {size: transform(image) for size, transform in self.transforms.items()}


def _embed(
    looks: Mapping[str, Look],
    sizes: Mapping[str, int],
    source: ImageSource,
    workers: int | None,
    progress: bool,
) -> tuple[dict[str, Tensor], list[int], dict[str, str]]:
    """Class tokens of every image that can be read, for each model; each is decoded once."""
    from tqdm import tqdm

    data = _Readable(source, list(set(sizes.values())))
    count = default_workers(workers, len(source))
    loader = DataLoader(data, batch_size=32, num_workers=count, collate_fn=list)
    vectors: dict[str, list[Tensor]] = {name: [] for name in looks}
    kept: list[int] = []
    skipped: dict[str, str] = {}
    for batch in tqdm(loader, desc="neighbours", unit="batch", disable=None if progress else True):
        good = [(index, item) for index, item in batch if not isinstance(item, str)]
        skipped |= {source.name(index): item for index, item in batch if isinstance(item, str)}
        kept += [index for index, _ in good]
        for name, look in looks.items() if good else ():
            images = torch.stack([item[sizes[name]] for _, item in good])
            vectors[name].append(look.extractor(images).cls.float().cpu())
    if not kept:
        raise ValueError(
            f"pictures: no image of the set can be read. Got {len(source)} in {source.description}."
        )
    joined = {name: torch.cat(parts) for name, parts in vectors.items()}
    for part in joined.values():
        check_finite(part, f"images of {source.description}", [source.name(i) for i in kept])
    return joined, kept, skipped


def save_found(
    photos: Photos, source: ImageSource, found: Mapping[str, Neighbours], path: str | Path
) -> None:
    """A picture of images and their neighbours, one row for each image and model.

    Args:
        photos: What was looked for.
        source: The set.
        found: From `find_neighbours`.
        path: PNG file.
    """
    width = max(len(row) for one in found.values() for row in one.indices)
    rows = [(number, name) for number in range(len(photos.images)) for name in found]
    figure = new_figure(1.5 * (width + 1) + 0.3, 1.65 * len(rows) + 0.2)
    axes = figure.subplots(len(rows), width + 1, squeeze=False)
    for line, (number, name) in zip(axes, rows, strict=True):
        first = name == rows[0][1]
        panel(line[0], photos.images[number], photos.names[number] if first else "", "black")
        line[0].set_ylabel(picture_text(name, 22), fontsize=9)
        for axis in line[1:]:
            axis.set_axis_off()
        near = found[name]
        for axis, index, cosine in zip(
            line[1:], near.indices[number], near.similarity[number], strict=False
        ):
            axis.set_axis_on()
            title = f"{picture_text(_kind(source, index), 15)}  {cosine:.2f}"
            panel(axis, decode(source.read(index)), title, "dimgrey")
    write_figure(figure, path)


def _kind(source: ImageSource, index: int) -> str:
    """Class of an image where the layout tells it, else its name."""
    inside = Path(source.name(index).rpartition(":")[2])  # of a shard: folder/name
    return source.label(index) or inside.parent.name or inside.stem
