"""Predict a map for every image of a set with a model and a dense head."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ...features import Features, ShapeError
from ...models.frozen import Extractor
from ...world import gather, rank_and_world, together
from .crops import fitted_size, to_pixels
from .decoders import Decoder
from .layers_of import read_dense
from .maps import DenseImages
from .sliding import slide

Score = TypeVar("Score")

_MOST_IMAGES = 16
_MOST_VALUES = 1 << 29  # of the maps of one batch, 2 GiB: what 150 classes take at 1900 x 1900


class DensePredictor(nn.Module):
    """A model with a trained head: an image of any size -> a map of its size.

    Args:
        extractor: The model.
        decoder: The head.
        image_size: Short side that images are resized to, and side of the sliding window.
        stride: Distance of windows.
        flip: Average with the mirrored image.
    """

    def __init__(
        self, extractor: Extractor, decoder: Decoder, image_size: int, stride: int, flip: bool
    ) -> None:
        super().__init__()
        self.extractor, self.decoder = extractor, decoder
        self.image_size, self.stride, self.flip = image_size, stride, flip

    def outputs(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Maps of a batch of images at the images' size, and the auxiliary ones in training."""
        height, width = images.shape[-2:]
        return self.decode(read_dense(self.extractor, images), (height, width))

    def decode(
        self, layers: Sequence[Features], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None]:
        """The same from the features of images of this size."""
        height, width = size
        padded = [
            side + -side % patch
            for side, patch in zip(size, self.extractor.patch_size, strict=True)
        ]

        def fit(output: Tensor) -> Tensor:
            whole = F.interpolate(output, size=padded, mode="bilinear", align_corners=False)
            return whole[..., :height, :width]

        extra = self.decoder.auxiliary(layers) if self.training else None
        return fit(self.decoder(layers)), None if extra is None else fit(extra)

    @torch.no_grad()
    def forward(self, images: Sequence[Image.Image]) -> Tensor:
        """Maps [B, C, H, W] of RGB images of one size [H, W], at that size.

        Raises:
            ShapeError: If the images differ in size, or there are none.
        """
        sizes = {(image.height, image.width) for image in images}
        if len(sizes) != 1:
            raise ShapeError(
                f"dense prediction: images of one size go together. Got {len(images)} images with "
                f"(height, width) {sorted(sizes)}; call once for each size."
            )
        (size,) = sizes
        fitted = fitted_size(*size, self.image_size)
        pixels = torch.stack([to_pixels(image, fitted) for image in images])
        output = slide(
            lambda part: self.outputs(part)[0],
            pixels.to(self.extractor.device),
            window=self.image_size,
            stride=self.stride,
            flip=self.flip,
        )
        return F.interpolate(output, size=size, mode="bilinear", align_corners=False)


def score_set(
    predictor: DensePredictor,
    data: DenseImages,
    score: Callable[[Tensor, Tensor], Score],
    *,
    progress: bool = False,
) -> list[Score]:
    """The score of every image, in their order.

    Images of one size that follow one another go through the model together. In a distributed run
    every process takes its share, and all get all scores; where one cannot read, predict or score
    an image, all raise.

    Args:
        predictor: The model with its head.
        data: The set.
        score: A map [C, H, W] and its target [H, W], on the predictor's device -> what is kept.
        progress: Show a bar.

    Raises:
        ValueError: If an image cannot be read or scored, or its map is not finite.
    """
    mine = dict(
        together(
            (number, score(output, target))
            for number, output, target in _predictions(predictor, data, progress=progress)
        )
    )
    return [found for _, found in sorted(gather(mine).items())]


def _predictions(
    predictor: DensePredictor, data: DenseImages, *, progress: bool
) -> Iterator[tuple[int, Tensor, Tensor]]:
    from tqdm import tqdm

    rank, world = rank_and_world()
    numbers = range(rank, len(data), world)
    bar = tqdm(
        numbers, unit="image", desc=data.description[-40:], disable=None if progress else True
    )
    waiting: list[tuple[int, Image.Image, Tensor]] = []
    for number in bar:
        image, target = data[number]
        full = len(waiting) == _batch_size(predictor, image)
        if waiting and (full or waiting[0][1].size != image.size):
            yield from _predict_batch(predictor, data, waiting)
            waiting = []
        waiting.append((number, image, target))
    if waiting:
        yield from _predict_batch(predictor, data, waiting)


def _batch_size(predictor: DensePredictor, image: Image.Image) -> int:
    """Of images of this size: 16, or fewer where the maps would fill the memory."""
    fitted = fitted_size(image.height, image.width, predictor.image_size)
    pixels = max(image.height * image.width, fitted[0] * fitted[1])
    values = predictor.decoder.last().out_channels * pixels
    return max(min(_MOST_IMAGES, _MOST_VALUES // values), 1)


def _predict_batch(
    predictor: DensePredictor,
    data: DenseImages,
    waiting: Sequence[tuple[int, Image.Image, Tensor]],
) -> Iterator[tuple[int, Tensor, Tensor]]:
    outputs = predictor([image for _, image, _ in waiting])
    for (number, _, target), output in zip(waiting, outputs, strict=True):
        if not bool(output.isfinite().all()):  # the largest of NaN would be a class
            raise ValueError(
                f"dense prediction: a map is not finite. Got NaN or infinity for "
                f"{data.source.name(number)!r} of {data.description}. Check the model's weights, "
                f"and whether its precision is enough."
            )
        yield number, output, target.to(output.device)
