"""How images come to a model: the settings that protocols share, documented once."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import torch

from ..models.frozen import Extractor, as_extractor
from ..words import nearest
from .cache import FeatureCache
from .feature_set import square_size


class Loading(TypedDict, total=False):
    """What every protocol on class tokens takes, by keyword; all may be left out.

    Attributes:
        image_size: Side of the square images, pixels; None = the model's own. The short side is
            resized before the centre is cut out: to 256/224 of it for k-NN and the linear probe,
            to the side itself for logistic regression.
        workers: Processes that decode images; None = all cores but one for large sets, else none.
        device: Where to run; None = where the model is.
        cache: Folder for features, or None.
        progress: Show bars.
    """

    image_size: int | None
    workers: int | None
    device: str | torch.device | None
    cache: str | Path | FeatureCache | None
    progress: bool


class BatchLoading(Loading, total=False):
    """`Loading`, where the size of a batch has no other meaning.

    Attributes:
        batch_size: Images in a forward pass; 64.
    """

    batch_size: int


def open_model(
    protocol: Callable[..., Any], model: Any, loading: Loading
) -> tuple[Extractor, int, Loading]:
    """A model ready to be measured, the side of its images, and what is left to load them with.

    Raises:
        TypeError: If `loading` has a keyword that the protocol does not take.
        ValueError: If it is no model, or the size does not fit.
    """
    unknown = sorted(set(loading) - BatchLoading.__optional_keys__)
    if unknown:
        known = {*inspect.signature(protocol).parameters, *BatchLoading.__optional_keys__}
        names = sorted(known - {"loading"})
        raise TypeError(
            f"{protocol.__name__}: unknown setting. Got {unknown[0]}=; expected some of "
            f"{', '.join(names)}. {nearest(unknown[0], names)}".rstrip()
        )
    size = loading.get("image_size")
    extractor = as_extractor(model, image_size=size, device=loading.get("device"))
    left = loading.copy()
    left.pop("device", None)  # it is there, and another time would be another copy
    return extractor, square_size(extractor, size), left
