"""Weight files of the model families -> plain timm models, strictly.

Every importer infers the architecture from the tensors, never changes its argument, and fails when
a key is missing or left over. `.pth` files are read with `weights_only=True`; nothing in a file is
executed.
"""

from .files import load_strictly, read_state_dict
from .named import load_checkpoint
from .official import from_proteus
from .openai_clip import from_openai_clip
from .vit import from_dinov2, from_synclr

__all__ = [
    "from_dinov2",
    "from_openai_clip",
    "from_proteus",
    "from_synclr",
    "load_checkpoint",
    "load_strictly",
    "read_state_dict",
]
