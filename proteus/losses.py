"""`ProteusLoss`: the weighted sum of the three distances of the paper.

| word    | compares                         | heads used                     |
| ------- | -------------------------------- | ------------------------------ |
| token   | class tokens                     | `token_head`                   |
| feature | all tokens, both models see them | `token_head`, `feature_head`   |
| patch   | patches hidden from the student  | `patch_head`                   |
"""

from typing import NamedTuple, cast

from torch import Tensor, nn

from .distances import (
    Distance,
    at_least_float32,
    check_distance,
    feature_loss,
    patch_loss,
    token_distance,
    token_loss,
)
from .features import Features, ShapeError
from .heads import Design, ProjectionHead, Width, width_of, widths_of
from .ranges import check_numbers
from .target_maps import TargetMaps, Targets
from .token_queue import TokenDistance, make_queue

__all__ = [
    "Distance",
    "Losses",
    "ProteusLoss",
    "TokenDistance",
    "feature_loss",
    "grids_differ",
    "patch_loss",
    "token_distance",
    "token_loss",
    "width_of_features",
]


class Losses(NamedTuple):
    """The result of `ProteusLoss`: scalars, float32 (float64 for float64 input).

    Attributes:
        total: Weighted sum; the one to call `.backward()` on. With `targets="angle"` it has the
            map's own cost in it, which teaches the map alone.
        token: Class-token term, unweighted. Zero when its weight is zero.
        feature: All-tokens term, unweighted. Zero when its weight is zero.
        patch: Hidden-patches term, unweighted. Zero when its weight is zero or nothing is hidden.
    """

    total: Tensor
    token: Tensor
    feature: Tensor
    patch: Tensor


