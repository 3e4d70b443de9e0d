"""What leaves the library: timm's Hub layout, which loads without us."""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from ..files import replace_files
from ..models.probes import equal, noise
from ..models.read import evaluating
from ..student import Student
from ..teacher import Teacher
from ..traits import Trait
from ..weights.state_dicts import apart, refuse_not_finite
from ..weights.timm_folder import load_folder
from .card import model_card, teacher_facts, versions

_STAGING = ".tmp-save-"


@runtime_checkable
class HasStudent(Trait, Protocol):
    """A `Distiller`, or another objective that trains a student."""

    teacher: Teacher
    student: Student


def save_pretrained(
    student: Student | HasStudent, folder: str | Path, *, details: Mapping[str, Any] | None = None
) -> Path:
    """Write the student's backbone in timm's Hub layout.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` then gives the same outputs in an
    environment without proteus. Files are written beside their place and moved into it, so an
    interrupted save leaves the files that were there before.

    Args:
        student: A `Student`, or the `Distiller` that holds it.
        folder: Where `config.json`, `model.safetensors` and `README.md` (model card) go.
        details: JSON-able facts for the card and `config.json`. These have a place of their own in
            the card: `teacher`, `data`, `license`, `scores` (protocol -> number) and `recipe`. A
            `Distiller` fills in its teacher and the licence of the teacher's weights.

    Returns:
        The folder.

    Raises:
        ValueError: If the backbone is not a timm model, holds NaN, or could not be rebuilt from
            what was written (checked before anything is moved into place).

    Examples:
        >>> import tempfile, timm, proteus
        >>> student = proteus.Student("vit_tiny_patch14", image_size=56)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_pretrained(student, folder)
        ...     model = timm.create_model(f"local-dir:{folder}", pretrained=True)
        >>> model(torch.zeros(1, 3, 56, 56)).shape
        torch.Size([1, 192])
    """
    details = dict(details or {})
    if isinstance(student, HasStudent):
        teacher, student = student.teacher, student.student
        details = teacher_facts(teacher) | details
    if not isinstance(student, Student):
        raise ValueError(
            f"save_pretrained: not a student. Got a {type(student).__name__}; expected a Student "
            f"or a Distiller. Wrap a timm model: Student(model, image_size=…)."
        )
    if not student.architecture:
        raise ValueError(
            f"save_pretrained: not a timm model. Got {student.name!r}; expected a student built "
            f"from a timm name. A model of transformers leaves in its own format: "
            f"student.backbone.save_pretrained(FOLDER); of another module save the weights with "
            f"safetensors.torch.save_model."
        )
    refuse_not_finite(student.backbone.state_dict(), "save_pretrained", student.backbone)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(f"{_STAGING}*"):
        if not _is_running(stale.name.removeprefix(_STAGING).partition("-")[0]):
            shutil.rmtree(stale, ignore_errors=True)  # of a save that was killed
    with tempfile.TemporaryDirectory(dir=folder, prefix=f"{_STAGING}{os.getpid()}-") as name:
        staging = Path(name)
        _write(student, staging, details, folder.name)
        _verify(student, staging)
        replace_files(staging, folder)
    return folder


def _is_running(pid: str) -> bool:
    if sys.platform == "win32":
        return True  # there, asking so would send Ctrl-C
    try:
        os.kill(int(pid), 0)
    except (OSError, ValueError):
        return False
    return True


def _write(student: Student, folder: Path, details: dict[str, Any], name: str) -> None:
    from timm.models import save_for_hf

    backbone = student.backbone
    # timm hands the state to safetensors as it is.
    hook = backbone.register_state_dict_post_hook(  # type: ignore[no-untyped-call]
        lambda module, state, prefix, metadata: state.update(apart(state))
    )
    try:
        save_for_hf(
            backbone,
            str(folder),
            model_config={"num_classes": 0, "num_features": student.embed_dim},
            model_args=dict(student.arguments or {}),
            safe_serialization=True,
        )
    finally:
        hook.remove()
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # transformers' reader passes num_classes itself and stops at a second one.
    config.get("model_args", {}).pop("num_classes", None)
    mean, std = student.statistics
    config["pretrained_cfg"].update(
        input_size=[3, *student.image_size], mean=list(mean), std=list(std), num_classes=0
    )
    # What timm recorded about the architecture's own weights is not true of these.
    for stale in ("tag", "hf_hub_id", "url", "file", "license", "origin_url", "paper_ids"):
        config["pretrained_cfg"].pop(stale, None)
    config["proteus"] = {"versions": versions(), **details}
    if student.layers is not None:
        config["proteus"]["layers"] = list(student.layers)
    try:
        text = json.dumps(config, indent=2, default=str, allow_nan=False)
    except ValueError as error:
        raise ValueError(
            f"save_pretrained: the details are no JSON. Got {details} and {error}; expected finite "
            f"numbers."
        ) from error
    path.write_text(text + "\n", encoding="utf-8")
    title = details.pop("name", None) or (student.name if name == "export" else name)
    (folder / "README.md").write_text(model_card(student, title, details), encoding="utf-8")


@torch.no_grad()
def _verify(student: Student, folder: Path) -> None:
    """Rebuild from the files; compare the weights, and what it returns with what was distilled."""
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
    image = noise(student.inputs, student.image_size)
    rebuilt.to(image.device, image.dtype).eval()
    with evaluating(student):
        outputs = student.features(image).cls, rebuilt(image)
    if not equal(*outputs):
        raise _not_rebuilt(student, "it returns another vector")


def _not_rebuilt(student: Student, reason: str) -> ValueError:
    return ValueError(
        f"save_pretrained: timm cannot rebuild the model from its description. Got architecture "
        f"{student.architecture!r} with arguments {student.arguments}, and: {reason}. Set "
        f"student.arguments to the arguments of timm.create_model that make this model."
    )
