"""Batches on their way from the processes that make them to the device."""

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from .on_device import finish
from .samples import Batch, Beside
from .workers import ignore_interrupt, load


def made_batches(
    samples: Dataset[Batch],
    keys: Sampler[Any],
    *,
    workers: int,
    device: torch.device,
    at: Callable[[Collection[int]], str],
) -> Iterator[Batch]:
    """The batches of these keys, in their order.

    Args:
        samples: What makes a batch of its keys.
        keys: The keys of each batch.
        workers: Processes; 0 = this one.
        device: Where the batches will go.
        at: What dead processes were at, for the message.

    Raises:
        ChildProcessError: When a process that decodes died.
    """
    loader = DataLoader(
        samples,
        sampler=keys,
        batch_size=None,  # `samples` makes whole batches
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=device.type != "cpu" and torch.cuda.is_available(),
        worker_init_fn=ignore_interrupt,
    )
    return load(loader, at)


def to_device(batch: Batch, device: torch.device, beside: Beside | None = None) -> Any:
    """Images on the device, with what was left to do there done, then labels, then what is beside.

    Images alone come as they are, more as a tuple.
    """
    images = batch.images
    if device.type != "cpu":
        images = images.to(device, non_blocking=True)
        if batch.draws is not None:
            generator = torch.Generator(device).manual_seed(batch.seed)
            images = finish(images, batch.draws, generator)
    more = [] if batch.labels is None else [batch.labels.to(device, non_blocking=True)]
    if beside is not None:
        more += beside.ready([part.to(device, non_blocking=True) for part in batch.beside])
    return (images, *more) if more else images


def _as_it_is(batch: Any) -> Any:
    return batch
