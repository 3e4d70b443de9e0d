"""What dense heads see: the features of four layers of any model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...features import Features
from ...models.frozen import Extractor
from .sliding import pad_to_multiple


def choose_layers(num_layers: int) -> tuple[int, ...]:
    """Numbers of the four layers that decoders see, from 0 on.

    12 blocks: 3, 5, 7, 11. 24 blocks: 7, 11, 15, 23. Four or five layers: the last four (the stages
    of a CNN, with or without its stem). Others: the ends of four equal parts; with fewer than four
    layers some are taken twice.

    Examples:
        >>> choose_layers(12), choose_layers(24), choose_layers(5), choose_layers(2)
        ((3, 5, 7, 11), (7, 11, 15, 23), (1, 2, 3, 4), (0, 0, 1, 1))

    Source:
        Proteus `eval/dense_prediction/configs`.
        *Same:* 12 and 24 blocks. *Different:* other depths are not in the configs.
    """
    if num_layers == 12:
        return (3, 5, 7, 11)
    if num_layers == 24:
        return (7, 11, 15, 23)
    if num_layers in (4, 5):
        return tuple(range(num_layers - 4, num_layers))
    return tuple(max(round(part * num_layers / 4) - 1, 0) for part in (1, 2, 3, 4))


def read_dense(extractor: Extractor, images: Tensor) -> list[Features]:
    """The four layers' own outputs, float32, without the final norm.

    A model that does not tell its layers gives its output, four times.

    Args:
        extractor: The model.
        images: RGB [B, 3, H, W], uint8 or floats in [0, 1]; sizes that are no multiples of the
            patch are filled up with the border.
    """
    images = images.to(extractor.device)  # as bytes, where they are: a quarter to move
    images = images.float() / 255 if images.dtype == torch.uint8 else images
    # A model without patches is refused by the decoder, which sees that there are none.
    height, width = (max(side, 1) for side in extractor.patch_size)
    images = pad_to_multiple(images, (height, width))
    chosen = choose_layers(extractor.num_layers)
    numbers = sorted(set(chosen))
    several = extractor.num_layers > 1
    outputs = extractor.layers(images, numbers, norm=False) if several else [extractor(images)]
    wide = [Features(f.cls.float(), f.patches.float(), f.grid) for f in outputs]
    return [wide[numbers.index(number)] for number in chosen]


def first_seen(layers: Sequence[Features]) -> list[int]:
    """For each layer the number of the first that is the same tensor: its own, mostly.

    In models with fewer than four layers, or with one output, some are the same.
    """
    numbers: dict[int, int] = {}
    return [numbers.setdefault(id(layer.patches), n) for n, layer in enumerate(layers)]
