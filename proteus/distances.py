"""How far tokens are from others, by name, and the three distances of the paper as functions.

| distance           | of a student token s and a teacher token t                     |
| ------------------ | -------------------------------------------------------------- |
| `mse`              | mean over the width of (s - t)^2 (the paper's)                 |
| `smooth_l1`        | mean over the width of d^2 / 2 where d = abs(s - t) < 1, else d - 1/2 |
| `cosine`           | 1 - cos(s, t)                                                  |
| `cosine_smooth_l1` | 0.9 `cosine` + 0.1 `smooth_l1`                                 |
| `relation`         | mean over the image's patches j of (cos(s, s_j) - cos(t, t_j))^2 |
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .features import ShapeError

Distance = Literal["mse", "smooth_l1", "cosine", "cosine_smooth_l1", "relation"]


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision to float32: a mean of squares loses too much in 8 or 11 bits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _mse(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher).square().mean(-1)


def _smooth_l1(student: Tensor, teacher: Tensor) -> Tensor:
    return F.smooth_l1_loss(student, teacher, reduction="none").mean(-1)


def _cosine(student: Tensor, teacher: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(student, teacher, dim=-1)


def _cosine_smooth_l1(student: Tensor, teacher: Tensor) -> Tensor:
    return 0.9 * _cosine(student, teacher) + 0.1 * _smooth_l1(student, teacher)


def _relation(student: Tensor, teacher: Tensor) -> Tensor:
    return _mse(similarities(student), similarities(teacher))


def similarities(tokens: Tensor) -> Tensor:
    """Cosines of each token with each of its image: [..., N, D] -> [..., N, N]."""
    # Autocast would multiply in half precision what was widened for its sake.
    with torch.autocast(tokens.device.type, enabled=False):
        units = F.normalize(at_least_float32(tokens), dim=-1)
        return units @ units.mT


_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": _mse,
    "smooth_l1": _smooth_l1,
    "cosine": _cosine,
    "cosine_smooth_l1": _cosine_smooth_l1,
    "relation": _relation,
}


def check_distance(name: str) -> None:
    """Refuse what is no name of a distance.

    Raises:
        ValueError: If it is none.
    """
    if name not in _DISTANCES:
        raise ValueError(
            f"loss: unknown distance. Got {name!r}; "
            f"expected one of {', '.join(get_args(Distance))}."
        )


def of_class_tokens(distance: Distance) -> Distance:
    """The distance that class tokens are compared by: one an image has no relations in it."""
    return "cosine" if distance == "relation" else distance


def token_distance(student: Tensor, teacher: Tensor, distance: Distance = "mse") -> Tensor:
    """Distance of each student token to the teacher's: [..., D], [..., D] -> [...].

    Args:
        student: Projected student tokens, [..., D].
        teacher: Teacher tokens, [..., D].
        distance: See the table above. `relation` takes the patches of an image together,
            [..., N, D]: its mean over N is the mean squared difference of the two N x N matrices
            of cosines. Class tokens have no relations within an image; `token_loss`,
            `feature_loss` and `ProteusLoss` compare them by `cosine` then.

    Returns:
        Tensor [...], float32 or wider.

    Raises:
        ShapeError: If the shapes differ.
        ValueError: If the distance is unknown.

    Source:
        `cosine_smooth_l1`: AM-RADIO (Ranzinger et al., CVPR 2024), and Theia (Shang et al., CoRL
        2024); `theia/models/rvfm.py`, `get_loss`.
        *Same:* weights 0.9 and 0.1; smooth L1 with beta 1, mean over all elements.
        *Different:* the cosine is of each token, as AM-RADIO's; Theia's code takes that of an
        image's tokens laid end to end.

        `relation`: the Gram loss of DINOv3 (Siméoni et al. 2025), `dinov3/loss/gram_loss.py`; and
        Tung and Mori, "Similarity-preserving knowledge distillation" (ICCV 2019).
        *Same:* tokens of length 1, one matrix an image, mean over all of its elements.
        *Different:* negative cosines are kept (`remove_neg=False`); tokens have passed the heads.
    """
    if student.shape != teacher.shape:
        raise ShapeError(
            f"loss: student and teacher tokens differ in shape. Got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}; expected equal shapes. Project the student to the teacher's "
            f"width with ProjectionHead and use equal patch grids."
        )
    check_distance(distance)
    return _DISTANCES[distance](at_least_float32(student), at_least_float32(teacher))


def token_loss(student: Tensor, teacher: Tensor, distance: Distance = "mse") -> Tensor:
    """Mean distance between class tokens (Eq. 4-5).

    Args:
        student: Projected student class tokens, [B, Dt].
        teacher: Teacher class tokens, [B, Dt]. Receives no gradient from the library's teachers.
        distance: See `token_distance`.

    Returns:
        Scalar, mean over B and Dt.

    Examples:
        >>> token_loss(torch.zeros(2, 3), torch.full((2, 3), 2.0)).item()
        4.0

    Source:
        Proteus (ICLR 2025), Eq. 5; `pretrain/models_proteus_dinov2.py:152`.
        *Same:* mean over all elements (the paper writes a squared norm, a factor Dt more).
    """
    return token_distance(student, teacher, of_class_tokens(distance)).mean()


def feature_loss(student: Tensor, teacher: Tensor, distance: Distance = "mse") -> Tensor:
    """Mean distance over all tokens, class token included (Eq. 6).

    Args:
        student: Projected student tokens, class token first, [B, 1 + N, Dt].
        teacher: Teacher tokens in the same order, [B, 1 + N, Dt].
        distance: See `token_distance`.

    Returns:
        Scalar, mean over B, 1 + N and Dt.

    Examples:
        >>> feature_loss(torch.zeros(2, 5, 3), torch.ones(2, 5, 3)).item()
        1.0

    Source:
        Proteus (ICLR 2025), Eq. 6; `pretrain/models_proteus_dinov2.py:155-157`.
        *Same:* the class token is one of the rows, so it is supervised a second time.
    """
    if of_class_tokens(distance) == distance:
        return token_distance(student, teacher, distance).mean()
    first = token_distance(student[:, :1], teacher[:, :1], of_class_tokens(distance))
    rest = token_distance(student[:, 1:], teacher[:, 1:], distance)
    return torch.cat([first, rest], dim=1).mean()


def patch_loss(
    student: Tensor,
    teacher: Tensor,
    hidden: Tensor | None = None,
    distance: Distance = "mse",
    hidden_count: Tensor | None = None,
) -> Tensor:
    """Mean distance over the patches hidden from the student (Eq. 7).

    Args:
        student: Projected student patches of the masked view, [b, N, Dt], or already only the
            hidden ones, [..., Dt], with `hidden` left out. `relation` is to all that is given.
        teacher: Teacher patches at the same positions; the teacher saw the whole image.
        hidden: bool [b, N], True where the student did not see the patch.
        distance: See `token_distance`.
        hidden_count: Scalar to divide by instead of the number of hidden patches, where these are
            a part of a larger batch: its number for each part, see `masking.Hidden`.

    Returns:
        Scalar, mean over hidden patches and Dt. Zero if nothing is hidden.

    Raises:
        ShapeError: If shapes differ, `hidden` among them.

    Examples:
        >>> student, hidden = torch.zeros(1, 4, 3), torch.tensor([[True, False, False, True]])
        >>> patch_loss(student, student + 2.0, hidden).item()
        4.0

    Source:
        Proteus (ICLR 2025), Eq. 7; `pretrain/models_proteus_dinov2.py:136-149,160`.
        *Same:* one mean over all hidden patches of the batch.
        *Different:* with nothing hidden the result is 0, where a mean over nothing is NaN.
    """
    distances = token_distance(student, teacher, distance)
    if hidden is None:
        hidden = torch.ones_like(distances, dtype=torch.bool)
    if hidden.shape != distances.shape or hidden.dtype != torch.bool:
        raise ShapeError(
            f"patch_loss: `hidden` does not fit the patches. Got {hidden.dtype} "
            f"{tuple(hidden.shape)}; expected torch.bool {tuple(distances.shape)}."
        )
    # A weighted mean and not `distances[hidden]`: boolean indexing asks the device how many are
    # True, and the step must not wait for the device.
    weight = hidden.to(distances.dtype)
    if hidden_count is None:
        hidden_count = weight.sum()
    return (distances * weight).sum() / hidden_count.to(weight).clamp(min=1e-9)
