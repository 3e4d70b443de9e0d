"""Weight files of model families -> export folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ..files import sha256_of
from ..student import Student
from ..weights import from_dinov2, from_openai_clip, from_proteus, from_synclr
from ..weights.timm_folder import WEIGHTS
from ..words import nearest
from .pretrained import PRETRAINED, Pretrained
from .save import save_pretrained

IMPORTERS: dict[str, Callable[..., nn.Module]] = {
    "proteus": from_proteus,
    "dinov2": from_dinov2,
    "synclr": from_synclr,
    "openai-clip": from_openai_clip,
}


def convert(
    file: str | Path, folder: str | Path, *, family: str = "proteus", **options: Any
) -> tuple[Path, Pretrained | None]:
    """A weight file of a model family as an export folder in timm's layout.

    Args:
        file: `.pth` or `.safetensors`.
        folder: To write.
        family: "proteus" (the authors' students), "dinov2", "synclr" or "openai-clip".
        **options: Of the importer in `proteus.weights`: `image_size`, `num_heads`; for "proteus"
            also `weights` ("student" or "ema").

    Returns:
        The folder, and which of the paper's students it is, if it is one.

    Raises:
        ValueError: If the family is unknown or the file does not fit it exactly.
    """
    if family not in IMPORTERS:
        raise ValueError(
            f"convert: unknown family. Got {family!r}; expected one of {', '.join(IMPORTERS)}. "
            f"{nearest(family, IMPORTERS)}"
        )
    file = Path(file)
    target = Path(folder) / WEIGHTS
    if target.exists() and file.exists() and target.samefile(file):
        raise ValueError(
            f"convert: the output would replace the input. Got {str(file)!r} in the folder that is "
            f"written; expected another folder."
        )
    model: Any = IMPORTERS[family](file, **options)
    entry = identify(model) if family == "proteus" else None
    details: dict[str, Any] = {"source": f"{file.name}, sha256 {sha256_of(file)}"}
    if entry is not None:
        details |= {
            "teacher": entry.teacher,
            "data": entry.data,
            "license": entry.license,
            "recipe": entry.recipe,
        }
        if options.get("weights", "student") == "student":
            details |= {"name": entry.name, "scores": dict(entry.scores)}
        else:
            details |= {"name": f"{entry.name} (EMA)", "weights": "ema"}
    student = Student(model, image_size=model.patch_embed.img_size)
    return save_pretrained(student, folder, details=details), entry


def identify(model: nn.Module) -> Pretrained | None:
    """Which of the paper's students a converted model is; None if it is of another size."""
    names = set(model.state_dict())
    family = "dinov2" if "blocks.0.ls1.gamma" in names else "synclr"
    if "norm_pre.weight" in names:
        family = "clip"
    described: Any = model
    for entry in PRETRAINED.values():
        size = (entry.family, entry.width, entry.depth)
        if size == (family, described.embed_dim, len(described.blocks)):
            return entry
    return None
