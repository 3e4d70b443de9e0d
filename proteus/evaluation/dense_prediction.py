"""Predict a map for every image of a set with a model and a dense head."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..features import Features
from .decoders import Decoder, read_dense
from .dense_crops import fitted_size, to_pixels
from .dense_data import DenseImages
from .extractor import Extractor
from .processes import rank_and_world, together
from .sliding import pad_to_multiple, slide

_BATCH = 16


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
        """Maps of a batch of squares at the squares' size, and the auxiliary ones in training.

        Sizes that are no multiples of the patch are filled up with the border's pixels.
        """
        padded = pad_to_multiple(to_unit(images), self.extractor.patch_size)
        return self._decode(
            read_dense(self.extractor, padded), images.shape[-2:], padded.shape[-2:]
        )

    def decode(self, layers: Sequence[Features], size: int) -> tuple[Tensor, Tensor | None]:
        """The same from features of squares of this size."""
        padded = [size + -size % patch for patch in self.extractor.patch_size]
        return self._decode(layers, (size, size), padded)

    def _decode(
        self, layers: Sequence[Features], size: Sequence[int], padded: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]:
        def fit(output: Tensor) -> Tensor:
            whole = F.interpolate(output, size=tuple(padded), mode="bilinear", align_corners=False)
            return whole[..., : size[0], : size[1]]

        extra = self.decoder.auxiliary(layers) if self.training else None
        return fit(self.decoder(layers)), None if extra is None else fit(extra)

    @torch.no_grad()
    def forward(self, images: Sequence[Image.Image]) -> Tensor:
        """Maps [B, C, H, W] of RGB images of one size [H, W], at that size."""
        height, width = images[0].height, images[0].width
        fitted = fitted_size(height, width, self.image_size)
        pixels = torch.stack([to_pixels(image, fitted) for image in images])
        pixels = to_unit(pixels.to(self.extractor.device))
        output = slide(
            lambda part: self.outputs(part)[0],
            pixels,
            window=self.image_size,
            stride=self.stride,
            flip=self.flip,
        )
        return F.interpolate(output, size=(height, width), mode="bilinear", align_corners=False)


def predict_set(
    predictor: DensePredictor, data: DenseImages, *, progress: bool = False
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(number, map [C, H, W], target [H, W]) of every image, or of this process's share of them.

    Images of one size that follow one another go through the model together. Where one process
    cannot read an image, all raise.
    """
    return together(_predictions(predictor, data, progress=progress))


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
        if waiting and (len(waiting) == _BATCH or waiting[0][1].size != image.size):
            yield from _predict_batch(predictor, waiting)
            waiting = []
        waiting.append((number, image, target))
    if waiting:
        yield from _predict_batch(predictor, waiting)


def _predict_batch(
    predictor: DensePredictor, waiting: Sequence[tuple[int, Image.Image, Tensor]]
) -> Iterator[tuple[int, Tensor, Tensor]]:
    outputs = predictor([image for _, image, _ in waiting])
    for (number, _, target), output in zip(waiting, outputs, strict=True):
        yield number, output, target.to(output.device)


def to_unit(images: Tensor) -> Tensor:
    """uint8 to [0, 1]; floats as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images
