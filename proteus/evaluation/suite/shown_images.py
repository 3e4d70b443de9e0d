"""Images of a suite's page, small and inside it: what was mistaken, what is near to what."""

import io
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from ...models.frozen import Extractor
from ...report.page import Photo, Strip
from ..extract import extract_features
from ..feature_set import FeatureSet, probe_resize
from ..sets.labelled import LabelledImages
from .protocols import OpenSet

_SIDE = 112  # pixels of a photo
_SEARCHED = 2000  # training images at most, where a teacher is asked about them for the page alone
_ROWS, _NEIGHBOURS = 4, 5


def thumbnail(image: Image.Image, caption: str, *, same: bool | None = None) -> Photo:
    """The middle square of an image as a small JPEG; a green frame where `same`, red where not.

    Examples:
        >>> thumbnail(Image.new("RGB", (300, 200)), "a cat").data[:3] == bytes([255, 216, 255])
        True
    """
    file = io.BytesIO()
    side = min(_SIDE, *image.size)
    small = ImageOps.fit(image.convert("RGB"), (side, side))
    small.save(file, "JPEG", quality=82)
    return Photo(file.getvalue(), caption, "" if same is None else "good" if same else "bad")


def mistaken(opened: OpenSet, result: Mapping[str, Any]) -> list[Strip]:
    """Test images that k-NN put into a wrong class, from the hardest class on."""
    test = opened.split("test")
    photos = [
        thumbnail(test.image(one["image"]), f"{one['class']}, taken for {one['taken_for']}")
        for one in result.get("mistakes", {}).get("examples", [])
        if one["image"] < len(test)
    ]
    return [Strip([("", photos)])] if photos else []


def neighbours(opened: OpenSet, teacher: Extractor | None) -> list[Strip]:
    """Test images and the nearest training images, as the model sees it and its teacher."""
    train, test = opened.split("train"), opened.split("test")
    searched = _spread(len(train), _SEARCHED) if teacher else [*range(len(train))]
    asked = _spread(len(test), _ROWS)
    bank, queries = train.select(searched), test.select(asked)
    student = [
        opened.features(split, probe=True).select(torch.tensor(chosen))
        for split, chosen in (("train", searched), ("test", asked))
    ]
    sides = {"student" if teacher else "": student}
    if teacher:
        sides = {"teacher": [_features(opened, teacher, d) for d in (bank, queries)], **sides}
    near = {name: _nearest(*pair) for name, pair in sides.items()}
    return [
        Strip(
            [(name, [_neighbour(bank, queries, n, *one) for one in found[n]])
             for name, found in near.items()],
            thumbnail(queries.image(n), _class(queries, n)),
        )
        for n in range(len(queries))
    ]  # fmt: skip


def _features(opened: OpenSet, teacher: Extractor, data: LabelledImages) -> FeatureSet:
    tools, size = opened.tools, opened.settings.image_size
    return extract_features(
        teacher, data, image_size=size, resize=probe_resize(size), batch_size=tools.batch_size,
        workers=tools.workers, cache=tools.cache,
    )  # fmt: skip


def _nearest(bank: FeatureSet, queries: FeatureSet) -> list[list[tuple[int, float]]]:
    """Of each query, numbers in the bank and cosines, nearest first."""
    units = F.normalize(bank.cls.float(), dim=1)
    found = (F.normalize(queries.cls.float(), dim=1) @ units.T).topk(min(_NEIGHBOURS, len(bank)))
    return [
        [*zip(where, cosine, strict=True)]
        for where, cosine in zip(found.indices.tolist(), found.values.tolist(), strict=True)
    ]


def _neighbour(
    bank: LabelledImages, queries: LabelledImages, query: int, number: int, cosine: float
) -> Photo:
    wanted, found = (torch.as_tensor(d.target(n)) for d, n in ((queries, query), (bank, number)))
    caption = f"{_class(bank, number)} {cosine:.3f}"
    return thumbnail(bank.image(number), caption, same=torch.equal(wanted, found))


def _class(data: LabelledImages, number: int) -> str:
    """The class's name; of several, all."""
    target = data.target(number)
    if isinstance(target, torch.Tensor) and target.ndim:
        return ", ".join(_named(data, n) for n in target.nonzero().flatten().tolist())
    return _named(data, int(target))


def _named(data: LabelledImages, label: int) -> str:
    return data.classes[label] if label < len(data.classes) else str(label)


def _spread(length: int, count: int) -> list[int]:
    """At most so many numbers, evenly spread."""
    return [i * length // count for i in range(count)] if length > count else [*range(length)]
