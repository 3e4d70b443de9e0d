"""The paper's students by name: where they are, what made them, how they score."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from ..paper import paper_scores
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
    revision: str | None = None
    sha256: str | None = None
    license: str = "mit"
    data: str = "ImageNet-1K (train), without labels"

    @property
    def repo(self) -> str:
        """`owner/name` on the Hub."""
        return f"{OWNER}/{self.name}"

    @property
    def scores(self) -> Mapping[str, float]:
        """The paper's numbers by protocol."""
        return paper_scores(self.name)

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


_ALL = (
    Pretrained("proteus-vit-ti14", "dinov2", 192, 12, "dinov2_vits14"),
    Pretrained("proteus-vit-s14", "dinov2", 384, 12, "dinov2_vitb14"),
    Pretrained("proteus-vit-b14", "dinov2", 768, 12, "dinov2_vitl14"),
    Pretrained("proteus-vit-l14", "dinov2", 1024, 24, "dinov2_vitg14"),
    Pretrained("proteus-vit-b14-synclr", "synclr", 768, 12, "synclr_vitl14"),
    Pretrained("proteus-vit-b14-clip", "clip", 768, 12, "clip_vitl14"),
)
PRETRAINED: Mapping[str, Pretrained] = MappingProxyType({entry.name: entry for entry in _ALL})
