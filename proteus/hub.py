"""What leaves the library: timm's Hub layout, which loads without us; and the way back in."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .catalog import position_rule
from .positions import Resizable, fit_positions
from .version import __version__
from .weights.folder import load_folder

if TYPE_CHECKING:
    from .distiller import Distiller
    from .student import Student

# Names reserved for the paper's students; see `load_pretrained`.
PRETRAINED = (
    "proteus-vit-ti14",
    "proteus-vit-s14",
    "proteus-vit-b14",
    "proteus-vit-l14",
    "proteus-vit-b14-synclr",
    "proteus-vit-b14-clip",
)


def list_pretrained() -> list[str]:
    """Names of the paper's students that `load_pretrained` knows.

    Examples:
        >>> list_pretrained()[0]
        'proteus-vit-ti14'
    """
    return list(PRETRAINED)


def save_pretrained(
    student: "Student | Distiller", folder: str | Path, *, details: Mapping[str, Any] | None = None
) -> Path:
    """Write the student's backbone in timm's Hub layout.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` then gives the same outputs in an
    environment without proteus. Files are written beside their place and moved into it, so an
    interrupted save leaves the files that were there before.

    Args:
        student: A `Student`, or the `Distiller` that holds it.
        folder: Where `config.json`, `model.safetensors` and `README.md` (model card) go.
        details: JSON-able facts for the card and `config.json`, such as the teacher's name.

    Returns:
        The folder.

    Raises:
        ValueError: If the backbone is not a timm model, or could not be rebuilt from what was
            written (checked before anything is moved into place).

    Examples:
        >>> import tempfile, timm, proteus
        >>> student = proteus.Student("vit_tiny_patch14", image_size=56)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_pretrained(student, folder)
        ...     model = timm.create_model(f"local-dir:{folder}", pretrained=True)
        >>> model(torch.zeros(1, 3, 56, 56)).shape
        torch.Size([1, 192])
    """
    from .distiller import Distiller

    if isinstance(student, Distiller):
        student = student.student
    if not student.architecture:
        raise ValueError(
            f"save_pretrained: not a timm model. Got {student.name!r}; expected a student built "
            f"from a timm name. Save its weights with safetensors.torch.save_model instead."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-") as name:
        staging = Path(name)
        _write(student, staging, dict(details or {}))
        _verify(student, staging)
        for file in sorted(staging.iterdir()):
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
            file.replace(folder / file.name)
    return folder


def _write(student: "Student", folder: Path, details: dict[str, Any]) -> None:
    from timm.models import save_for_hf

    backbone = student.backbone
    save_for_hf(
        backbone,
        str(folder),
        model_config={"num_classes": 0, "num_features": student.embed_dim},
        model_args=dict(student.arguments or {}),
        safe_serialization=True,
    )
    path = folder / "config.json"
    config = json.loads(path.read_text())
    # transformers' reader passes num_classes itself and stops at a second one.
    config.get("model_args", {}).pop("num_classes", None)
    mean, std = student.statistics
    config["pretrained_cfg"].update(
        input_size=[3, *student.image_size], mean=list(mean), std=list(std), num_classes=0
    )
    # What timm recorded about the architecture's own weights is not true of these.
    for stale in ("tag", "hf_hub_id", "url", "file", "license", "origin_url", "paper_ids"):
        config["pretrained_cfg"].pop(stale, None)
    config["proteus"] = {"version": __version__, **details}
    path.write_text(json.dumps(config, indent=2) + "\n")
    (folder / "README.md").write_text(_card(student, details))


def _card(student: "Student", details: Mapping[str, Any]) -> str:
    facts = "\n".join(f"- {key}: {value}" for key, value in details.items())
    count = sum(p.numel() for p in student.backbone.parameters())
    height, width = student.image_size
    return f"""---
library_name: timm
pipeline_tag: image-feature-extraction
tags: [proteus, distillation]
---

# {student.name}, distilled with proteus-distill {__version__}

{count / 1e6:.2f} M parameters, {height}x{width} pixels, {student.embed_dim}-dimensional features.

{facts}

```python
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True)  # or "hf-hub:OWNER/REPO"
```

Trained without labels by matching a teacher's features (Proteus, ICLR 2025). The licences of the
teacher and of the images apply to these weights as well.
"""


@torch.no_grad()
def _verify(student: "Student", folder: Path) -> None:
    """Rebuild from the files and compare the weights."""
    try:
        rebuilt = load_folder(folder, "save_pretrained")
        own, copy = student.backbone.state_dict(), rebuilt.state_dict()
        same = own.keys() == copy.keys() and all(
            torch.equal(own[key].cpu(), copy[key].to(own[key].dtype)) for key in own
        )
    except (RuntimeError, TypeError, ValueError) as error:
        raise _not_rebuilt(student, " ".join(str(error).split())[:200]) from error
    if not same:
        raise _not_rebuilt(student, "the weights differ")


def _not_rebuilt(student: "Student", reason: str) -> ValueError:
    return ValueError(
        f"save_pretrained: timm cannot rebuild the model from its description. Got architecture "
        f"{student.architecture!r} with arguments {student.arguments}, and: {reason}. Set "
        f"student.arguments to the arguments of timm.create_model that make this model."
    )


def load_pretrained(
    name_or_path: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> nn.Module:
    """A distilled student as a plain timm model, in eval, `num_classes=0`.

    Args:
        name_or_path: An export folder, `owner/repo` on the Hugging Face Hub, or a released name.
        image_size: Pixels; None = the size it was trained at. Positions are resampled once.
        revision: Branch, tag or commit on the Hub.
        cache_dir: Where downloads are kept; None = the Hub's default.
        local_files_only: Use the cache and make no request.

    Raises:
        ValueError: If there is no such model.

    Examples:
        >>> import proteus, tempfile
        >>> student = proteus.Student("vit_tiny_patch14", image_size=56)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model = load_pretrained(proteus.save_pretrained(student, folder), image_size=70)
        >>> model(torch.zeros(1, 3, 70, 70)).shape
        torch.Size([1, 192])
    """
    name = str(name_or_path)
    if name in PRETRAINED:
        raise ValueError(
            f"load_pretrained: {name!r} is not published yet. Expected an export folder or "
            f"'owner/repo'; distil it yourself with `proteus distill`."
        )
    folder = Path(name)
    if not folder.is_dir():
        if name.count("/") != 1 or name.startswith((".", "/")):
            raise ValueError(
                f"load_pretrained: unknown model. Got {name!r}; expected a folder, 'owner/repo' or "
                f"one of {', '.join(PRETRAINED)}."
            )
        from huggingface_hub import snapshot_download

        folder = Path(
            snapshot_download(
                name,
                revision=revision,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=["config.json", "*.safetensors"],
            )
        )
    model = load_folder(folder, "load_pretrained")
    if image_size is not None:
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        if not isinstance(model, Resizable):
            raise ValueError(
                f"load_pretrained: image_size= would be ignored. Got a "
                f"{type(model).__name__}, which takes any size; leave it out."
            )
        rule = position_rule(json.loads((folder / "config.json").read_text())["architecture"])
        fit_positions(model, size, rule, "load_pretrained")
    return model.eval()


def push_to_hub(
    student: "Student | Distiller",
    repo_id: str,
    *,
    private: bool = False,
    details: Mapping[str, Any] | None = None,
) -> str:
    """Save the student and upload it to the Hugging Face Hub in one commit.

    Args:
        student: A `Student`, or the `Distiller` that holds it.
        repo_id: `owner/repo`; created if it does not exist.
        private: Whether a new repository is private.
        details: See `save_pretrained`.

    Returns:
        Address of the commit.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="proteus-distill", library_version=__version__)
    folder = Path(tempfile.mkdtemp(prefix="proteus-push-"))
    try:
        save_pretrained(student, folder, details=details)
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder)
        return str(commit.commit_url)
    finally:
        shutil.rmtree(folder)
