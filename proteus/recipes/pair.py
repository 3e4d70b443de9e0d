"""The two models of a recipe, each at the image size at which they can be compared."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ..features import IMAGENET, ShapeError
from ..grids import partner_size
from ..models.image_model import ImageModel
from ..student import Student
from ..teacher import Teacher
from .recipe import Models

Opened = tuple[Student, torch.Tensor]
TeacherAt = Callable[[int | tuple[int, int] | None], Teacher]  # of an image size


def open_pair(model: Models, *, weights: bool = True) -> tuple[Teacher, Student]:
    """Teacher and student, on the CPU; see `Models` for how sizes that are not given are chosen.

    The student's first weights come from torch's global generator, behind what the teacher takes.

    Args:
        model: Which.
        weights: Load the teacher's; False = random ones, where its name is not that of a folder or
            repository.

    Raises:
        ValueError: If there are no models, or one takes no square images.
        ShapeError: If a model cannot take its image size.
    """
    teacher, ((student, state),) = open_several([model], weights=weights)
    torch.set_rng_state(state)
    return teacher, student


def open_teacher(model: Models) -> tuple[Teacher, int]:
    """The teacher alone, and pixels of a run's images; a student, where named, decides on sizes."""
    if model.student:
        teacher, student = open_pair(model)
        return teacher, max(*teacher.image_size, *student.image_size)
    teacher = _teacher(model, True, model.teacher_image_size or model.image_size)
    return teacher, model.image_size or teacher.image_size[0]


def open_several(models: Sequence[Models], *, weights: bool = True) -> tuple[Teacher, list[Opened]]:
    """One teacher and several students of it, each with the first weights it would have alone.

    The teacher has the size that it would have beside the first.

    Args:
        models: With the same teacher and sizes.
        weights: See `open_pair`.

    Returns:
        The teacher, and each student with the state of torch's global generator behind it: for
        what is drawn next, the heads.

    Raises:
        ValueError: As `open_pair`.
    """
    for model in models:
        check_models(model)
    first = models[0]
    teacher_at = partial(_teacher, first, weights)
    beside = _beside_students if first.image_size else _beside_teacher
    opened = beside(models, teacher_at)
    for one in (opened[0], *(student for student, _ in opened[1])):
        if one.image_size[0] != one.image_size[1]:
            raise ValueError(
                f"recipe: images are square. Got {one.name} at {one.image_size[0]}x"
                f"{one.image_size[1]}; expected one size for both sides (--image-size N)."
            )
    return opened


def check_models(model: Models) -> None:
    """Refuse a recipe that lacks one of its models."""
    if not model.teacher or not model.student:
        raise ValueError(
            "recipe: no models. Set science.model.teacher and science.model.student, or start from "
            "a recipe of `proteus recipes`."
        )


def told(teacher: Teacher, student: Student) -> str:
    """One sentence on the sizes that were chosen."""
    if teacher.image_size == student.image_size and teacher.grid == student.grid:
        return f"Image size: {student.image_size[0]}, the teacher's own (--image-size)."
    sizes = f"teacher at {teacher.image_size[0]} px, student at {student.image_size[0]} px"
    if teacher.grid == student.grid or 0 in (*teacher.grid, *student.grid):
        return f"Image sizes: {sizes}."
    both = f"{teacher.grid[0]}x{teacher.grid[1]} and {student.grid[0]}x{student.grid[1]}"
    return f"Image sizes: {sizes}; grids of {both} meet on the coarser one."


def with_sizes(model: Models, teacher: Teacher, student: Student) -> Models:
    """The sizes that were chosen, since a repetition must not depend on a default."""
    size, other = student.image_size[0], teacher.image_size[0]
    return replace(model, image_size=size, teacher_image_size=None if size == other else other)


def _beside_students(
    models: Sequence[Models], teacher_at: TeacherAt
) -> tuple[Teacher, list[Opened]]:
    """Students at the size that was asked for, the teacher where its grid is the first one's."""
    model = models[0]
    assert model.image_size is not None
    asked = model.teacher_image_size or model.image_size
    try:
        teacher = teacher_at(asked)
    except ShapeError:
        if model.teacher_image_size:
            raise
        teacher = teacher_at(None)  # its patches may not divide the student's size
    state = torch.get_rng_state()
    students = []
    for one in models:
        torch.set_rng_state(state)
        students.append((_student(one, one.image_size), torch.get_rng_state()))
    if model.teacher_image_size or model.grids == "average":
        wanted = asked, asked
    else:
        first = students[0][0]
        wanted = partner_size(first.image_size, first.grid, _patch(teacher))
    return teacher if teacher.image_size == wanted else teacher_at(wanted), students


def _beside_teacher(
    models: Sequence[Models], teacher_at: TeacherAt
) -> tuple[Teacher, list[Opened]]:
    """The teacher at its own size, each student where their grids agree."""
    teacher = teacher_at(models[0].teacher_image_size)
    state = torch.get_rng_state()

    def build(
        model: Models, size: tuple[int, int] | None, grid: tuple[int, int] | None = None
    ) -> Student:
        torch.set_rng_state(state)
        return _student(model, size, grid)

    agree = models[0].grids == "agree"
    students = []
    for one in models:
        student = _fitting(partial(build, one), teacher, agree=agree)
        students.append((student, torch.get_rng_state()))
    return teacher, students


def _fitting(build: Callable[..., Student], teacher: Teacher, *, agree: bool) -> Student:
    size = teacher.image_size
    try:
        student = build(size)
    except ShapeError:
        if 0 in teacher.grid:
            raise
        student = build(None, teacher.grid)  # its patches do not divide the teacher's size
    if 0 in (*teacher.grid, *student.grid):
        return student
    patch = _patch(student)
    wanted = partner_size(size, teacher.grid, patch) if agree else size
    if wanted == size:  # no size near by: the teacher's own, in whole patches
        wanted = size[0] // patch[0] * patch[0], size[1] // patch[1] * patch[1]
    return student if student.image_size == wanted else build(wanted)


def _patch(model: ImageModel) -> tuple[int, int]:
    """Pixels of one patch; (0, 0) for a model that gives a vector alone."""
    if 0 in model.grid:
        return 0, 0
    return model.image_size[0] // model.grid[0], model.image_size[1] // model.grid[1]


def _teacher(model: Models, weights: bool, size: int | tuple[int, int] | None) -> Teacher:
    random: dict[str, Any] = {} if weights else {"pretrained": False}
    return Teacher(
        model.teacher,
        **random,
        checkpoint=model.teacher_checkpoint if weights else None,
        image_size=size,
        normalize=IMAGENET if model.statistics == "imagenet" else True,
        layers=model.teacher_layers,
        precision=model.teacher_precision,
    )


def _student(
    model: Models, size: int | tuple[int, int] | None, grid: tuple[int, int] | None = None
) -> Student:
    return Student(
        model.student,
        pretrained=model.init == "pretrained",
        image_size=size,
        grid=grid,
        normalize=IMAGENET if model.statistics == "imagenet" else True,
        drop_path=model.drop_path,
        layers=model.student_layers,
    )
