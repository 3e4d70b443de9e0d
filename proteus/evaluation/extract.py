"""Features of a whole labelled set: extracted once, kept, the same from any number of processes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader
from typing_extensions import Unpack

from ..data.workers import load
from ..models.frozen import Extractor
from ..world import gather, rank_and_world, together
from .cache import FeatureCache
from .feature_set import (
    FeatureSet,
    Resized,
    check_not_empty,
    check_set,
    default_workers,
    probe_resize,
    read_vectors,
)
from .loading import BatchLoading, open_model
from .sets.labelled import open_labelled

_PART_BATCHES = 4  # a part is what is stored, and dealt to a process, at once
_MOST_PARTS = 256


def extract_features(
    model: Any,
    dataset: Any,
    *,
    split: str | None = None,
    resize: int | None = None,
    blocks: int = 0,
    **loading: Unpack[BatchLoading],
) -> FeatureSet:
    """Features of all images of a labelled set.

    In a distributed run every process extracts its share and all get the whole, in order: batches
    are the same whatever the number of processes. With a cache, features are stored in parts as
    they come; a run that was cut off goes on where it was, and a second run reads them.

    Args:
        model: Anything `as_extractor` takes.
        dataset: Anything `open_labelled` takes.
        split: For `open_labelled`.
        resize: Short side before the centre is cut out; None = as k-NN and the linear probe have
            it, 256 for 224. Give `image_size` for the fine-grained protocol.
        blocks: Keep the class tokens of this many last blocks, too (the linear probe takes 4).
        **loading: See `BatchLoading`.

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
    extractor, size, _ = open_model(extract_features, model, loading)
    data = open_labelled(dataset, split=split)
    check_not_empty(data)
    resize = resize or probe_resize(size)
    cache, batch_size = loading.get("cache"), loading.get("batch_size", 64)
    store = cache if isinstance(cache, FeatureCache) or cache is None else FeatureCache(cache)
    key = ""
    if store is not None:
        settings = {"image_size": size, "resize": resize, "blocks": blocks, "batch": batch_size}
        key = store.key(extractor.fingerprint(), data, settings)
    tensors = store.load(key, rows=len(data)) if store else None
    if tensors is None:
        images, parts = Resized(data, size, resize), _parts(len(data), batch_size)
        job = _Job(extractor, images, parts, blocks, store, key)
        tensors = job.run(
            default_workers(loading.get("workers"), len(data)), loading.get("progress", False)
        )
    found = FeatureSet(
        tensors["cls"],
        tensors["patches"],
        tensors["labels"],
        tensors.get("blocks"),
        data.classes,
        tuple(data.name(i) for i in range(len(data))),
        data.description,
    )
    check_set(found)
    return found


@dataclass(frozen=True)
class _Job:
    """The extraction of one set, in parts (each: batches of image numbers)."""

    extractor: Extractor
    images: Resized
    parts: list[list[list[int]]]
    blocks: int
    store: FeatureCache | None
    key: str

    def run(self, workers: int, progress: bool) -> dict[str, Tensor]:
        """Extract this process's parts, then exchange them."""
        rank, world = rank_and_world()
        parts = gather(dict(together(self._own_parts(workers, progress))))
        whole = {
            name: torch.cat([parts[number][name] for number in range(len(self.parts))])
            for name in parts[0]
        }
        if self.store and rank == 0:
            self.store.save(self.key, whole)
        if self.store and world > 1:
            distributed.barrier()
        return whole

    def _own_parts(self, workers: int, progress: bool) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """This process's parts, with their numbers, from the store or extracted."""
        rank, world = rank_and_world()
        missing = []
        for number in range(rank, len(self.parts), world):
            stored = self.store.load(self.key, number) if self.store else None
            if stored is None:
                missing.append(number)
            else:
                yield number, stored
        for number, tensors in self._extract(missing, workers, progress and rank == 0):
            if self.store and len(self.parts) > 1:
                self.store.save(self.key, tensors, number)
            yield number, tensors

    def _extract(
        self, numbers: Sequence[int], workers: int, progress: bool
    ) -> Iterator[tuple[int, dict[str, Tensor]]]:
        from tqdm import tqdm

        batches = [batch for number in numbers for batch in self.parts[number]]
        if not batches:
            return
        loader = DataLoader(self.images, batch_sampler=batches, num_workers=workers)
        bar = tqdm(total=sum(map(len, batches)), unit="image", disable=None if progress else True)
        bar.set_description(self.images.data.description[-40:])
        stream = load(loader)
        for number in numbers:
            rows = []
            for _ in self.parts[number]:
                images, labels = next(stream)
                vectors = read_vectors(self.extractor, images, self.blocks)
                rows.append(
                    {name: v.cpu() for name, v in vectors.items()} | {"labels": labels.long()}
                )
                bar.update(len(images))
            yield number, {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        bar.close()


def _parts(count: int, batch_size: int) -> list[list[list[int]]]:
    """The same for any number of processes, so that one run may finish another's."""
    batches = [
        list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)
    ]
    length = max(_PART_BATCHES, -(-len(batches) // _MOST_PARTS))
    if len(batches) < 2 * length:
        length = 1
    return [batches[i : i + length] for i in range(0, len(batches), length)]
