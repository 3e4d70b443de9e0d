"""What the student is to match: the teacher's tokens as they are, or mapped, by name.

| targets        | of a teacher token t                                                        |
| -------------- | --------------------------------------------------------------------------- |
| `raw`          | t                                                                           |
| `standardized` | (t - mean) / std, of each dimension                                         |
| `phi_s`        | R (t - mean) / s: one scale s for all, turned so that dimensions vary alike |
| `angle`        | W t, in the student's width; W keeps the cosines between tokens             |

Class tokens and patches have a map each. Its state is in buffers and parameters, so checkpoints
hold it. Mean and std are those of all teacher tokens seen in training, each counted once, whatever
parts and processes shared a step: processes add up their sums in each forward, which all of them
must make in training. Within a step, the first of several accumulated parts is mapped by what was
seen until then. In eval nothing is counted.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from .distances import at_least_float32, similarities
from .features import Features
from .hadamard import even_rotation
from .world import add_up

Targets = Literal["raw", "standardized", "phi_s", "angle"]

_EPS = 1e-6  # of a variance: a dimension that never moves is not blown up


def check_targets(name: str) -> None:
    """Refuse what is no name of a map.

    Raises:
        ValueError: If it is none.
    """
    if name not in get_args(Targets):
        raise ValueError(
            f"loss: unknown targets. Got {name!r}; expected one of {', '.join(get_args(Targets))}."
        )


class Standardized(nn.Module):
    """Mean 0 and std 1 in each dimension, by the statistics of all tokens seen in training.

    Before the first forward in training it changes nothing.

    Args:
        width: D.

    Attributes:
        mean: [D].
        variance: [D].
        count: Tokens seen, a scalar.

    Examples:
        >>> scale = Standardized(3)
        >>> _ = scale(torch.randn(100, 3) * 5 + 2)
        >>> tokens = scale.eval()(torch.full((1, 3), 2.0))
        >>> bool(tokens.abs().max() < 0.5), torch.allclose(scale.restore(tokens), torch.tensor(2.0))
        (True, True)

    Source:
        Theia (Shang et al., CoRL 2024); "Standardize" of PHI-S (Ranzinger et al., ICLR 2025).
        *Different:* the statistics run on in training, where both measure them before it.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, tokens: Tensor) -> Tensor:
        """Teacher tokens [..., D] to targets [..., D]; in training they are counted first."""
        tokens = at_least_float32(tokens)
        if self.training:
            self._count(tokens.detach().flatten(0, -2))
        return self._turn((tokens - self.mean) / self._scale())

    def restore(self, targets: Tensor) -> Tensor:
        """Targets [..., D] back to the teacher's space."""
        return self._turn_back(targets) * self._scale() + self.mean

    def _scale(self) -> Tensor:
        return (self.variance + _EPS).sqrt()

    def _turn(self, tokens: Tensor) -> Tensor:
        return tokens

    def _turn_back(self, targets: Tensor) -> Tensor:
        return targets

    def _count(self, tokens: Tensor) -> None:
        """Take in tokens [M, D]: the mean and variance of these and all before."""
        away = tokens - self.mean  # or the squares would swallow a small variance
        ones = away.new_full((1, away.shape[1]), len(away))
        sums = add_up(torch.cat([away.sum(0)[None], away.square().sum(0)[None], ones]))
        count, shift = sums[2], sums[0] / sums[2]
        variance = (sums[1] / count - shift.square()).clamp(min=0)
        share = count / (self.count + count)
        self.variance.mul_(1 - share).add_(share * (variance + (1 - share) * shift.square()))
        self.mean.add_(share * shift)
        self.count.add_(count[0])


class PhiS(Standardized):
    """One scale for all dimensions, in a basis in which they vary alike: PHI-S.

    The basis is the principal axes of the first training step's tokens, turned by a Hadamard matrix
    (`proteus.hadamard`): each new dimension gets an equal part of every axis. It stays as it is
    from then on, since a basis that moved would move what the student has learned; mean and scale
    run on. So dimensions vary exactly alike over the first step, and about alike later.

    Args:
        width: D. Where no Hadamard matrix of that width is found the rotation is a random one, and
            dimensions vary alike on average only; see `even_rotation`.

    Attributes:
        rotation: [D, D].

    Examples:
        >>> tokens = torch.randn(500, 4) @ torch.randn(4, 4) + 3
        >>> turned = PhiS(4)(tokens)
        >>> torch.allclose(turned.std(0, correction=0), torch.ones(4), atol=1e-3)
        True

    Source:
        PHI-S (Ranzinger et al., ICLR 2025), used by AM-RADIO v2.5; `examples/common/phi_s.py`.
        *Same:* H U^T (t - mean) / root of the mean variance, U the eigenvectors of the covariance.
        *Different:* U is of the first step's tokens and mean and scale run on, where the paper
        measures all three before training.
    """

    rotation: Tensor

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.register_buffer("rotation", torch.eye(width))
        self._looked = False

    def _scale(self) -> Tensor:
        return (self.variance.mean() + _EPS).sqrt()

    def _turn(self, tokens: Tensor) -> Tensor:
        with torch.autocast(tokens.device.type, enabled=False):
            return tokens @ self.rotation.to(tokens.dtype).mT

    def _turn_back(self, targets: Tensor) -> Tensor:
        with torch.autocast(targets.device.type, enabled=False):
            return at_least_float32(targets) @ self.rotation.to(at_least_float32(targets).dtype)

    def _count(self, tokens: Tensor) -> None:
        if not self._looked:  # once a process: to read the count makes the host wait
            self._looked = True
            if not self.count.item():
                self._choose_rotation(tokens)
        super()._count(tokens)

    def _choose_rotation(self, tokens: Tensor) -> None:
        # On the CPU: MPS has neither float64 nor eigenvectors.
        mine = tokens.cpu().double()
        outer = torch.cat([mine.mT @ mine, mine.sum(0)[None]])
        count = tokens.new_full((1, tokens.shape[1]), len(tokens))
        sums = add_up(torch.cat([outer.to(tokens), count])).cpu().double()
        mean = sums[-2] / sums[-1]
        axes = torch.linalg.eigh(sums[:-2] / sums[-1] - mean[:, None] * mean).eigenvectors
        self.rotation.copy_(even_rotation(tokens.shape[1]) @ axes.mT)


