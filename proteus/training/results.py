"""What a finished run leaves: the export, and pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import visualize
from ..features import Features
from ..hub.card import teacher_facts
from ..hub.save import save_pretrained
from ..models.read import evaluating
from ..report import curves
from .engine import Engine
from .log import RunLog, summary_of


def write_results(
    engine: Engine, log: RunLog, folder: Path, images: Tensor, settings: Mapping[str, Any]
) -> None:
    """Export and pictures of a finished run; all processes must call it together."""
    state = engine.state()  # whole weights, gathered from all processes
    model, pictures = engine.plain, None
    if model.heads is not None and model.heads.feature_head is not None:
        pictures = compare(model, images[:8])
    if not engine.world.first:
        return
    rows = log.rows()
    details = {
        "data": settings.get("data"),
        **teacher_facts(*model.teachers.values()),
        # A run of a recipe is described by it; another one by the loop's own settings.
        "recipe": settings.get("recipe")
        or {key: value for key, value in settings.items() if key not in ("data", "teacher")},
        "losses": summary_of(rows[-1]) if rows else None,
    }
    if model.student.architecture:
        student = engine.export_student(state, "weights")
        save_pretrained(student, folder / "export", details=details)
        if engine.ema is not None:
            average = engine.export_student(state, "ema")
            save_pretrained(average, folder / "export-ema", details=details)
    if rows:  # a run resumed at its end may have lost its log
        curves.save_curves(rows, folder / "curves.png")
    shown = images[:8].cpu()
    # Drawn aside: training's numbers stay.
    masks = model.draw(len(shown), torch.Generator().manual_seed(0))
    if masks is not None:
        visualize.save_masks(shown, masks.hidden, model.grid, folder / "masks.png")
    if pictures is not None:
        visualize.save_pca(images[:8], pictures, folder / "pca.png")


@torch.no_grad()
def compare(distiller: Any, images: Tensor) -> dict[str, Features]:
    """Teacher features and the student's, projected to the teacher's width, of the same images.

    Args:
        distiller: An objective with heads, such as a `Distiller` with a feature term.
        images: RGB [B, 3, H, W], uint8 or float in [0, 1].
    """
    images = images.to(next(distiller.parameters()).device)
    with evaluating(distiller):
        student, teacher = distiller.student, distiller.teacher
        projected = distiller.heads.project(student(student.fit(images)))
        target = distiller.heads.target(teacher(teacher.fit(images)))
        return {"teacher": target, "student": projected}
