"""The paper's students by name: where they are, what made them, how they score."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from ..version import __version__

OWNER = "proteus-distill"  # of the repositories on the Hugging Face Hub


@dataclass(frozen=True)
class Pretrained:
    """One released student.

    Attributes:
        name: As `load_pretrained` knows it; also the repository's name.
        family: Which teacher's family it follows, and so its architecture and position rule.
        width: Embedding dimension D.
        depth: Blocks.
        teacher: It was distilled from this one.
        scores: Protocol -> number, the paper's (per cent; RMSE in metres).
        revision: Commit on the Hub; None while the repository is not published.
        sha256: Of `model.safetensors` at that commit.
        repo: `owner/name` on the Hub.
        license: Of the authors' files.
        data: What it was trained on.
        recipe: Name of the paper's run.
    """

    name: str
    family: Literal["dinov2", "synclr", "clip"]
    width: int
    depth: int
    teacher: str
    scores: Mapping[str, float]
    revision: str | None = None
    sha256: str | None = None
    license: str = "mit"
    data: str = "ImageNet-1K (train), without labels"

    @property
    def repo(self) -> str:
        """`owner/name` on the Hub."""
        return f"{OWNER}/{self.name}"

    @property
    def recipe(self) -> dict[str, object]:
        """The paper's run (section 3, A.1.1) in short, for the card."""
        objectives = ["token"] if self.family == "clip" else ["token", "feature", "patch"]
        return {
            "teacher": self.teacher,
            "objectives": objectives,
            "epochs": 300,
            "batch_size": 256 if self.width == 1024 else 1024,
            "image_size": 224,
            "optimizer": "AdamW, weight decay 0.05, cosine, 5 epochs warm-up",
            "converted_by": f"proteus-distill {__version__}",
        }

    @property
    def url(self) -> str:
        """Where the authors' file is found."""
        return "github.com/BeSpontaneous/Proteus-pytorch (README, table of weights)"


def paper_scores(
    imagenet: float | None = None,
    fine: float | None = None,
    ade: float | None = None,
    nyu: float | None = None,
) -> Mapping[str, float]:
    """Numbers of the paper by their protocols; None = it reports none."""
    scores = {
        "ImageNet-1K linear probe": imagenet,
        "Fine-grained, mean of 12 sets, logistic regression": fine,
        "ADE20K UperNet mIoU": ade,
        "NYU-Depth V2 RMSE": nyu,
    }
    return {name: value for name, value in scores.items() if value is not None}


_ALL = (
    Pretrained(
        "proteus-vit-ti14",
        "dinov2",
        192,
        12,
        "dinov2_vits14",
        paper_scores(75.2, 80.2, 40.7, 0.423),
    ),
    Pretrained(
        "proteus-vit-s14", "dinov2", 384, 12, "dinov2_vitb14", paper_scores(81.8, 85.8, 50.0, 0.350)
    ),
    Pretrained(
        "proteus-vit-b14", "dinov2", 768, 12, "dinov2_vitl14", paper_scores(84.9, 88.6, 54.4, 0.303)
    ),
    Pretrained(
        "proteus-vit-l14",
        "dinov2",
        1024,
        24,
        "dinov2_vitg14",
        paper_scores(86.2, 91.0, 57.7, 0.240),
    ),
    Pretrained(
        "proteus-vit-b14-synclr",
        "synclr",
        768,
        12,
        "synclr_vitl14",
        paper_scores(81.4, 87.4, 52.5),
    ),
    Pretrained("proteus-vit-b14-clip", "clip", 768, 12, "clip_vitl14", paper_scores(81.2, 85.7)),
)
PRETRAINED: Mapping[str, Pretrained] = MappingProxyType({entry.name: entry for entry in _ALL})
