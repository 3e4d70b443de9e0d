"""Features of a whole labelled set: extracted once, kept, the same from any number of processes."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Dataset

from ..features import ShapeError
from .cache import FeatureCache
from .datasets import LabelledImages, Target, check_labels, open_labelled
from .extractor import Extractor, as_extractor
from .processes import gather, raise_everywhere, rank_and_world

_PART_BATCHES = 4  # a part is what is stored, and dealt to a process, at once
_MOST_PARTS = 256
_WORTH_WORKERS = 2000  # images


@dataclass(frozen=True)
class FeatureSet:
    """Features and labels of n images, on the CPU.

    Attributes:
        cls: Class tokens (or pooled vectors), float32 [n, D].
        patches: Mean of the patch tokens, float32 [n, D]; zeros for a model without patches.
        labels: long [n], or 0/1 [n, classes] where an image has several.
        blocks: Normed class tokens of the last L blocks in block order, float32 [n, L, D], or None.
        classes: Names of the classes, () where unknown.
        names: Of the images.
        description: Of the set, for messages.

    Examples:
        >>> FeatureSet(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0, 4])).num_classes
        5
    """

    cls: Tensor
    patches: Tensor
    labels: Tensor
    blocks: Tensor | None = None
    classes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    description: str = "features"

    def __len__(self) -> int:
        return self.cls.shape[0]

    @property
    def num_classes(self) -> int:
        """The largest label + 1, or the width of several labels."""
        if self.labels.ndim == 2:
            return self.labels.shape[1]
        return int(self.labels.max()) + 1 if len(self) else 0

    def select(self, indices: Tensor) -> "FeatureSet":
        """A part of it, in the given order."""
        blocks = None if self.blocks is None else self.blocks[indices]
        names = tuple(self.names[i] for i in indices.tolist()) if self.names else ()
        return replace(
            self,
            cls=self.cls[indices],
            patches=self.patches[indices],
            labels=self.labels[indices],
            blocks=blocks,
            names=names,
        )


class Resized(Dataset[tuple[Tensor, Target]]):
    """Labelled images at one size: short side to `resize`, bicubic, then the centre.

    Args:
        data: The images.
        image_size: Side of the square that is cut out, pixels.
        resize: Short side before that; None = `image_size`.

    Source:
        Proteus, evaluation transforms (official-code 2.8): torchvision's `Resize` and `CenterCrop`
        on PIL images. *Same:* pixels.
    """

    def __init__(self, data: LabelledImages, image_size: int, resize: int | None = None) -> None:
        self.data, self.transform = data, eval_transform(image_size, resize)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        image, target = self.data[index]
        return self.transform(image), target


def eval_transform(image_size: int, resize: int | None = None) -> Any:
    """PIL image -> uint8 [3, S, S]: short side to `resize`, bicubic, then the centre.

    Examples:
        >>> from PIL import Image
        >>> eval_transform(32, 36)(Image.new("RGB", (50, 40))).shape
        torch.Size([3, 32, 32])
    """
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.Resize(resize or image_size, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(image_size),
            transforms.PILToTensor(),
        ]
    )


def probe_resize(image_size: int) -> int:
    """The short side before the crop for k-NN and the linear probe: 256 for 224."""
    return round(image_size * 256 / 224)


def extract_features(
    model: Any,
    dataset: Any,
    *,
    split: str | None = None,
    image_size: int | None = None,
    resize: int | None = None,
    blocks: int = 0,
    batch_size: int = 64,
    workers: int | None = None,
    device: str | torch.device | None = None,
    cache: str | Path | FeatureCache | None = None,
    progress: bool = False,
) -> FeatureSet:
    """Features of all images of a labelled set.

    In a distributed run every process extracts its share and all get the whole, in order: batches
    are the same whatever the number of processes. With a cache, features are stored in parts as
    they come; a run that was cut off goes on where it was, and a second run reads them.

    Args:
        model: Anything `as_extractor` takes.
        dataset: Anything `open_labelled` takes.
        split: For `open_labelled`.
        image_size: Side of the square images, pixels; None = the model's own.
        resize: Short side before the centre is cut out; None = as k-NN and the linear probe have
            it, 256 for 224. Give `image_size` for the fine-grained protocol.
        blocks: Keep the class tokens of this many last blocks, too (the linear probe takes 4).
        batch_size: Images in a forward pass.
        workers: Processes that decode images; None = all cores but one for large sets, else none.
        device: Where to run; None = where the model is.
        cache: Folder for features, or None.
        progress: Show a bar.

    Returns:
        A `FeatureSet` on the CPU.

    Raises:
        ValueError: If the set is empty, labels are missing or features are not finite.

    Examples:
        >>> from PIL import Image
        >>> images = [(Image.new("RGB", (9, 8)), 0), (Image.new("RGB", (8, 8), "red"), 1)]
        >>> found = extract_features(torch.nn.Conv2d(3, 5, 4, stride=4), images, image_size=8)
        >>> found.cls.shape, found.labels.tolist()
        (torch.Size([2, 5]), [0, 1])
    """
    extractor = as_extractor(model, image_size=image_size, device=device)
    data = open_labelled(dataset, split=split)
    if len(data) == 0:
        raise ValueError(f"evaluation: no images. Got an empty set, {data.description}.")
    size = image_size or _square(extractor)
    resize = resize or probe_resize(size)
    store = cache if isinstance(cache, FeatureCache) or cache is None else FeatureCache(cache)
    key = ""
    if store is not None:
        settings = {"image_size": size, "resize": resize, "blocks": blocks, "batch": batch_size}
        key = store.key(extractor.fingerprint(), data, settings)
    tensors = store.load(key) if store else None
    if tensors is None:
        job = _Job(
            extractor,
            Resized(data, size, resize),
            blocks=blocks,
            batch_size=batch_size,
            store=store,
            key=key,
        )
        tensors = job.run(default_workers(workers, len(data)), progress)
    found = FeatureSet(
        tensors["cls"],
        tensors["patches"],
        tensors["labels"],
        tensors.get("blocks"),
        data.classes,
        tuple(data.name(i) for i in range(len(data))),
        data.description,
    )
    check_labels(found.labels, data.description)
    check_finite(found)
    return found


def check_finite(features: FeatureSet) -> None:
    """Raise `ValueError` for NaN or infinite features, naming an image."""
    bad = ~(features.cls.isfinite().all(1) & features.patches.isfinite().all(1))
    if bad.any():
        first = int(bad.nonzero()[0])
        name = features.names[first] if features.names else f"number {first}"
        raise ValueError(
            f"evaluation: features are not finite. Got NaN or infinity for {int(bad.sum())} of "
            f"{len(features)} images of {features.description}, such as {name!r}. Check the "
            f"model's weights, and whether its precision is enough."
        )


class _Job:
    """The extraction of one set, in parts of a few batches."""

    def __init__(
        self,
        extractor: Extractor,
        images: Resized,
        *,
        blocks: int,
        batch_size: int,
        store: FeatureCache | None,
        key: str,
    ) -> None:
        self.extractor, self.images, self.blocks = extractor, images, blocks
        self.store, self.key = store, key
        batches = [
            list(range(start, min(start + batch_size, len(images))))
            for start in range(0, len(images), batch_size)
        ]
        # The same parts for any number of processes, so that one run may finish another's.
        length = max(_PART_BATCHES, -(-len(batches) // _MOST_PARTS))
        if len(batches) < 2 * length:
            length = 1
        self.parts = [batches[i : i + length] for i in range(0, len(batches), length)]

    def run(self, workers: int, progress: bool) -> dict[str, Tensor]:
        """Extract this process's parts, then exchange them."""
        rank, world = rank_and_world()
        mine: dict[int, dict[str, Tensor]] = {}
        failure: Exception | None = None
        try:
            self._fill(mine, workers, progress)
        except (ValueError, OSError) as error:
            failure = error
        raise_everywhere(failure)
        parts = gather(mine)
        whole = {
            name: torch.cat([parts[number][name] for number in range(len(self.parts))])
            for name in parts[0]
        }
        if self.store and rank == 0:
            self.store.save(self.key, whole)
        if self.store and world > 1:
            distributed.barrier()
        return whole

    def _fill(self, mine: dict[int, dict[str, Tensor]], workers: int, progress: bool) -> None:
        """Read this process's parts from the store, or extract them."""
        rank, world = rank_and_world()
        missing = []
        for number in range(rank, len(self.parts), world):
            stored = self.store.load(self.key, number) if self.store else None
            if stored is None:
                missing.append(number)
            else:
                mine[number] = stored
        for number, tensors in self._extract(missing, workers, progress and rank == 0):
            mine[number] = tensors
            if self.store and len(self.parts) > 1:
                self.store.save(self.key, tensors, number)

    def _extract(
        self, numbers: Sequence[int], workers: int, progress: bool
    ) -> Iterator[tuple[int, dict[str, Tensor]]]:
        from tqdm import tqdm

        batches = [batch for number in numbers for batch in self.parts[number]]
        if not batches:
            return
        loader = DataLoader(
            self.images, batch_sampler=batches, num_workers=workers, collate_fn=_collate
        )
        bar = tqdm(total=sum(map(len, batches)), unit="image", disable=None if progress else True)
        bar.set_description(self.images.data.description[-40:])
        stream = iter(loader)
        for number in numbers:
            rows = []
            for _ in self.parts[number]:
                images, labels = next(stream)
                rows.append({**self._read(images), "labels": labels})
                bar.update(len(images))
            yield number, {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        bar.close()

    def _read(self, images: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            if self.blocks:
                layers = self.extractor.layers(images, self.blocks)
                last = layers[-1]
            else:
                layers, last = [], self.extractor(images)
        mean = last.patches.float().mean(1) if last.patches.shape[1] else last.cls.new_zeros(1)
        found = {"cls": last.cls, "patches": mean.expand(last.cls.shape)}
        if layers:
            widths = {layer.cls.shape[-1] for layer in layers}
            if len(widths) > 1:
                raise ShapeError(
                    f"evaluation: the last {self.blocks} layers differ in width. Got "
                    f"{sorted(widths)}; expected a transformer. Use blocks=1 for this model."
                )
            found["blocks"] = torch.stack([layer.cls for layer in layers], 1)
        return {name: tensor.float().cpu() for name, tensor in found.items()}


def _collate(rows: list[tuple[Tensor, Target]]) -> tuple[Tensor, Tensor]:
    images = torch.stack([image for image, _ in rows])
    return images, torch.stack([torch.as_tensor(target) for _, target in rows]).long()


def default_workers(workers: int | None, count: int) -> int:
    """The number asked for, or all cores but one for a large set and none for a small one."""
    if workers is not None:
        return workers
    return min(8, (os.cpu_count() or 1) - 1) if count >= _WORTH_WORKERS else 0


def _square(extractor: Extractor) -> int:
    height, width = extractor.image_size
    if height != width:
        raise ValueError(
            f"evaluation: a square image size is needed. Got a model for {height}x{width} images; "
            f"pass image_size=."
        )
    return height
