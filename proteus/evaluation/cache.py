"""Features on disk: found again by what went into them, never by a name."""

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, uint8

from ..files import write_whole
from .sets.labelled import LabelledImages

_logger = logging.getLogger(__name__)
_VERSION = 1  # raise it when the same inputs would give other features


class FeatureCache:
    """A folder of feature files. The key is a hash of model, images, labels and preprocessing.

    Each file holds a checksum: what is damaged is told, and never used. Deleting the folder, or
    any file of it, is always safe; where it cannot be written, a warning says so.

    Args:
        folder: Created when first written to. Shared by all processes of a distributed run, and by
            as many evaluations as one likes.

    Raises:
        ValueError: If it is a file.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._full = False
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(
                f"cache: not a folder. Got {str(folder)!r}, which is a file; expected a folder "
                f"for features, which is made if it is missing."
            )

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
        note = self.folder / "data" / _sha256(data.stamp)[:32]
        try:
            known, _, check = note.read_text("ascii").strip().partition(" ")
            if check and check == _sha256(f"{data.stamp} {known}"):
                return known
        except (OSError, ValueError):
            pass  # there is none, or it is damaged
        found = data.content_hash()
        self._write(note, f"{found} {_sha256(f'{data.stamp} {found}')}\n")
        return found

    def load(
        self, key: str, part: int | None = None, *, rows: int | None = None
    ) -> dict[str, Tensor] | None:
        """What is stored under a key, or None; what is damaged is told, and counts as absent.

        Args:
            key: Of `key`.
            part: Number of a part; None = the whole.
            rows: How many there must be, for files from before they held a checksum.
        """
        path = self._path(key, part)
        try:
            if path.is_file():
                return _read_checked(path, f"{key}/{part}")
            older = self.folder / f"{key}.safetensors"
            if part is not None or not older.is_file():
                return None
            path, found = older, load_file(older)
            if {len(tensor) for tensor in found.values()} != {rows} or "labels" not in found:
                raise ValueError("rows are missing")
            return found
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            _logger.warning("cache: %s is damaged, and made again. Got: %s.", path, error)
            return None

    def save(self, key: str, tensors: dict[str, Tensor], part: int | None = None) -> None:
        """Store whole features (which makes the parts superfluous), or one part of them."""
        ready = {name: tensor.contiguous() for name, tensor in tensors.items()}
        facts = {"key": f"{key}/{part}", "sha256": _digest(ready)}
        self._write(self._path(key, part), lambda path: save_file(ready, path, facts))
        if part is None:
            for name in (f"{key}.parts", f"{key}.v2.parts"):
                shutil.rmtree(self.folder / name, ignore_errors=True)

    def _path(self, key: str, part: int | None) -> Path:
        if part is None:
            return self.folder / f"{key}.v2.safetensors"
        return self.folder / f"{key}.v2.parts" / f"{part:06}.safetensors"

    def _write(self, path: Path, content: Any) -> None:
        """Whole or not at all: another process may read, and this one may be killed."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, content)
        except (OSError, SafetensorError) as error:  # of a full disk, both
            if not self._full:
                _logger.warning(
                    "cache: %s could not be written. Got: %s. Features are not kept, and made "
                    "again the next time.", path, error,
                )  # fmt: skip
            self._full = True


def _read_checked(path: Path, key: str) -> dict[str, Tensor]:
    """The tensors of a file, if they are those that were saved under this key."""
    with safe_open(path, "pt") as file:
        facts = file.metadata() or {}
    if facts.get("key") != key:
        raise ValueError("it was stored under another key, or holds none")
    tensors = load_file(path)
    if facts.get("sha256") != _digest(tensors):
        raise ValueError("its checksum is not that of its content")
    return tensors


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(uint8).numpy().data)
    return digest.hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
