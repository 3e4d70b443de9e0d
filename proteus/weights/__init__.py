"""Weight files of the model families -> plain timm models, strictly.

Every importer infers the architecture from the tensors, never changes its argument, and fails when
a key is missing or left over. `.pth` files are read with `weights_only=True`; nothing in a file is
executed.
"""

from .by_family import load_checkpoint
from .openai_clip import from_openai_clip
from .proteus_authors import from_proteus
from .state_dicts import load_strictly, read_state_dict
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
