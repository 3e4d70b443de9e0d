"""Unlabelled images for distillation: where they are, and the stream of batches.

Labelled images for evaluation are not here: `proteus.evaluation` takes any features and labels.
"""

from .decoding import CorruptImageError, decode
from .loader import ImageLoader
from .order import Repeated, Shuffled
from .places import ImageSource
from .proxy import Manifest, merge, single_image, sub_class, sub_data
from .samples import center_resize
from .shard_loader import ShardLoader
from .shard_source import ShardSource
from .sources import open_source
from .stream import StreamLoader, make_loader
from .transforms import official

__all__ = [
    "CorruptImageError",
    "ImageLoader",
    "ImageSource",
    "Manifest",
    "Repeated",
    "ShardLoader",
    "ShardSource",
    "Shuffled",
    "StreamLoader",
    "center_resize",
    "decode",
    "make_loader",
    "merge",
    "official",
    "open_source",
    "single_image",
    "sub_class",
    "sub_data",
]
