"""Measure a model that returns `Features`. Labelled images are yours: tensors and labels."""

from .agreement import agreement as agreement
from .knn import extract_cls as extract_cls
from .knn import knn as knn

__all__ = ["agreement", "extract_cls", "knn"]
