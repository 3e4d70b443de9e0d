"""A student with its heads kept, whose features are the teacher's."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .features import Features, ShapeError
from .files import write_whole
from .heads import widths_of
from .hub.save import save_pretrained
from .losses import ProteusLoss
from .student import Student
from .weights.state_dicts import load_strictly, read_state_dict, refuse_not_finite

_FILE = "heads.safetensors"
_SETTINGS = ("student_dim", "teacher_dim", "token", "feature", "patch", "head", "targets")


class Projected(nn.Module):
    """A student behind the heads it was distilled with: features in the teacher's space.

    The usual export drops the heads. Kept, they let the student stand in where the teacher's
    features are expected: its classifiers, its index of vectors, its text tower. `proteus.evaluate`
    and the pictures take it as any model.

    Args:
        student: A `Student`.
        loss: The `ProteusLoss` of its training, with a feature term; see `ProteusLoss.project`.
            With `targets="angle"` there are no heads, and the features are the student's own.

    Attributes:
        embed_dim: Width of the class token it gives.
        image_size: (height, width), the student's.

    Raises:
        ShapeError: If the loss was built for a student of another width.
        ValueError: If the loss has no feature term.

    Examples:
        >>> student = Student("vit_tiny_patch16_224", image_size=32)
        >>> model = Projected(student, ProteusLoss(student.width, 384)).eval()
        >>> features = model(torch.zeros(1, 3, 32, 32))
        >>> features.cls.shape, features.patches.shape, model.embed_dim
        (torch.Size([1, 384]), torch.Size([1, 4, 384]), 384)

    Source:
        The adaptor heads of AM-RADIO (Ranzinger et al., CVPR 2024), which stay at inference.
        *Same:* the student's features pass the trained heads, and standardised ones are brought
        back to the teacher's statistics.
        *Different:* the heads are those of the run, the paper's by default.
    """

    def __init__(self, student: Student, loss: ProteusLoss) -> None:
        super().__init__()
        if not loss.feature:
            raise ValueError(
                "Projected: nothing to project patches with. Got a loss with feature=0; expected "
                "feature > 0."
            )
        if widths_of(loss.student_dim) != widths_of(student.width):
            raise ShapeError(
                f"Projected: the loss was built for another student. Got width "
                f"{loss.student_dim}; expected {student.width}."
            )
        self.student, self.loss = student, loss
        stays = loss.targets == "angle"
        self.embed_dim: int = widths_of(loss.student_dim if stays else loss.teacher_dim)[0]
        self.image_size = student.image_size

    def forward(self, images: Tensor) -> Features:
        """RGB images [B, 3, H, W], uint8 or float in [0, 1], to `Features`."""
        return self.loss.project(self.student(images))


def save_projected(model: Projected, folder: str | Path, **options: Any) -> Path:
    """Write the student as `save_pretrained` does, and its heads beside it.

    timm alone still loads the student from the folder; `load_projected` finds the heads as well.
    A queue of the loss, which only training uses, is left out.

    Args:
        model: Of a run: `Projected(distiller.student, distiller.loss)`.
        folder: Also gets `heads.safetensors`.
        options: Of `save_pretrained`.

    Returns:
        The folder.

    Raises:
        ValueError: As `save_pretrained`.

    Examples:
        >>> import tempfile
        >>> student = Student("vit_tiny_patch16_224", image_size=32)
        >>> model = Projected(student, ProteusLoss(192, 384)).eval()
        >>> images = torch.rand(1, 3, 32, 32)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = load_projected(save_projected(model, folder))
        >>> torch.equal(again(images).cls, model(images).cls)
        True
    """
    from safetensors.torch import save_file

    folder = save_pretrained(model.student, folder, **options)
    loss = model.loss
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in loss.state_dict().items()
        if not name.startswith("queue.")
    }
    refuse_not_finite(tensors, "save_projected")
    described = {
        "loss": {name: vars(loss)[name] for name in _SETTINGS},
        "image_size": model.image_size,
        "normalize": model.student.inputs.normalizes,
    }
    facts = {"proteus": json.dumps(described)}
    write_whole(folder / _FILE, lambda path: save_file(tensors, path, facts))
    return folder


def load_projected(folder: str | Path) -> Projected:
    """Read what `save_projected` wrote, in eval.

    Args:
        folder: Holds the student and `heads.safetensors`.

    Raises:
        ValueError: If a file is missing or broken, or a tensor is missing or left over.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(folder) / _FILE
    tensors = read_state_dict(path)
    try:
        with safe_open(path, "pt") as file:
            described = json.loads(file.metadata()["proteus"])
        settings: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in described["loss"].items()
        }
        size = tuple(described["image_size"])
        loss = ProteusLoss(**settings)
        normalize = bool(described["normalize"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"load_projected: {path} does not say what its heads are ({error!r}). Expected a file "
            f"of save_projected."
        ) from error
    load_strictly(loss, tensors, f"load_projected: {path}")
    student = Student(f"local-dir:{folder}", image_size=size, normalize=normalize)
    return Projected(student, loss).eval()
