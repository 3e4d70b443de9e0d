"""Unlabelled images for distillation: where they are, and the stream of batches.

Labelled images for evaluation are not here: `proteus.evaluation` takes any features and labels.
"""

from .loader import ImageLoader as ImageLoader
from .loader import center_resize as center_resize
from .loader import decode as decode
from .sources import CorruptImageError as CorruptImageError
from .sources import ImageSource as ImageSource
from .sources import open_source as open_source

__all__ = [
    "CorruptImageError",
    "ImageLoader",
    "ImageSource",
    "center_resize",
    "decode",
    "open_source",
]
