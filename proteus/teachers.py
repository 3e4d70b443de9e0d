"""MultiTeacherDistiller: several teachers into one student."""

from collections import namedtuple
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from .distiller import TeacherAndStudent, check_loss, describe_loss, supported_weights
from .features import ShapeError
from .losses import Losses, ProteusLoss
from .masking import Hidden, MaskGenerator
from .ranges import check_numbers
from .student import Student
from .teacher import Teacher


class MultiTeacherDistiller(TeacherAndStudent):
    """Several teachers, one student, as one module whose forward is the whole step.

    Each teacher has its own normalisation, image size and heads; the student runs once. Patches of
    all of them are compared on one grid, the coarsest: build teachers with `grid=student.grid`
    where their patch sizes differ. What a teacher does not support (`teacher.objectives`: CLIP's
    patches) has no term.

    Features of two families differ in scale, up to a hundred times, so that one would drown the
    others: build the losses with `targets="standardized"` or `"phi_s"`, or set weights.

    Args:
        teachers: By name, at least two. The first is the one that a watch and pictures look at.
        student: A `Student`.
        losses: A `ProteusLoss` for each teacher, by name; None = weights 1 for the terms it
            supports, on standardised targets.
        weights: Of each teacher's total in the sum, >= 0; None = 1 each.
        masks: A `MaskGenerator` on `grid`; None = the authors' setting. Only with a patch term.
        drop: Probability, in [0, 1), with which a teacher is left out of a step's sum; the one with
            the largest loss never is. What it reports stays.

    Attributes:
        loss: The losses by name, an `nn.ModuleDict`.

    Raises:
        ShapeError: If the forms of the images differ, or a loss or the masks do not fit.
        ValueError: If names do not match, or a number is out of range.

    Examples:
        >>> one = Teacher("vit_tiny_patch16_224", pretrained=False, image_size=32)
        >>> other = Teacher("test_resnet", pretrained=False, image_size=64)
        >>> student = Student("vit_tiny_patch16_224", image_size=32)
        >>> distiller = MultiTeacherDistiller({"vit": one, "cnn": other}, student)
        >>> losses = distiller(torch.rand(4, 3, 64, 64))
        >>> losses._fields
        ('total', 'vit_token', 'vit_feature', 'vit_patch', 'cnn_token', 'cnn_feature', 'cnn_patch')
        >>> losses.total.backward()

    Source:
        AM-RADIO (Ranzinger et al., CVPR 2024), Theia (Shang et al., 2024): heads for each teacher,
        weighted sum; UNIC (Sariyildiz et al., ECCV 2024), section 3.3: teacher dropping.
        *Same:* the teacher with the largest loss is always kept, others with probability
        1 - `drop`. *Different:* a step drops a teacher for all images at once, UNIC for each image;
        the paper distils one teacher.
    """

    def __init__(
        self,
        teachers: Mapping[str, Teacher],
        student: Student,
        losses: Mapping[str, ProteusLoss] | None = None,
        *,
        weights: Mapping[str, float] | None = None,
        masks: MaskGenerator | None = None,
        drop: float = 0.0,
    ) -> None:
        if len(teachers) < 2:
            raise ValueError(
                f"MultiTeacherDistiller: one teacher is a Distiller's. Got {[*teachers]}; expected "
                f"at least two by name."
            )
        check_numbers("MultiTeacherDistiller", {"drop": drop})
        super().__init__(teachers, student)
        if losses is None:
            losses = {n: _standardized(teacher, student) for n, teacher in teachers.items()}
        weights = dict.fromkeys(teachers, 1.0) if weights is None else weights
        for what, given in (("losses", losses), ("weights", weights)):
            _check_names(what, given, teachers)
        check_numbers("MultiTeacherDistiller", {f"{n}.weight": w for n, w in weights.items()})
        for name, loss in losses.items():
            check_loss(f"MultiTeacherDistiller, {name}", teachers[name], student, loss)
        self.loss = nn.ModuleDict({name: losses[name] for name in teachers})
        self.weights, self.drop = {name: float(weights[name]) for name in teachers}, drop
        every = [*losses.values()]
        patch = any(loss.patch for loss in every)
        if masks is not None and (not patch or masks.grid != self.grid):
            raise ShapeError(
                f"MultiTeacherDistiller: the masks do not fit. Got a grid of {masks.grid} and a "
                f"patch term {'on' if patch else 'off'}; expected MaskGenerator({self.grid}) with "
                f"a patch term, and none without."
            )
        student.learn_from(
            cls=any(loss.token or loss.feature for loss in every),
            patches=any(loss.feature or loss.patch for loss in every),
            hidden=patch,
        )
        self.masks = (masks or MaskGenerator(self.grid)) if patch else None
        terms = [
            f"{name}_{term}"
            for name in teachers
            for term in Losses._fields[1:]
            if vars(losses[name])[term]
        ]
        # A named tuple: FSDP2 flattens a module's output to find its tensors, see `Features`.
        self._losses: Callable[..., Any] = namedtuple("Losses", ["total", *terms])  # type: ignore[misc]
        self._terms = tuple(terms)

    def forward(
        self,
        images: Tensor,
        hidden: Tensor | Hidden | None = None,
        *,
        generator: torch.Generator | None = None,
        part: tuple[int, int] = (0, 1),
        image_size: tuple[int, int] | None = None,
    ) -> Any:
        """One step, up to `.backward()`; arguments as `Distiller.forward` takes them.

        Returns:
            A named tuple of scalars: `total`, and each teacher's terms, unweighted, as
            `NAME_token`, `NAME_feature`, `NAME_patch`.
        """
        views = self.see(images, hidden, generator, part, image_size)
        found = {
            name: self.compare(
                cast("ProteusLoss", self.loss[name]), views, self.target(teacher, images)
            )
            for name, teacher in self.teachers.items()
        }
        totals = torch.stack([self.weights[name] * losses.total for name, losses in found.items()])
        if self.drop and self.training:
            totals = totals * self._kept(totals.detach(), generator)
        values = {f"{n}_{term}": v for n, one in found.items() for term, v in one._asdict().items()}
        return self._losses(totals.sum(), *(values[term] for term in self._terms))

    def _kept(self, totals: Tensor, generator: torch.Generator | None) -> Tensor:
        """1 for the teachers of this step, 0 for the others, without asking the device."""
        drawn = torch.rand(totals.shape, generator=generator, device=totals.device)
        return ((drawn >= self.drop) | (totals == totals.max())).to(totals)

    @property
    def heads(self) -> ProteusLoss:
        """The first teacher's loss."""
        return cast("ProteusLoss", next(iter(self.loss.values())))

    def describe(self) -> dict[str, Any]:
        """The teachers, their losses and weights, and the masks, as `fit` records them."""
        teachers = {
            name: {
                "teacher": teacher.name,
                "weight": self.weights[name],
                "loss": describe_loss(cast("ProteusLoss", self.loss[name])),
            }
            for name, teacher in self.teachers.items()
        }
        return {"teachers": teachers, "drop": self.drop, **self.describe_masks()}


def _standardized(teacher: Teacher, student: Student) -> ProteusLoss:
    weights = supported_weights(teacher)
    if 0 in (*teacher.grid, *student.grid):
        weights |= {"feature": 0.0, "patch": 0.0}
    return ProteusLoss(student.width, teacher.width, targets="standardized", **weights)


def _check_names(what: str, given: Mapping[str, Any], teachers: Mapping[str, Teacher]) -> None:
    odd = [name for name in teachers if not name.isidentifier() or name.startswith("_")]
    if odd or {*teachers} & {*dir(nn.ModuleDict)}:
        raise ValueError(
            f"MultiTeacherDistiller: names of teachers name their terms. Got {[*teachers]}; "
            f"expected identifiers such as 'dinov2', and no method of a dictionary."
        )
    if given.keys() != teachers.keys():
        raise ValueError(
            f"MultiTeacherDistiller: {what} do not belong to the teachers. Got {sorted(given)}; "
            f"expected {sorted(teachers)}."
        )
