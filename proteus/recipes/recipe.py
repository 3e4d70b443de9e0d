"""A recipe: everything that decides what a run computes, apart from where it computes it.

*Science* fields change the numbers; a run can only be resumed with the same ones. *Machine* fields
must not change them (up to rounding), and may differ after a resume.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from ..data.samples import Augmentation
from ..distances import Distance
from ..files import flatten
from ..heads import Design
from ..masking import Strategy
from ..ranges import RANGES, check_numbers
from ..settings import Machine, Optimizer, ScheduleName
from ..target_maps import Targets
from ..token_queue import TokenDistance

Preset = Literal["paper", "official", "fast"]


@dataclass(frozen=True)
class Models:
    """Teacher and student.

    Attributes:
        teacher: See `Teacher`.
        student: See `Student`.
        teacher_checkpoint: Local file with the teacher's weights.
        init: The student's first weights: `random`, `pretrained` (published ones) or `select` (a
            uniform selection of the teacher's, see `proteus.inheritance`). A `local-dir:` or
            `hf-hub:` student brings its own; only `select` replaces them.
        drop_path: Rate of stochastic depth in the student.
        teacher_layers: Numbers of the layers that the teacher's patches come from, see `Student`;
            None = its output.
        student_layers: Likewise of the student.
        image_size: Pixels of the student's images, square; None = the teacher's own size, or that
            at which the student's grid is the teacher's.
        teacher_precision: `bf16` or `fp16` = the teacher computes in it, whatever the student does;
            None = as the step.
        teacher_image_size: Pixels of the teacher's; None = that at which its grid is the student's
            if it is within a third of the student's size, else the student's size.
        grids: `agree` = sizes are chosen so; `average` = one size for both. Unequal grids meet on
            the coarser one, see `proteus.grids`.
        statistics: Normalisation: `own` = each model's, `imagenet` = ImageNet's for both.
    """

    teacher: str = ""
    student: str = ""
    teacher_checkpoint: str | None = None
    init: Literal["random", "pretrained", "select"] = "random"
    drop_path: float = 0.0
    teacher_layers: tuple[int, ...] | None = None
    student_layers: tuple[int, ...] | None = None
    image_size: int | None = None
    teacher_precision: Literal["bf16", "fp16"] | None = None
    teacher_image_size: int | None = None
    grids: Literal["agree", "average"] = "agree"
    statistics: Literal["own", "imagenet"] = "own"


@dataclass(frozen=True)
class Loss:
    """Distances between features; see `ProteusLoss`.

    Attributes:
        token: Weight of the class-token term; None = 1 if the teacher supports it, else 0.
        feature: Weight of the all-tokens term, likewise.
        patch: Weight of the hidden-patches term, likewise.
        head: Design of the heads.
        distance: Between tokens.
        token_distance: Of the token term alone, or `queue`; None = as `distance`.
        queue_size: Tokens of the queue; None = 4096.
        temperature: Of the queue; None = 0.07.
        targets: The map of the teacher's tokens; `angle` takes `head=identity`.
    """

    token: float | None = None
    feature: float | None = None
    patch: float | None = None
    head: Design = "ln_linear"
    distance: Distance = "mse"
    token_distance: TokenDistance | None = None
    queue_size: int | None = None
    temperature: float | None = None
    targets: Targets = "raw"


@dataclass(frozen=True)
class Masks:
    """Which patches are hidden; see `MaskGenerator`."""

    strategy: Strategy = "random"
    ratio: float | tuple[float, float] = 0.5
    probability: float = 0.5
    shuffle: bool = False


@dataclass(frozen=True)
class Logits:
    """Conventional distillation of class logits (Tables 1, 11 and 12), in place of features.

    Attributes:
        classifier: File with the teacher's linear head, see `proteus.logits.load_linear_head`;
            None = there is none, with `kl` 0.
        num_classes: Classes of that head.
        kl: Weight of the teacher's logits; 0 = supervised: the labels alone teach, and the teacher
            is at most what the student inherits its first weights from.
        ce: Weight of the labels.
        hard: Compare with the teacher's most likely class instead of its distribution.
        temperature: Of the distributions.
    """

    classifier: str | None = None
    num_classes: int = 1000
    kl: float = 0.5
    ce: float = 0.5
    hard: bool = False
    temperature: float = 1.0


@dataclass(frozen=True)
class Data:
    """The images and how many are seen. Exactly one of epochs, steps and images is set.

    Attributes:
        paths: See `proteus.data.open_source`.
        proxy: What is made of them: `all`, `merge` (exact duplicates once), `single:N` (N views of
            one large image), `sub-data:F` (that fraction of each class) or `sub-class:F`.
        augment: See `ImageLoader`.
        repeats: Samples of an image in a row.
        prepared: Folder of `proteus prepare`, whose targets stand in for the teacher; None = the
            teacher is asked in each step.
        views: Prepare the targets of so many views of each image first, in the run's folder (int8);
            None = no.
        hold_out: Images that are not trained on, evenly spaced: what the watch looks at. None = the
            run trains on all.
        batch_size: Images a step, on all processes together.
        epochs: Passes over the images.
        steps: Optimizer steps.
        images: Images seen.
    """

    paths: tuple[str, ...] = ()
    proxy: str = "all"
    augment: Augmentation = "crop"
    repeats: int = 1
    prepared: str | None = None
    views: int | None = None
    hold_out: int | None = None
    batch_size: int = 64
    epochs: float | None = None
    steps: int | None = None
    images: int | None = None

    @property
    def has_length(self) -> bool:
        """Whether one of epochs, steps and images is set."""
        return any(length is not None for length in (self.epochs, self.steps, self.images))


@dataclass(frozen=True)
class Science:
    """What changes the numbers."""

    model: Models = Models()
    loss: Loss = Loss()
    logits: Logits | None = None
    masks: Masks = Masks()
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    seed: int = 0


@dataclass(frozen=True)
class Recipe:
    """A training run.

    Attributes:
        name: `custom`, or a name of `proteus recipes`.
        preset: `paper` (the words), `official` (what the authors' code does), `fast` (the words and
            prepared targets, see `faster`), or None.
        about: What it is, and where in the paper.
        science: What changes the numbers.
        machine: What must not.
        scores: What the paper reports for the run: protocol -> number.

    Raises:
        ValueError: If a setting is unknown, out of range, or would be ignored.

    Examples:
        >>> from proteus.recipes import recipe
        >>> official = recipe("s14-dinov2-b14", preset="official")
        >>> official.science.masks.strategy, official.science.optimizer.precision
        ('random', 'fp16')
    """

    name: str = "custom"
    preset: Preset | None = None
    about: str = ""
    science: Science = Science()
    machine: Machine = Machine()
    scores: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        science, machine = self.science, self.machine
        plain = flatten({"science": asdict(science), "machine": asdict(machine)})
        if science.loss.temperature is None:
            plain.pop("science.loss.temperature")  # that of logits is a number always
        check_numbers("recipe", {k: v for k, v in plain.items() if k.rpartition(".")[2] in RANGES})
        _check_length(science.data)
        _check_schedule(science.optimizer)
        if science.logits is not None and science.loss != Loss():
            raise _ignored("science.loss", "science.logits is set, which replaces it")
        if science.logits is not None:
            _check_logits(science.logits)
        token_alone = science.loss.feature == 0 == science.loss.patch or science.logits is not None
        if token_alone and (science.model.teacher_layers or science.model.student_layers):
            raise layers_ignored("no term of the loss compares patches")
        patch_off = science.loss.patch == 0 or science.logits is not None
        if patch_off and science.masks != Masks():
            raise _ignored("science.masks", "no patch term would use them")
        unwatched = (machine.watch_every, machine.watch_labels) != (1000, False)
        if unwatched and not (machine.watch or science.data.hold_out):
            raise _ignored("machine.watch_every or watch_labels", "machine.watch names no images")
        if machine.watch and science.data.hold_out:
            raise _ignored("science.data.hold_out", "machine.watch names the images to look at")
        proxy_of(science.data.proxy)


def _check_length(data: Data) -> None:
    if data.prepared is not None and data.views is not None:
        raise _ignored("science.data.views", "science.data.prepared names targets that are made")
    if data.repeats > 1 and (data.prepared is not None or data.views is not None):
        raise _ignored("science.data.repeats", "prepared views take its place")
    given = [n for n in ("epochs", "steps", "images") if getattr(data, n) is not None]
    if len(given) > 1:
        raise ValueError(
            f"recipe: the length is given more than once. Got science.data.{' and '.join(given)}; "
            f"expected exactly one, the others null."
        )


def _check_logits(logits: Logits) -> None:
    if logits.kl and not logits.classifier:
        raise ValueError(
            f"recipe: no classifier of the teacher. Got science.logits.kl={logits.kl} and "
            f"science.logits.classifier={logits.classifier!r}; expected a file with the teacher's "
            f"linear head. Set science.logits.classifier=FILE, or kl=0 for labels alone."
        )
    if not logits.kl and logits.classifier:
        raise _ignored("science.logits.classifier", "science.logits.kl is 0")


def _check_schedule(optimizer: Optimizer) -> None:
    if optimizer.first_share is not None and optimizer.first_scale is None:
        raise _ignored("science.optimizer.first_share", "science.optimizer.first_scale is not set")
    if optimizer.schedule not in get_args(ScheduleName):
        raise ValueError(
            f"recipe: unknown schedule. Got {optimizer.schedule!r}; expected "
            f"{', '.join(get_args(ScheduleName))}."
        )
    in_epochs = (optimizer.warmup_epochs, optimizer.warmup_lr, optimizer.min_lr)
    if optimizer.schedule == "cosine" and in_epochs != (None, None, None):
        raise _ignored("science.optimizer.warmup_epochs, warmup_lr or min_lr", "of the schedule")
    if optimizer.schedule != "cosine" and optimizer.warmup is not None:
        raise _ignored("science.optimizer.warmup", "the schedule warms up in epochs")


def _ignored(path: str, why: str) -> ValueError:
    return ValueError(f"recipe: {path} would be ignored, because {why}. Leave it at its default.")


def layers_ignored(why: str) -> ValueError:
    """The error of chosen layers whose patches nothing would use."""
    return _ignored("science.model.teacher_layers or student_layers", why)


def proxy_of(text: str) -> tuple[str, float | None]:
    """A proxy as kind and number, such as ("sub-data", 0.2).

    Raises:
        ValueError: If it is none.

    Examples:
        >>> proxy_of("single:1200"), proxy_of("all")
        (('single', 1200.0), ('all', None))
    """
    kind, separator, number = text.partition(":")
    try:
        if kind in ("all", "merge") and not separator:
            return kind, None
        if kind == "single" and 1 <= int(number) <= 10**12:
            return kind, float(number)
        if kind in ("sub-data", "sub-class") and math.isfinite(float(number)):
            return kind, float(number)
    except ValueError:
        pass
    raise ValueError(
        f"recipe: unknown proxy set. Got science.data.proxy={text!r}; expected 'all', 'merge', "
        f"'single:N', 'sub-data:F' or 'sub-class:F'."
    )


def to_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data; `from_json` reads it."""
    return asdict(recipe)
