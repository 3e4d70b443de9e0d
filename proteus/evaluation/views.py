"""The batches a linear probe trains on: features of random crops, or of stored features."""

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data.samples import random_resized_crop
from ..data.workers import load
from ..models.frozen import Extractor
from ..world import gather, rank_and_world
from .feature_set import FeatureSet, default_workers, read_vectors
from .sets.labelled import LabelledImages


class View(NamedTuple):
    """Features of one batch: blocks [B, L, D], mean patches [B, D], labels [B]."""

    blocks: Tensor
    patches: Tensor
    labels: Tensor


class _Crops(Dataset[tuple[Tensor, Tensor]]):
    """(step, place, image) -> a random crop, the same whoever makes it."""

    def __init__(self, data: LabelledImages, size: int, seed: int) -> None:
        self.data, self.size, self.seed = data, size, seed

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        step, place, index = key
        rng = random.Random(repr((self.seed, step, place)))
        image, target = self.data[index]
        crop = np.array(random_resized_crop(image, self.size, rng))
        if rng.random() < 0.5:
            crop = crop[:, ::-1].copy()
        return torch.from_numpy(crop).permute(2, 0, 1), torch.as_tensor(target)


def _keys(batches: Iterable[Sequence[int]]) -> Iterator[list[tuple[int, int, int]]]:
    """Batches of keys, this process's share of each."""
    rank, world = rank_and_world()
    for step, batch in enumerate(batches):
        yield [(step, place, index) for place, index in enumerate(batch)][rank::world]


def augmented_views(
    extractor: Extractor,
    data: LabelledImages,
    batches: Iterable[Sequence[int]],
    *,
    size: int,
    blocks: int,
    seed: int,
    workers: int | None = None,
) -> Iterator[View]:
    """Features of a random resized crop, flipped or not, of each image of each batch.

    In a distributed run each process computes its share of a batch and all get the whole, so the
    views are the same from any number of processes.

    Args:
        extractor: The model.
        data: The images.
        batches: Numbers of images, batch by batch.
        size: Pixels of the crop.
        blocks: How many last blocks to keep.
        seed: Of the crops.
        workers: Processes that decode images; None = chosen by the size of the set.

    Source:
        DINOv2 `dinov2/data/transforms.py` (`make_classification_train_transform`).
        *Same:* area 0.08 … 1, ratio 3/4 … 4/3, bicubic, flip 0.5.
    """
    loader = DataLoader(
        _Crops(data, size, seed),
        batch_sampler=_keys(batches),
        num_workers=default_workers(workers, len(data)),
    )
    rank, world = rank_and_world()
    for images, labels in load(loader):
        found = read_vectors(extractor, images, blocks)
        mine = View(found["blocks"], found["patches"], labels.long().to(found["cls"].device))
        yield mine if world == 1 else _interleave(gather({rank: [t.cpu() for t in mine]}), mine)


def _interleave(shares: dict[int, list[Tensor]], mine: View) -> View:
    """The shares of all processes in the order of the batch."""
    counts = [len(shares[rank][0]) for rank in range(len(shares))]
    places = [torch.arange(rank, sum(counts), len(shares)) for rank in range(len(shares))]
    order = torch.cat(places).argsort()
    columns = zip(*(shares[rank] for rank in range(len(shares))), strict=True)
    return View(*(torch.cat(parts)[order].to(mine.blocks.device) for parts in columns))


def stored_views(
    features: FeatureSet, batches: Iterable[Tensor], device: str | torch.device
) -> Iterator[View]:
    """Batches, given as numbers of images, of features that were computed once."""
    blocks = features.cls[:, None] if features.blocks is None else features.blocks
    blocks, patches = blocks.to(device).float(), features.patches.to(device).float()
    labels = features.labels.to(device)
    for batch in batches:
        chosen = batch.to(device)
        yield View(blocks[chosen], patches[chosen], labels[chosen])
