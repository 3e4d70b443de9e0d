"""How close a student is to its teacher, on images it was not trained on."""

import torch
import torch.nn.functional as F

from ..features import Features
from ..losses import token_distance


@torch.no_grad()
def agreement(student: Features, teacher: Features) -> dict[str, float]:
    """Mean cosine similarity and mean squared error, for class tokens and for patches.

    Args:
        student: Student features in the teacher's space, see `ProteusLoss.project`.
        teacher: Teacher features of the same images.

    Returns:
        `cls_cosine`, `patch_cosine` (-1 … 1, 1 = same direction), `cls_mse`, `patch_mse` (the
        training distances).

    Raises:
        ShapeError: If the shapes differ.

    Examples:
        >>> features = Features(torch.ones(2, 4), torch.ones(2, 9, 4), (3, 3))
        >>> agreement(features, features)["cls_cosine"]
        1.0
    """
    pairs = {"cls": (student.cls, teacher.cls), "patch": (student.patches, teacher.patches)}
    result = {}
    for name, (ours, theirs) in pairs.items():
        result[f"{name}_mse"] = float(token_distance(ours, theirs).mean())
        cosine = F.cosine_similarity(ours.double(), theirs.double(), dim=-1).mean()
        result[f"{name}_cosine"] = round(float(cosine), 6)
    return result
