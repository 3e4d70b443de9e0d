"""Distil a vision foundation model into a smaller one on unlabelled images.

The public names, nothing else. They load on first use (PEP 562), because timm alone costs as much
to import as torch does and a script that only needs the loss should not pay for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

if TYPE_CHECKING:
    from .distiller import Distiller as Distiller
    from .features import Features as Features
    from .heads import ProjectionHead as ProjectionHead
    from .hub.remote import list_pretrained as list_pretrained
    from .hub.remote import load_pretrained as load_pretrained
    from .hub.remote import push_to_hub as push_to_hub
    from .hub.save import save_pretrained as save_pretrained
    from .losses import Losses as Losses
    from .losses import ProteusLoss as ProteusLoss
    from .masking import MaskGenerator as MaskGenerator
    from .student import Student as Student
    from .teacher import Teacher as Teacher

_HOME = {
    "Distiller": "distiller",
    "Features": "features",
    "Losses": "losses",
    "MaskGenerator": "masking",
    "ProjectionHead": "heads",
    "ProteusLoss": "losses",
    "Student": "student",
    "Teacher": "teacher",
    "list_pretrained": "hub.remote",
    "load_pretrained": "hub.remote",
    "push_to_hub": "hub.remote",
    "save_pretrained": "hub.save",
}
_SUBMODULES = (
    "data", "evaluate", "evaluation", "exports", "losses", "recipes", "training", "visualize",
    "weights",
)  # fmt: skip

__all__ = [
    "Distiller",
    "Features",
    "Losses",
    "MaskGenerator",
    "ProjectionHead",
    "ProteusLoss",
    "Student",
    "Teacher",
    "list_pretrained",
    "load_pretrained",
    "push_to_hub",
    "save_pretrained",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    elif name in _SUBMODULES:
        value = import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, *_SUBMODULES])
