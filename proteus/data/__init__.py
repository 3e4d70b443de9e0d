"""Unlabelled images for distillation: where they are, and the stream of batches.

Labelled images for evaluation are not here: `proteus.evaluation` takes any features and labels.
"""

from .decoding import CorruptImageError as CorruptImageError
from .decoding import decode as decode
from .loader import ImageLoader as ImageLoader
from .order import Repeated as Repeated
from .order import Shuffled as Shuffled
from .proxy import Manifest as Manifest
from .proxy import merge as merge
from .proxy import single_image as single_image
from .proxy import sub_class as sub_class
from .proxy import sub_data as sub_data
from .samples import center_resize as center_resize
from .sources import ImageSource as ImageSource
from .sources import open_source as open_source
from .stream import StreamLoader as StreamLoader
from .stream import make_loader as make_loader
from .transforms import official as official

__all__ = [
    "CorruptImageError",
    "ImageLoader",
    "ImageSource",
    "Manifest",
    "Repeated",
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
