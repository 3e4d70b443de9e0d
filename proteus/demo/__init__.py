"""`proteus demo`: a trained teacher and real images inside the package, distilled in minutes."""

from .show import run_demo as run_demo

__all__ = ["run_demo"]
