"""Train a dense head: what segmentation and depth share."""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ...data.workers import load
from ...features import Features
from ...models.frozen import Extractor, as_extractor
from ..linear_heads import draw_batches
from .crops import RandomCrops, all_windows
from .decoders import build_decoder
from .layers_of import first_seen, read_dense
from .maps import DenseImages
from .prediction import DensePredictor
from .task import DenseTask, Loss, Settings

_CHECK_EVERY = 50  # iterations between looks at the loss, each of which waits for the device
_EXTRACT_BATCH = 32
_START_IMAGES = 64  # whose maps give the first bias, where features are not kept


class CachedSquares(NamedTuple):
    """Features and maps of all training squares, on the CPU.

    Attributes:
        layers: Features of each layer that is seen; one that is seen twice is kept once.
        order: Which of `layers` the head sees, four keys.
        targets: Maps [n, S, S].
    """

    layers: dict[int, Features]
    order: list[int]
    targets: Tensor

    def batch(self, index: Tensor, device: torch.device) -> tuple[list[Features], Tensor]:
        """The squares with these numbers."""
        found = {
            key: Features(f.cls[index].to(device), f.patches[index].to(device), f.grid)
            for key, f in self.layers.items()
        }
        return [found[key] for key in self.order], self.targets[index].to(device)


def train_dense(
    extractor: Extractor, data: DenseImages, settings: Settings, task: DenseTask
) -> DensePredictor:
    """Build a head and train it.

    With a frozen model and without augmentation, features are computed once and kept in memory if
    they fit into `cache_bytes`; otherwise every batch goes through the model.

    Args:
        extractor: The model.
        data: Training images and maps.
        settings: Of the training.
        task: What the maps mean.

    Raises:
        ValueError: If features, losses or weights are not finite.
    """
    if settings.finetune:
        extractor = _trainable(extractor, settings.image_size)
    device = extractor.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        sample, _ = next(all_windows(data, settings.image_size, settings.stride))
        with torch.no_grad():
            layers = read_dense(extractor, sample[None])
        decoder = build_decoder(settings.head, layers, task.num_outputs, channels=settings.channels)
        predictor = DensePredictor(
            extractor, decoder.to(device), settings.image_size, settings.stride, settings.flip
        )
        cached = None
        if settings.augmentation is None and not settings.finetune:
            cached = _cache(predictor, data, settings)
        if task.mean_first:
            bias = decoder.last().bias
            assert bias is not None  # every head's last convolution has one
            targets = _some_targets(data) if cached is None else cached.targets
            nn.init.constant_(bias, task.mean(targets, data))
        stream = (
            _stored_batches(predictor, cached, settings)
            if cached is not None
            else _fresh_batches(predictor, data, settings)
        )
        groups = (
            task.groups(extractor.model, decoder, settings)
            if settings.finetune
            else [{"params": list(decoder.parameters())}]
        )
        _fit(predictor, stream, task.loss, settings, groups)
    return predictor.eval()


def _trainable(extractor: Extractor, size: int) -> Extractor:
    """A float32 copy built for windows of this size: positions resampled later would not train."""
    if 0 not in extractor.patch_size:
        rows, columns = (size + -size % patch for patch in extractor.patch_size)
        extractor = as_extractor(extractor, image_size=(rows, columns))
    return extractor.trainable_copy().float()


