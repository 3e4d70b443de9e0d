"""LogitDistiller: conventional distillation through class logits (the paper's Table 1)."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .distances import at_least_float32
from .distiller import TeacherAndStudent
from .features import Features, ShapeError
from .ranges import check_numbers
from .student import Student
from .teacher import Teacher
from .weights.state_dicts import load_strictly, naming, read_state_dict, refuse_hollow


class LogitLosses(NamedTuple):
    """The result of `LogitDistiller`: scalars, float32 (float64 for float64 logits).

    Attributes:
        total: `kl` and `ce`, each times its weight, summed; the one to call `.backward()` on.
        kl: Distance to the teacher's logits, unweighted. Zero when its weight is zero.
        ce: Cross entropy with the labels, unweighted. Zero when its weight is zero.
    """

    total: Tensor
    kl: Tensor
    ce: Tensor


class LinearHead(nn.Module):
    """A teacher's classifier: one layer on the class token and the mean patch token.

    Args:
        teacher_dim: Width D of the teacher.
        num_classes: How many classes it tells apart.
        patches: Read the mean patch token too, as DINOv2's published heads do. False = the class
            token alone, as the head of a supervised model does.

    Examples:
        >>> head = LinearHead(8, 10)
        >>> head(Features(torch.zeros(2, 8), torch.zeros(2, 4, 8), (2, 2))).shape
        torch.Size([2, 10])

    Source:
        DINOv2 `dinov2/hub/classifiers.py` (`_LinearClassifierWrapper`, one layer).
        *Same:* logits of the last layer's normed class token, then the mean of the patch tokens.
    """

    def __init__(self, teacher_dim: int, num_classes: int, *, patches: bool = True) -> None:
        super().__init__()
        self.teacher_dim, self.num_classes, self.patches = teacher_dim, num_classes, patches
        self.linear = nn.Linear((1 + patches) * teacher_dim, num_classes)

    def forward(self, features: Features) -> Tensor:
        """Features of width D -> logits [B, classes]."""
        tokens = [features.cls, features.patches.mean(1)] if self.patches else [features.cls]
        logits: Tensor = self.linear(torch.cat(tokens, dim=1))
        return logits


def load_linear_head(path: str | Path, teacher_dim: int) -> LinearHead:
    """A teacher's linear head from a local file; nothing in the file is executed.

    Args:
        path: DINOv2's `dinov2_vitb14_linear_head.pth` and the like, or the whole weight file of a
            supervised model, such as DeiT's, whose `head` is taken. Also as `.safetensors`.
        teacher_dim: Width D of the teacher that it belongs to.

    Returns:
        The head, frozen; its number of classes is the file's.

    Raises:
        ValueError: If the file cannot be read, has no head, or holds anything but `weight`
            [K, 2 * D] and `bias` [K] beside one another.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "head.pth")
        ...     torch.save({"weight": torch.zeros(5, 16), "bias": torch.zeros(5)}, path)
        ...     load_linear_head(path, teacher_dim=8).num_classes
        5
    """
    content = read_state_dict(path)
    model = content["model"] if isinstance(content.get("model"), dict) else content
    whole = "head.weight" in model
    tensors: dict[str, Any] = content
    if whole:
        tensors = {k: model.get(f"head.{k}") for k in ("weight", "bias")}
    with naming(path):
        refuse_hollow(tensors, "linear head")
    shapes = {
        name: tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        for name, value in tensors.items()
    }
    width = teacher_dim if whole else 2 * teacher_dim
    classes = shapes["bias"][0] if isinstance(shapes.get("bias"), tuple) and shapes["bias"] else 0
    if not classes or shapes != {"weight": (classes, width), "bias": (classes,)}:
        shown = ", ".join(f"{name} {shape}" for name, shape in list(shapes.items())[:5])
        raise ValueError(
            f"linear head: {Path(path).name} does not fit the teacher. Got {shown or 'nothing'}; "
            f"expected weight [classes, {width}] and bias [classes] for a teacher of width "
            f"{teacher_dim}. Take the file named after the teacher that ends in "
            f"`_linear_head.pth` (`_linear4_head.pth` reads four layers, which features do not "
            f"hold), or the weight file of a supervised teacher."
        )
    head = LinearHead(teacher_dim, int(classes), patches=not whole)
    with naming(path):
        load_strictly(head.linear, tensors, "linear head")
    return head.requires_grad_(False)


class LogitDistiller(TeacherAndStudent):
    """Teacher with a classifier, student with a linear layer, as one module: the whole step.

    It takes the place of a `Distiller` in a loop. Teacher and classifier are no submodules, see
    `TeacherAndStudent`, and stay in eval.

    Args:
        teacher: A `Teacher`.
        student: A `Student`.
        classifier: Teacher `Features` -> logits [B, num_classes]: `load_linear_head(...)`, or any
            module. It is frozen here. None with `kl=0`: then the labels alone teach, and the
            teacher is not run.
        num_classes: K.
        kl: Weight of the distance to the teacher's logits (the paper's lambda).
        ce: Weight of the cross entropy with the labels (the paper's 1 - lambda).
        hard: True = cross entropy with the teacher's first choice takes the place of the KL
            divergence.
        temperature: Both sides' logits are divided by it, and the KL divergence multiplied by its
            square. Only without `hard`.

    Attributes:
        head: The student's `Linear` on its class token.
        num_inputs: What a loop takes from each batch: 2, images and labels; 1 without `ce`.

    Raises:
        ShapeError: If image sizes differ or the classifier's logits are not [B, num_classes].
        ValueError: If weights are negative or all 0, a classifier is missing, or a setting would
            be ignored.

    Examples:
        >>> teacher = Teacher("vit_tiny_patch16_224", pretrained=False, image_size=32)
        >>> student = Student("vit_tiny_patch16_224", image_size=32)
        >>> distiller = LogitDistiller(teacher, student, LinearHead(192, 10), num_classes=10)
        >>> losses = distiller(torch.rand(4, 3, 32, 32), torch.tensor([0, 3, 9, 3]))
        >>> losses.total.backward()

    Source:
        Proteus (ICLR 2025), Eq. 1-3 and Table 1; DeiT `losses.py` (`DistillationLoss`).
        *Same:* both terms and their sum; hard distillation; the temperature squared.
        *Different:* the KL divergence is summed over classes, as in Eq. 2, where DeiT's code
        also divides by their number (`kl=0.5 / num_classes` gives that); one linear layer on the
        class token serves both terms, where DeiT has a second one on a distillation token.
    """

    classifier: nn.Module

    def __init__(
        self,
        teacher: Teacher,
        student: Student,
        classifier: nn.Module | None,
        *,
        num_classes: int,
        kl: float = 0.5,
        ce: float = 0.5,
        hard: bool = False,
        temperature: float = 1.0,
    ) -> None:
        _check_weights(kl, ce, hard, temperature)
        if kl and classifier is None:
            raise ValueError(
                f"LogitDistiller: no classifier. Got None and kl={kl}; expected a module that "
                f"takes the teacher's Features, such as load_linear_head(FILE, "
                f"{teacher.embed_dim})."
            )
        frozen: dict[str, nn.Module] = {}
        if classifier is not None:
            frozen["classifier"] = classifier.requires_grad_(False).eval()
        super().__init__(teacher, student, **frozen)
        self.num_classes = num_classes
        self.kl, self.ce, self.hard, self.temperature = kl, ce, hard, temperature
        self.num_inputs = 2 if ce else 1
        if frozen:
            self._check_classifier()
        student.learn_from(cls=True, patches=False, hidden=False)
        self.head = nn.Linear(student.embed_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self._labels_seen = False

    def describe(self) -> dict[str, Any]:
        """Weights and labels, as `fit` records them."""
        names = ("kl", "ce", "hard", "temperature", "num_classes")
        return {"loss": {name: vars(self)[name] for name in names}}

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        part: tuple[int, int] = (0, 1),
        image_size: tuple[int, int] | None = None,
    ) -> LogitLosses:
        """One distillation step, up to `.backward()`.

        Args:
            images: RGB [B, 3, H, W], uint8 or float in [0, 1].
            labels: int64 [B], 0 … num_classes - 1. Needed for `ce`, not looked at without.
            generator: Taken as `Distiller` takes it, and unused: nothing here is random.
            part: Taken as `Distiller` takes it, and unused: every term is a mean over the images.
            image_size: Of the student's images, as `Distiller` takes it.

        Returns:
            `LogitLosses`; call `.total.backward()`.

        Raises:
            ValueError: If labels are missing, of another dtype, or out of range (looked at on the
                CPU, and in the first batch elsewhere).
        """
        if self.ce:
            self._check_labels(images, labels)
        logits = at_least_float32(self.head(self.student(self.student.fit(images, image_size)).cls))
        kl = ce = logits.new_zeros(())
        if self.kl:
            kl = self._distance(logits, at_least_float32(self._target(images)))
        if self.ce:
            assert labels is not None  # _check_labels saw to it
            ce = F.cross_entropy(logits, labels)
        return LogitLosses(self.kl * kl + self.ce * ce, kl, ce)

    @torch.no_grad()
    def _target(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.teacher(self.teacher.fit(images)))
        return logits

    def _distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Logits [B, K] of both -> scalar."""
        if self.hard:
            return F.cross_entropy(student, teacher.argmax(1))
        ours, theirs = ((logits / self.temperature).log_softmax(1) for logits in (student, teacher))
        divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        return divergence * self.temperature**2

    def _check_classifier(self) -> None:
        """Try it on features of nothing: what does not fit should fail here, not in a step."""
        teacher, like = self.teacher, self.teacher.inputs.mean
        patches = teacher.grid[0] * teacher.grid[1]
        self.classifier.to(like)
        blank = Features(
            like.new_zeros(1, teacher.embed_dim),
            like.new_zeros(1, patches, teacher.embed_dim),
            teacher.grid,
        )
        try:
            with torch.no_grad():
                logits = self.classifier(blank)
        except RuntimeError as error:
            raise ShapeError(
                f"LogitDistiller: the classifier cannot read the teacher's features. Got "
                f"{type(self.classifier).__name__} and {error}; expected a module that takes "
                f"Features of width {teacher.embed_dim}."
            ) from error
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if shape != (1, self.num_classes):
            raise ShapeError(
                f"LogitDistiller: the classifier's logits have the wrong shape. Got {shape} for "
                f"one image; expected {(1, self.num_classes)}. Build it with the classifier's own "
                f"number of classes as num_classes."
            )

    def _check_labels(self, images: Tensor, labels: Tensor | None) -> None:
        if labels is None:
            raise ValueError(
                f"LogitDistiller: the cross entropy needs labels. Got none and ce={self.ce}; pass "
                f"labels (ImageLoader(..., labels=True) yields them), or build it with ce=0."
            )
        if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
            raise ShapeError(
                f"LogitDistiller: labels do not fit. Got {labels.dtype} {tuple(labels.shape)}; "
                f"expected torch.int64 {tuple(images.shape[:1])}, a class index for each image."
            )
        if self._labels_seen and labels.device.type != "cpu":
            return  # looking makes the host wait for the device
        if labels.numel() and not labels.is_meta:
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= self.num_classes:
                raise ValueError(
                    f"LogitDistiller: labels out of range. Got {low} to {high}; expected 0 to "
                    f"{self.num_classes - 1}."
                )
            self._labels_seen = True


def _check_weights(kl: float, ce: float, hard: bool, temperature: float) -> None:
    check_numbers("LogitDistiller", {"kl": kl, "ce": ce, "temperature": temperature})
    if not kl + ce > 0:
        raise ValueError(
            f"LogitDistiller: weights must be >= 0 and not all 0. Got kl={kl}, ce={ce}; expected "
            f"for example kl=0.5, ce=0.5."
        )
    if kl == 0 and (hard or temperature != 1):
        raise ValueError(
            f"LogitDistiller: hard= and temperature= would be ignored. Got hard={hard}, "
            f"temperature={temperature} with kl=0; leave them out."
        )
    if hard and temperature != 1:
        raise ValueError(
            f"LogitDistiller: the temperature would be ignored. Got temperature={temperature} with "
            f"hard=True, which looks at the teacher's first choice only; leave it out."
        )