class ProteusLoss(nn.Module):
    """The weighted sum of the three terms, with the heads that belong to them.

    Heads exist only where they are used: a term of weight 0 is not computed and costs nothing.
    `token_head` projects the class token for the token *and* the feature term, as in the authors'
    code, so it exists if either weight is not 0.

    Args:
        student_dim: Student width Ds; a pair (of the class token, of patches) where the two differ,
            as in the stages of a CNN.
        teacher_dim: Teacher width Dt, likewise.
        token: Weight of the class-token term, >= 0.
        feature: Weight of the all-tokens term, >= 0.
        patch: Weight of the hidden-patches term, >= 0.
        head: Design of the heads, see `ProjectionHead`.
        distance: `mse` (the paper's) or another of `proteus.distances`.
        token_distance: Of the token term alone; None = as `distance`, or `queue`, see
            `proteus.token_queue`. The class row of the feature term keeps `distance`.
        queue_size: Tokens of the queue; None = 4096.
        temperature: Of the queue's distributions; None = 0.07.
        targets: What the student matches: the teacher's tokens `raw`, or by another map of
            `proteus.target_maps`. `angle` maps to the student's width: it takes `head="identity"`.

    Raises:
        ValueError: If a weight is negative or all are 0; if a name is unknown, a width is none, or
            a setting would be ignored.

    Examples:
        >>> from proteus import Features
        >>> student = Features(torch.zeros(2, 4), torch.zeros(2, 9, 4), (3, 3))
        >>> teacher = Features(torch.zeros(2, 6), torch.zeros(2, 9, 6), (3, 3))
        >>> losses = ProteusLoss(4, 6, patch=0)(student, teacher)
        >>> losses.total.shape, losses.patch.item()
        (torch.Size([]), 0.0)

    Source:
        Proteus (ICLR 2025), Eq. 8; `pretrain/models_proteus_dinov2.py:132-170`, `main.py:220-222`.
        *Same:* weights 1, 1, 1; the class row of the feature term is the token head's output.
        *Different:* terms of weight 0 have no head and are not computed.
    """

    def __init__(
        self,
        student_dim: Width,
        teacher_dim: Width,
        *,
        token: float = 1.0,
        feature: float = 1.0,
        patch: float = 1.0,
        head: Design = "ln_linear",
        distance: Distance = "mse",
        token_distance: TokenDistance | None = None,
        queue_size: int | None = None,
        temperature: float | None = None,
        targets: Targets = "raw",
    ) -> None:
        super().__init__()
        weights = {"token": token, "feature": feature, "patch": patch}
        check_numbers("ProteusLoss", weights)
        if not sum(weights.values()) > 0:
            raise ValueError(
                f"ProteusLoss: weights must be >= 0 and not all 0. Got {weights}; "
                f"expected for example token=1, feature=1, patch=1."
            )
        check_distance(distance)
        ours, theirs = widths_of(student_dim), widths_of(teacher_dim)
        self.student_dim, self.teacher_dim = width_of(*ours), width_of(*theirs)
        self.token, self.feature, self.patch = token, feature, patch
        self.distance: Distance = distance
        self.head: Design = head
        self.targets: Targets = targets
        self.token_distance = token_distance
        self.queue_size, self.temperature = queue_size, temperature
        self._check_settings()
        self.maps: TargetMaps | None = None
        if targets != "raw":
            cls, patches = bool(token or feature), bool(feature or patch)
            self.maps = TargetMaps(targets, theirs, ours, cls=cls, patches=patches)
        if targets == "angle":
            theirs = ours
        self.queue = make_queue(
            token_distance, theirs[0], queue_size=queue_size, temperature=temperature
        )
        self.token_head = self.feature_head = self.patch_head = None
        if token or feature:
            self.token_head = ProjectionHead(ours[0], theirs[0], head)
        if feature:
            self.feature_head = ProjectionHead(ours[1], theirs[1], head)
        if patch:
            self.patch_head = ProjectionHead(ours[1], theirs[1], head)

    def _check_settings(self) -> None:
        if self.token_distance is not None and not self.token:
            raise ValueError(
                f"ProteusLoss: token_distance would be ignored. Got {self.token_distance!r} with "
                f"token=0; leave it out, or set token > 0."
            )
        if self.targets == "angle" and self.head != "identity":
            raise ValueError(
                f"ProteusLoss: targets='angle' maps the teacher to the student's width, and there "
                f"is no head. Got head={self.head!r}; expected head='identity'."
            )

    def forward(
        self,
        student: Features,
        teacher: Features,
        masked: Features | None = None,
        hidden: Tensor | None = None,
        *,
        images: Tensor | slice | None = None,
        hidden_count: Tensor | None = None,
    ) -> Losses:
        """Compare student and teacher.

        Args:
            student: Student features of the whole images, width Ds.
            teacher: Teacher features of the same images, width Dt.
            masked: Student features of the masked view: of all B images, or of b of them.
            hidden: bool, [B, N]: True = hidden from the student in the masked view.
            images: Which of the B images `masked` holds (a slice or an index tensor [b]);
                None = all.
            hidden_count: See `patch_loss`.

        Returns:
            `Losses`; the three terms are not yet multiplied by their weights.

        Raises:
            ShapeError: If widths, grids or masks do not fit.
            ValueError: If the patch term is on without a masked view, or the reverse.
        """
        self._check(student, teacher, masked, hidden)
        target, cost = (teacher, 0.0) if self.maps is None else self.maps(teacher)
        token = feature = patch = target.cls.new_zeros(
            (), dtype=at_least_float32(target.cls[:0]).dtype
        )
        if self.token_head is not None:
            projected = self.token_head(student.cls)
            class_term = token_loss(projected, target.cls, self.distance)
            if self.token:
                token = self._token_term(projected, target.cls, class_term)
            if self.feature_head is not None:
                # = feature_loss(cat(cls, patches)): the class row is the token term, computed once.
                count = student.patches.shape[1]
                rest = token_distance(
                    self.feature_head(student.patches), target.patches, self.distance
                ).mean()
                feature = (class_term + count * rest) / (1 + count)
        if self.patch_head is not None:
            assert masked is not None  # _check saw to it
            assert hidden is not None
            chosen = slice(None) if images is None else images
            patch = patch_loss(
                self.patch_head(masked.patches),
                target.patches[chosen],
                hidden[chosen],
                self.distance,
                hidden_count,
            )
        total = self.token * token + self.feature * feature + self.patch * patch
        return Losses(total + cost, token, feature, patch)

    def _token_term(self, student: Tensor, teacher: Tensor, class_term: Tensor) -> Tensor:
        if self.queue is not None:
            return cast("Tensor", self.queue(student, teacher)).mean()
        if self.token_distance is None:
            return class_term
        return token_loss(student, teacher, cast("Distance", self.token_distance))

    def fits(self, student: Width, teacher: Width) -> bool:
        """Whether its heads were built for these widths; of patches only where a term uses them."""
        used = slice(None) if self.feature or self.patch else slice(1)
        own, given = (self.student_dim, self.teacher_dim), (student, teacher)
        return [widths_of(one)[used] for one in own] == [widths_of(one)[used] for one in given]

    def project(self, student: Features) -> Features:
        """Student features in the teacher's space, by the heads of the feature term.

        Standardised and turned targets are brought back, so they are to be compared with the
        teacher's features as they are. With `targets="angle"` the student stays in its own space,
        and is to be compared with what `target` gives.

        Raises:
            ValueError: If the feature term is off and there is no head to project patches with.
        """
        if self.token_head is None or self.feature_head is None:
            raise ValueError("ProteusLoss: nothing to project with. Got feature=0; expected > 0.")
        cls, patches = self.token_head(student.cls), self.feature_head(student.patches)
        if self.maps is not None:
            cls, patches = self.maps.restore_cls(cls), self.maps.restore_patches(patches)
        return Features(cls, patches, student.grid)

    def target(self, teacher: Features) -> Features:
        """Teacher features in the space that `project` gives: as they are, but for `angle`."""
        if self.maps is None or self.targets != "angle":
            return teacher
        return cast("Features", self.maps(teacher)[0])

    def pairs(self, student: Features, teacher: Features) -> dict[str, tuple[Tensor, Tensor]]:
        """Whatever can be compared, in one space: `cls` and `patch`, each student and teacher.

        Args:
            student: Student features as they are.
            teacher: Teacher features of the same images, wherever they are.

        Returns:
            As far as there are heads (patches by the feature head, or by the patch head where there
            is no other) and, for patches, equal grids.
        """
        # Where the heads are and in their precision, which may be wider than the student's.
        like = next(self.parameters(), student.cls)
        on = like.device
        target = self.target(Features(teacher.cls.to(on), teacher.patches.to(on), teacher.grid))
        maps, found = self.maps, {}
        if self.token_head is not None:
            cls = self.token_head(student.cls.to(like))
            found["cls"] = cls if maps is None else maps.restore_cls(cls), target.cls
        head = self.patch_head if self.feature_head is None else self.feature_head
        if head is not None and student.grid == teacher.grid and student.patches.shape[1]:
            patches = head(student.patches.to(like))
            found["patch"] = (
                patches if maps is None else maps.restore_patches(patches),
                (target.patches),
            )
        return found

    def _check(
        self,
        student: Features,
        teacher: Features,
        masked: Features | None,
        hidden: Tensor | None,
    ) -> None:
        if (masked is None) != (hidden is None):
            raise ValueError(
                "ProteusLoss: `masked` and `hidden` belong together. Got only one; pass both."
            )
        if bool(self.patch) != (masked is not None):
            raise ValueError(
                f"ProteusLoss: patch weight and masked view do not fit. Got patch={self.patch} "
                f"and masked={'features' if masked is not None else None}; pass `masked` and "
                f"`hidden`, or build ProteusLoss(..., patch=0)."
            )
        widths = width_of_features(student), width_of_features(teacher)
        if not self.fits(*widths):
            raise ShapeError(
                f"ProteusLoss: widths differ from the ones it was built for. Got student, teacher "
                f"{widths}; expected {(self.student_dim, self.teacher_dim)}. "
                f"Build ProteusLoss{widths}."
            )
        if (self.feature or self.patch) and student.grid != teacher.grid:
            raise ShapeError(grids_differ("ProteusLoss", student.grid, teacher.grid))
        if hidden is not None and hidden.shape != teacher.patches.shape[:2]:
            raise ShapeError(
                f"ProteusLoss: `hidden` has the wrong shape. Got {tuple(hidden.shape)}; expected "
                f"[images, patches] = {tuple(teacher.patches.shape[:2])}."
            )


def width_of_features(features: Features) -> Width:
    """The width of the features, or (of the class token, of patches) where the two differ."""
    return width_of(features.cls.shape[-1], features.patches.shape[-1])


def grids_differ(subject: str, student: tuple[int, int], teacher: tuple[int, int]) -> str:
    """The message for unequal patch grids, said in the same words wherever it is noticed."""
    return (
        f"{subject}: student and teacher patch grids differ. Got student {student[0]}x{student[1]} "
        f"and teacher {teacher[0]}x{teacher[1]}; expected equal grids. Build one model with "
        f"grid={student}, bring both to one grid with proteus.grids.meet, or compare class tokens "
        f"only with ProteusLoss(..., feature=0, patch=0)."
    )
