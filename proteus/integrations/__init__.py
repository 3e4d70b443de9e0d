"""Distillation under another's training loop: a task of timm, a module and a callback of Lightning.

They load on first use (PEP 562): Lightning is an extra, and timm alone costs as much to import as
torch does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .lightning_module import ProteusModule as ProteusModule
    from .lightning_module import WatchCallback as WatchCallback
    from .timm_task import ProteusTask as ProteusTask

_HOME = {
    "ProteusModule": "lightning_module",
    "ProteusTask": "timm_task",
    "WatchCallback": "lightning_module",
}

__all__ = ["ProteusModule", "ProteusTask", "WatchCallback"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value
