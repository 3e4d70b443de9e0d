"""An objective of your own in the library's loop: smooth L1 on patches that the student cannot see.

python examples/10_own_objective.py

The loop asks it four things: the step (`forward`), which patches it hides (`draw`, from `masks`),
what it is (`describe`, kept in checkpoints) and where the two models can be compared (`heads`, for
pictures and for the watch). `TeacherAndStudent` answers what is left out.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import proteus
from proteus.distiller import TeacherAndStudent


class Losses(NamedTuple):
    total: Tensor
    patches: Tensor


class SmoothL1(TeacherAndStudent):
    def __init__(self, teacher: proteus.Teacher, student: proteus.Student, beta: float) -> None:
        super().__init__(teacher, student)
        self.beta = beta
        self.loss = proteus.ProteusLoss(student.embed_dim, teacher.embed_dim, patch=0)
        self.loss.token_head.requires_grad_(False)  # this objective has no token term
        self.masks = proteus.MaskGenerator(student.grid, probability=1)
        student.learn_from(cls=False, patches=True, hidden=True)

    @property
    def heads(self) -> proteus.ProteusLoss:
        return self.loss

    def describe(self) -> dict[str, Any]:
        return {"loss": {"smooth_l1": self.beta}, "masks": {"ratio": self.masks.ratio}}

    def forward(
        self,
        images: Tensor,
        hidden: Any = None,
        *,
        generator: torch.Generator | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> Losses:
        hidden = hidden or self.draw(len(images), generator, images.device, part)
        student = self.loss.project(self.student(images, hidden.hidden))
        target = self.teacher(images).patches[hidden.hidden]
        found = F.smooth_l1_loss(student.patches[hidden.hidden], target, beta=self.beta)
        return Losses(found, found.detach())


teacher = proteus.Teacher("vit_tiny_patch16_224", pretrained=False, image_size=64)
student = proteus.Student("vit_tiny_patch16_224", image_size=64)
objective = SmoothL1(teacher, student, beta=0.5)
batches = [torch.rand(8, 3, 64, 64) for _ in range(4)]
rows = proteus.training.fit(objective, batches, steps=8, out="run", device="cpu", progress=False)
print("loss", round(rows[0]["patches"], 3), "->", round(rows[-1]["patches"], 3))
print(sorted(path.name for path in Path("run").iterdir() if path.suffix == ".png"))
