"""What the loop trains: one small protocol, whatever the objective is."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..losses import ProteusLoss
from ..masking import Hidden
from ..student import Student
from ..teacher import Teacher
from ..traits import Trait


@runtime_checkable
class Objective(Trait, Protocol):
    """A module whose forward is one step: `Distiller`, `LogitDistiller`, or a user's own.

    `forward(*inputs, [hidden,] generator=, part=)` gives a named tuple of scalars with `total`.
    `proteus.distiller.TeacherAndStudent` is a base with an answer to each question below.

    Attributes:
        teacher: The frozen model, outside the module tree; of several the one to be watched.
        teachers: All of them by name.
        student: The model that learns.
        num_inputs: How many items of a batch its forward takes: images, then labels.
        grid: (h, w) of what `draw` hides.
    """

    num_inputs: int
    grid: tuple[int, int]
    student: Student
    teacher: Teacher
    teachers: Mapping[str, Teacher]

    @property
    def heads(self) -> ProteusLoss | None:
        """The loss whose heads let the two be compared and shown side by side, if any."""

    def draw(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> Hidden | None:
        """The patches that a step hides, see `MaskGenerator.draw`; None = forward takes none."""

    def describe(self) -> dict[str, Any]:
        """JSON-able: what is trained for. A run goes on with the same only."""

    def parameters(self) -> Any:
        """Of the module."""

    def __call__(self, *inputs: Tensor | Hidden, **options: Any) -> Any:
        """The losses of one step."""


def check_objective(model: object) -> None:
    """Refuse what is no objective, naming what it lacks."""
    if isinstance(model, Objective):
        return
    asked = (
        "teacher", "teachers", "student", "num_inputs", "grid", "heads", "draw", "describe",
        "parameters",
    )  # fmt: skip
    lacks = [name for name in asked if name not in dir(model)]
    raise ValueError(
        f"fit: not an objective. Got a {type(model).__name__} without {', '.join(lacks)}; expected "
        f"a Distiller, or a module with these. proteus.distiller.TeacherAndStudent is a base that "
        f"has them all."
    )
