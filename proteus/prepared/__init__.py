"""A teacher's features of the training images, made once and kept on disk.

`prepare` writes them, `PreparedTargets` reads them, `fit(targets=)` trains without the teacher.
"""

from .codec import Dtype, Tokens, bytes_of_an_image
from .prepare import prepare
from .store import PreparedTargets, open_targets

__all__ = ["Dtype", "PreparedTargets", "Tokens", "bytes_of_an_image", "open_targets", "prepare"]
