"""Distiller: images -> Losses. The whole step, in one forward."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .features import Features, ShapeError
from .grids import average_to, check_fits, common_grid
from .losses import Losses, ProteusLoss
from .masking import Hidden, MaskGenerator, check_hidden
from .student import Student
from .teacher import Teacher

if TYPE_CHECKING:
    from .training import History, Resumable


class Views(NamedTuple):
    """What the student made of a batch.

    Attributes:
        student: Of the whole images.
        masked: Of the images with a mask once more; None without a patch term.
        hidden: The masks, on the device; which images have one.
    """

    student: Features
    masked: Features | None = None
    hidden: Hidden | None = None


class TeacherAndStudent(nn.Module):
    """What the distillers share: a student that learns, and frozen models beside it.

    The frozen ones are no submodules: they are in no `state_dict`, no optimizer and no DDP bucket,
    and `.train()` does not reach them. They do follow `.to(...)`.

    Args:
        teacher: A `Teacher`, or several by name; the first is the one to be watched and drawn.
        student: A `Student`.
        frozen: Other frozen models, by the attribute's name.

    Attributes:
        teacher: The (first) teacher.
        teachers: All of them by name.
        image_size: (height, width) of the images it takes: of the model that takes the larger ones,
            by each side. Each model gets them at its own size.
        grid: (h, w) on which patches are compared, the coarsest one of the models that have
            patches; (0, 0) where the student or all teachers have none.
    """

    teacher: Teacher
    teachers: Mapping[str, Teacher]
    num_inputs: int = 1  # what a loop takes from each batch: the images alone
    masks: MaskGenerator | None = None  # of the patches that a step hides
    takes_target = False  # whether a step can do without the teacher, given its features

    def __init__(
        self, teacher: Teacher | Mapping[str, Teacher], student: Student, **frozen: nn.Module
    ) -> None:
        super().__init__()
        teachers = {"teacher": teacher} if isinstance(teacher, Teacher) else dict(teacher)
        models = [*teachers.values(), student]
        height, width = (max(sides) for sides in zip(*(m.image_size for m in models), strict=True))
        self.image_size = (height, width)
        grids = [teacher.grid for teacher in teachers.values() if teacher.grid[0]]
        self.grid = functools.reduce(common_grid, grids, student.grid) if grids else (0, 0)
        for model in models:
            check_fits(type(self).__name__, self.image_size, model.image_size)
        # Not `self.teacher = ...`: nn.Module would register it as a submodule.
        self.__dict__.update(teachers=teachers, teacher=models[0], **frozen)
        self._frozen = tuple(frozen)
        self.student = student

    def check_inputs(self) -> None:
        """Look whether float images since the last call were in [0, 1].

        The first batch is looked at when it comes. Of later ones the lowest and highest value stay
        on the device, on each rank, until they are read here, since reading makes the host wait.
        `fit` reads them with its log; in a loop of your own, call this where you read the loss.

        Raises:
            ValueError: If they were not.
        """
        for model in (*self.teachers.values(), self.student):
            model.inputs.check()

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """Everything an optimizer should have: student, mask token, heads; never the teacher."""
        return (p for p in self.parameters() if p.requires_grad)

    def __repr__(self) -> str:
        # One line: the plain models print as `.teacher.backbone` and `.student.backbone`.
        models = (*self.teachers.values(), self.student)
        return f"{type(self).__name__}({', '.join(map(repr, models))})"

    @property
    def heads(self) -> ProteusLoss | None:
        """The loss whose heads bring the student's features to the teacher's width, if any."""
        return None

    def draw(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        part: tuple[int, int] = (0, 1),
        image_size: tuple[int, int] | None = None,
    ) -> Hidden | None:
        """As `MaskGenerator.draw`, for student images of a size; None = nothing is hidden."""
        if self.masks is None:
            return None
        return self.masks.on(self._grid_at(image_size)).draw(batch_size, generator, device, part)

    def also_take(self, image_size: int | tuple[int, int]) -> None:
        """Let steps show the student smaller images, see `ImageModel.also_take`.

        The teacher keeps its own size; patches are compared on the student's coarser grid.

        Raises:
            ShapeError: If the student cannot take them, or would have no patches to compare.
        """
        grid = self.student.also_take(image_size)
        if self.grid[0] and not grid[0]:
            raise ShapeError(
                f"{type(self).__name__}: at this size there are no patches to compare. Got "
                f"{image_size} for {self.student.name!r}; expected a larger one."
            )

    def _grid_at(self, image_size: tuple[int, int] | None) -> tuple[int, int]:
        """The grid of the comparison where the student gets images of this size."""
        if image_size is None or not self.grid[0]:
            return self.grid
        return common_grid(self.student.also_take(image_size), self.grid)

    def see(
        self,
        images: Tensor,
        hidden: Tensor | Hidden | None = None,
        generator: torch.Generator | None = None,
        part: tuple[int, int] = (0, 1),
        image_size: tuple[int, int] | None = None,
    ) -> "Views":
        """The student's two views of a batch, in one call; see `Distiller.forward`."""
        images, grid = self.student.fit(images, image_size), self._grid_at(image_size)
        if self.masks is None:
            if hidden is not None:
                raise ValueError(
                    f"{type(self).__name__}: `hidden` would be ignored. Got masks with a patch "
                    f"weight of 0; leave it out, or build the loss with patch > 0."
                )
            return Views(self.student(images))
        if hidden is None:
            hidden = self.masks.on(grid).draw(images.shape[0], generator, images.device, part)
        elif isinstance(hidden, Tensor):
            check_hidden(type(self).__name__, hidden, images.shape[0], grid)
            hidden = Hidden(hidden, hidden.any(dim=1).nonzero().squeeze(1))
        masks, chosen = hidden.hidden.to(images.device, non_blocking=True), hidden.images
        if isinstance(chosen, Tensor):
            chosen = chosen.to(images.device, non_blocking=True)
        # One call for both views: the whole images first, then the masked ones once more.
        views = torch.cat([images, images[chosen]])
        cells = torch.cat([torch.zeros_like(masks), masks[chosen]])
        both = average_to(self.student(views, cells.reshape(-1, *grid)), grid)
        count = images.shape[0]
        student = Features(both.cls[:count], both.patches[:count], both.grid)
        masked = Features(both.cls[count:], both.patches[count:], both.grid)
        return Views(student, masked, Hidden(masks, chosen, hidden.hidden_count))

    def target(self, teacher: Teacher, images: Tensor) -> Features:
        """Features of a teacher, which gets the images at its own size."""
        features: Features = teacher(teacher.fit(images))
        return features

    def compare(self, loss: ProteusLoss, views: "Views", target: Features) -> Losses:
        """The loss of one teacher's features; patches meet on `grid`, or a coarser student's."""
        student, masked, hidden = views
        if loss.feature or loss.patch:
            grid = common_grid(student.grid, self.grid)
            student, target = average_to(student, grid), average_to(target, grid)
        if masked is None or hidden is None or not loss.patch:
            return cast("Losses", loss(student, target))
        losses = loss(
            student,
            target,
            masked,
            hidden.hidden,
            images=hidden.images,
            hidden_count=hidden.hidden_count,
        )
        return cast("Losses", losses)

    def describe(self) -> dict[str, Any]:
        """JSON-able: what is trained for."""
        return {}

    def describe_masks(self) -> dict[str, Any]:
        """JSON-able: how patches are hidden; empty where none are."""
        names = ("ratio", "probability", "strategy", "shuffle")
        masks = self.masks
        return {} if masks is None else {"masks": {name: vars(masks)[name] for name in names}}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TeacherAndStudent":
        # `.to()`, `.cuda()`, `.double()` go through here; the frozen models must come along.
        for model in (*self.teachers.values(), *(self.__dict__[name] for name in self._frozen)):
            model._apply(fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class Distiller(TeacherAndStudent):
    """Teacher, student, loss and masks as one module whose forward is the whole step.

    All trainable forwards happen inside this one `forward`, so DDP and FSDP see them. Only the
    masked images go through the masked view, in one student call together with the whole images:
    1.5 student passes instead of 2 with the default masks, for the same losses and gradients.

    The teacher is not a submodule, see `TeacherAndStudent`.

    Args:
        teacher: A `Teacher`.
        student: A `Student`.
        loss: A `ProteusLoss`; None = the paper's: weights 1 for the terms the teacher supports
            (`teacher.objectives`), which are all three, and the token term alone for CLIP.
        masks: A `MaskGenerator`; None = the authors' setting (half of the patches of the first
            half of the batch), on `grid`. Only with a patch term.

    Raises:
        ShapeError: If the forms of the images differ, or if the loss or the masks were built for
            other widths or grids.
        ValueError: If a model gives no patches and a term needs them, or if masks are given that
            no term would use.

    Examples:
        >>> teacher = Teacher("vit_tiny_patch16_224", pretrained=False, image_size=32)
        >>> student = Student("vit_tiny_patch16_224", image_size=32)
        >>> distiller = Distiller(teacher, student)
        >>> losses = distiller(torch.rand(4, 3, 32, 32))
        >>> losses.total.backward()

    Source:
        Proteus (ICLR 2025), section 2.3; `pretrain/models_proteus_dinov2.py:84-170`.
        *Same:* losses and gradients, up to rounding.
        *Different:* the masked view holds only the masked images (the authors send all of them and
        ignore the rest). With drop path or batch norm in the student the two are not identical.
        Image sizes and grids may differ, see `proteus.grids`; theirs may not.
    """

    takes_target = True

    def __init__(
        self,
        teacher: Teacher,
        student: Student,
        loss: ProteusLoss | None = None,
        masks: MaskGenerator | None = None,
    ) -> None:
        loss = loss or ProteusLoss(student.width, teacher.width, **supported_weights(teacher))
        super().__init__(teacher, student)
        self.loss = loss
        self._check(masks)
        student.learn_from(
            cls=bool(loss.token or loss.feature),
            patches=bool(loss.feature or loss.patch),
            hidden=bool(loss.patch),
        )
        self.masks = (masks or MaskGenerator(self.grid)) if loss.patch else None

    def forward(
        self,
        images: Tensor,
        hidden: Tensor | Hidden | None = None,
        *,
        generator: torch.Generator | None = None,
        part: tuple[int, int] = (0, 1),
        image_size: tuple[int, int] | None = None,
        target: Features | None = None,
    ) -> Losses:
        """One distillation step, up to `.backward()`.

        Args:
            images: RGB [B, 3, H, W], uint8 or float in [0, 1], of `image_size` or larger.
            hidden: bool [B, N] to fix the masks, or what `masks.draw` gave; None = drawn here. Give
                a tensor on the CPU: which images have a mask must be known to the host, and asking
                a GPU stalls it.
            generator: Of the masks, on the images' device; None = torch's global one.
            part: (n, of): the images are every `of`-th one of a larger batch, which processes or
                accumulated steps share. The mean of the parts' losses is the larger batch's, if
                all parts seed `generator` alike.
            image_size: (height, width) at which the student sees the images, where it is smaller
                than its own: a cheaper step. The teacher sees them at its own size.
            target: The teacher's features of these images, prepared; None = it is asked. See
                `proteus.prepared`.

        Returns:
            `Losses`; call `.total.backward()`.
        """
        if target is None:
            target = self.target(self.teacher, images)
        views = self.see(images, hidden, generator, part, image_size)
        return self.compare(self.loss, views, target)

    @property
    def heads(self) -> ProteusLoss:
        """The loss, which owns the heads."""
        return self.loss

    def describe(self) -> dict[str, Any]:
        """The loss, the masks and chosen layers, as `fit` records them."""
        found = {"loss": describe_loss(self.loss), **self.describe_masks()}
        for name, model in (("teacher_layers", self.teacher), ("student_layers", self.student)):
            if model.layers is not None:
                found[name] = list(model.layers)
        return found

    def fit(self, data: "Iterable[Any] | Resumable", **options: Any) -> "History":
        """Train with the library's minimal loop: see `proteus.training.fit` for the options."""
        from .training import fit

        return fit(self, data, **options)

    def _check(self, masks: MaskGenerator | None) -> None:
        check_loss("Distiller", self.teacher, self.student, self.loss)
        if masks is not None and not self.loss.patch:
            raise ValueError(
                "Distiller: the masks would be ignored. Got a MaskGenerator with a patch weight "
                "of 0; leave it out, or build the loss with patch > 0."
            )
        if masks is not None and masks.grid != self.grid:
            raise ShapeError(
                f"Distiller: the masks do not fit the grid of the comparison. Got {masks.grid}; "
                f"expected MaskGenerator({self.grid})."
            )


def check_loss(subject: str, teacher: Teacher, student: Student, loss: ProteusLoss) -> None:
    """Refuse a loss that was built for other widths, or that needs patches where there are none."""
    widths = (student.width, teacher.width)
    if not loss.fits(*widths):
        raise ShapeError(
            f"{subject}: the loss was built for other widths. Got ProteusLoss"
            f"{(loss.student_dim, loss.teacher_dim)}; expected ProteusLoss{widths}."
        )
    for model in (student, teacher) if loss.feature or loss.patch else ():
        if 0 in model.grid:
            raise ValueError(
                f"{subject}: there are no patches to compare. Got {model.name!r}, which gives "
                f"one vector an image; expected ProteusLoss(..., feature=0, patch=0)."
            )


def describe_loss(loss: ProteusLoss) -> dict[str, Any]:
    """JSON-able: the settings of a loss."""
    names = ("token", "feature", "patch", "head", "distance")
    # Told only where they are set: the checkpoints of before do not know them.
    unset = {"targets": "raw", "token_distance": None, "queue_size": None, "temperature": None}
    own = {name: vars(loss)[name] for name in unset}
    found = {name: vars(loss)[name] for name in names}
    return found | {name: value for name, value in own.items() if value != unset[name]}


def supported_weights(teacher: Teacher, **given: float | None) -> dict[str, Any]:
    """Weights of the terms: as given, else 1 where the teacher supports the term, 0 elsewhere."""
    supported = {term: float(term in teacher.objectives) for term in ("token", "feature", "patch")}
    return supported | {term: weight for term, weight in given.items() if weight is not None}
