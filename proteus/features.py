"""What every model returns and every loss, picture and evaluation takes: `Features`.

Shape letters used across the library: B images, b images with hidden patches, N patches,
H W pixels, h w patch grid (h * w = N), D width, Ds student width, Dt teacher width.
"""

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from .traits import Trait

# Mean and std of ImageNet, RGB in [0, 1]: the statistics of most models, and of the recipe.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class ShapeError(ValueError):
    """Two things that must have the same shape do not; the message says which and what to do."""


class Features(NamedTuple):
    """The output of a vision model, after its final norm.

    A `NamedTuple` and not a dataclass: FSDP2 finds the tensors that need its backward hook by
    flattening a module's output, and an unregistered dataclass is one opaque leaf, so the weights
    would silently never train.

    Attributes:
        cls: Class token, or the pooled vector of a model without one, [B, D].
        patches: Patch tokens, row-major, without registers, [B, N, D].
        grid: (h, w) with h * w == N.

    Examples:
        >>> import torch
        >>> features = Features(torch.zeros(2, 8), torch.zeros(2, 12, 8), (3, 4))
        >>> features.patches.unflatten(1, features.grid).shape
        torch.Size([2, 3, 4, 8])
    """

    cls: Tensor
    patches: Tensor
    grid: tuple[int, int]


@runtime_checkable
class FeatureExtractor(Trait, Protocol):
    """What evaluations and pictures need of a model, and all they may use.

    `Teacher` and `Student` satisfy it; so does any callable with an `embed_dim`.

    Attributes:
        embed_dim: Width D of the features it returns.
    """

    embed_dim: int

    def __call__(self, images: Tensor) -> Features:
        """RGB images [B, 3, H, W], uint8 or float in [0, 1], to `Features`."""
        ...