class AnglePreserving(nn.Module):
    """A linear map to the student's width that learns to keep the cosines between tokens.

    It starts as a random orthogonal map. `cost` is the mean squared difference between the cosines
    before and after: between the class tokens of the images that a process has at once, and
    between the patches of each image. Its gradient reaches the map alone and the student's does
    not reach it, so both learn at once without a bargain between them. There is no head: the
    student itself lives in the mapped space. Lengths are free; `distance="cosine"` fits best.

    Args:
        teacher_dim: Dt.
        student_dim: Ds.

    Examples:
        >>> angles = AnglePreserving(8, 4)
        >>> tokens = torch.randn(16, 8)
        >>> angles(tokens).shape, angles.cost(tokens, angles(tokens)).shape
        (torch.Size([16, 4]), torch.Size([]))

    Source:
        After CosPress (Mannix et al., "Preserving angles improves feature distillation", TMLR
        2025).
        *Same:* a learned map of the teacher to the student's width, by which cosines stay, and a
        student that matches it without a head.
        *Different:* the map's objective is the squared difference of cosines, written from the
        paper's idea and not from its code; one map for class tokens and one for patches.
    """

    def __init__(self, teacher_dim: int, student_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(teacher_dim, student_dim, bias=False)
        nn.init.orthogonal_(self.linear.weight, max(teacher_dim / student_dim, 1) ** 0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Teacher tokens [..., Dt] to [..., Ds]; of the parameters, so detach it as a target."""
        with torch.autocast(tokens.device.type, enabled=False):
            mapped: Tensor = self.linear(at_least_float32(tokens))
        return mapped

    @staticmethod
    def cost(tokens: Tensor, mapped: Tensor) -> Tensor:
        """Mean squared change of the cosines: [..., N, Dt], [..., N, Ds] -> a scalar."""
        return (similarities(mapped) - similarities(tokens)).square().mean()


class TargetMaps(nn.Module):
    """The maps of a loss: one for class tokens, one for patches.

    Args:
        targets: Name of the map, not `raw`.
        teacher_dims: Widths of the teacher's class token and patches.
        student_dims: The student's.
        cls: Whether a term uses class tokens.
        patches: Whether a term uses patches.

    Raises:
        ValueError: If the name is unknown.
    """

    def __init__(
        self,
        targets: Targets,
        teacher_dims: tuple[int, int],
        student_dims: tuple[int, int],
        *,
        cls: bool,
        patches: bool,
    ) -> None:
        super().__init__()
        check_targets(targets)
        pairs = list(zip(teacher_dims, student_dims, strict=True))
        self.cls = _make_map(targets, *pairs[0]) if cls else None
        self.patches = _make_map(targets, *pairs[1]) if patches else None

    def forward(self, teacher: Features) -> tuple[Features, Tensor]:
        """Teacher features to targets, and what the maps themselves are to lower."""
        cls, patches = teacher.cls, teacher.patches
        cost = cls.new_zeros((), dtype=at_least_float32(cls[:0]).dtype)
        if self.cls is not None:
            cls = self.cls(cls)
            if isinstance(self.cls, AnglePreserving):
                cost = cost + self.cls.cost(teacher.cls, cls)
        if self.patches is not None:
            patches = self.patches(patches)
            if isinstance(self.patches, AnglePreserving):
                cost = cost + self.patches.cost(teacher.patches, patches)
        return Features(cls.detach(), patches.detach(), teacher.grid), cost

    def restore_cls(self, tokens: Tensor) -> Tensor:
        """Projected class tokens in the teacher's space, or, for `angle`, as they are."""
        return self.cls.restore(tokens) if isinstance(self.cls, Standardized) else tokens

    def restore_patches(self, tokens: Tensor) -> Tensor:
        """Projected patches, likewise."""
        return self.patches.restore(tokens) if isinstance(self.patches, Standardized) else tokens


def _make_map(targets: Targets, teacher_dim: int, student_dim: int) -> nn.Module:
    if targets == "angle":
        return AnglePreserving(teacher_dim, student_dim)
    return PhiS(teacher_dim) if targets == "phi_s" else Standardized(teacher_dim)