def _some_targets(data: DenseImages) -> Tensor:
    """The values of whole maps, [n], of images spread evenly over the set."""
    count = min(len(data), _START_IMAGES)
    return torch.cat([data.read_map(i * len(data) // count).flatten() for i in range(count)])


def _cache(
    predictor: DensePredictor, data: DenseImages, settings: Settings
) -> CachedSquares | None:
    """Features of every test-like square; None if they would not fit."""
    from tqdm import tqdm

    squares = all_windows(data, settings.image_size, settings.stride)
    rows: list[dict[int, Features]] = []
    targets: list[Tensor] = []
    order: list[int] = []
    bar = tqdm(unit="square", desc="features", disable=None if settings.progress else True)
    with bar, torch.no_grad():
        while batch := list(islice(squares, _EXTRACT_BATCH)):
            layers = read_dense(predictor.extractor, torch.stack([image for image, _ in batch]))
            _check_finite(layers, data)
            order = first_seen(layers)
            kept = {key: layers[key] for key in order}
            rows.append(
                {k: Features(f.cls.cpu(), f.patches.cpu(), f.grid) for k, f in kept.items()}
            )
            targets += [target for _, target in batch]
            bar.update(len(batch))
            each = sum(f.cls[0].nbytes + f.patches[0].nbytes for f in kept.values())
            each += targets[0].nbytes
            # Every image has at least one window: often the first batch tells that it is too much.
            if each * max(len(data), len(targets)) > settings.cache_bytes:
                return None
    joined = {}
    for key in dict.fromkeys(order):
        parts = [row.pop(key) for row in rows]  # layer by layer, or all would be there twice
        joined[key] = Features(
            torch.cat([part.cls for part in parts]),
            torch.cat([part.patches for part in parts]),
            parts[0].grid,
        )
    return CachedSquares(joined, order, torch.stack(targets))


def _stored_batches(
    predictor: DensePredictor, cached: CachedSquares, settings: Settings
) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    device = predictor.extractor.device
    size = (settings.image_size, settings.image_size)
    for index in _drawn(len(cached.targets), settings):
        layers, targets = cached.batch(index, device)
        yield *predictor.decode(layers, size), targets


def _fresh_batches(
    predictor: DensePredictor, data: DenseImages, settings: Settings
) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    crops = RandomCrops(
        data, settings.image_size, settings.stride, settings.augmentation, settings.seed
    )
    keys = (
        [(int(image), number * settings.batch_size + i) for i, image in enumerate(batch)]
        for number, batch in enumerate(_drawn(len(data), settings))
    )
    device = predictor.extractor.device
    loader = DataLoader(crops, batch_sampler=keys, num_workers=settings.workers)
    for images, targets in load(loader):
        yield *predictor.outputs(images), targets.to(device)


def _drawn(count: int, settings: Settings) -> Iterator[Tensor]:
    return draw_batches(count, settings.batch_size, settings.iterations, settings.seed)


def _fit(
    predictor: DensePredictor,
    stream: Iterator[tuple[Tensor, Tensor | None, Tensor]],
    loss: Loss,
    settings: Settings,
    groups: list[dict[str, Any]],
) -> None:
    from tqdm import tqdm

    optimizer = torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_factor(step, settings.iterations, settings.warmup)
    )
    predictor.train()
    bar = tqdm(
        stream,
        total=settings.iterations,
        desc=settings.head,
        disable=None if settings.progress else True,
    )
    for step, (output, extra, targets) in enumerate(bar):
        value = loss(output, targets)
        if extra is not None:
            value = value + 0.4 * loss(extra, targets)
        if step % _CHECK_EVERY == 0:
            # SiLog leaves out pixels that are NaN, and is 0 where all are: look at the map, too.
            number = float(value.detach()) if bool(output.isfinite().all()) else math.nan
            if not math.isfinite(number):
                raise ValueError(
                    f"dense training: the loss is not finite. Got {number} in iteration {step}; "
                    f"check the model's features, or lower lr={settings.lr:g}."
                )
            bar.set_postfix(loss=f"{number:.3f}")
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    if not all(bool(p.isfinite().all()) for group in groups for p in group["params"]):
        raise ValueError(
            f"dense training: weights are not finite. Got NaN or infinity after "
            f"{settings.iterations} iterations; check the model's features, or lower "
            f"lr={settings.lr:g}."
        )


def lr_factor(step: int, iterations: int, warmup: int) -> float:
    """Linear warm-up from 1e-6, then linear down to 0.

    Examples:
        >>> [round(lr_factor(step, 100, 20), 2) for step in (0, 10, 20, 60, 100)]
        [0.0, 0.5, 1.0, 0.5, 0.0]

    Source:
        mmengine `LinearLR(1e-6)`, `PolyLR(power=1)` of the authors' configs.
        *Same:* both ramps. *Different:* each is one step longer; mmengine is at the peak in step
        `warmup - 1`, and at 0 in the last step, which then changes nothing.
    """
    if step < warmup:
        return 1e-6 + (1 - 1e-6) * step / warmup
    return max(0.0, (iterations - step) / (iterations - warmup))


def _check_finite(layers: Sequence[Features], data: DenseImages) -> None:
    if not all(bool(f.patches.isfinite().all() & f.cls.isfinite().all()) for f in layers):
        raise ValueError(
            f"dense training: features are not finite. Got NaN or infinity for images of "
            f"{data.description}. Check the model's weights, and whether its precision is enough."
        )
