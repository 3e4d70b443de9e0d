"""Features on disk: found again by what went into them, never by a name."""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .sets.labelled import LabelledImages

_VERSION = 1  # raise it when the same inputs would give other features


class FeatureCache:
    """A folder of feature files. The key is a hash of model, images, labels and preprocessing.

    Deleting the folder, or any file of it, is always safe.

    Args:
        folder: Created when first written to. Shared by all processes of a distributed run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def key(self, model: str | None, data: LabelledImages, settings: dict[str, Any]) -> str:
        """The key of a model's features of these images under these settings.

        Raises:
            ValueError: If the model is a callable that cannot be hashed.
        """
        if model is None:
            raise ValueError(
                "evaluation: the features of a plain callable cannot be cached, because a change "
                "of it would go unnoticed. Pass an nn.Module, or cache=None."
            )
        parts = {"version": _VERSION, "model": model, "data": self.data_hash(data), **settings}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def data_hash(self, data: LabelledImages) -> str:
        """The hash of images and labels; computed once for unchanged files."""
        if data.stamp is None:
            return data.content_hash()
        note = self.folder / "data" / hashlib.sha256(data.stamp.encode()).hexdigest()[:32]
        if note.is_file() and (known := note.read_text().strip()):
            return known
        found = data.content_hash()
        self._write(note, lambda path: path.write_text(found))
        return found

    def load(self, key: str, part: int | None = None) -> dict[str, Tensor] | None:
        """What is stored under a key, or None. A damaged file counts as absent."""
        path = self._path(key, part)
        try:
            return load_file(path) if path.is_file() else None
        except (SafetensorError, OSError):
            return None

    def save(self, key: str, tensors: dict[str, Tensor], part: int | None = None) -> None:
        """Store whole features (which makes the parts superfluous), or one part of them."""
        ready = {name: tensor.contiguous() for name, tensor in tensors.items()}
        self._write(self._path(key, part), lambda path: save_file(ready, path))
        if part is None:
            shutil.rmtree(self.folder / f"{key}.parts", ignore_errors=True)

    def _path(self, key: str, part: int | None) -> Path:
        if part is None:
            return self.folder / f"{key}.safetensors"
        return self.folder / f"{key}.parts" / f"{part:06}.safetensors"

    def _write(self, path: Path, write: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: another process may read, and this one may be killed.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
        os.close(handle)
        try:
            write(Path(name))
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)
