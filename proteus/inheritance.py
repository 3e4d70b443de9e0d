"""select_weights: start a smaller transformer from evenly chosen weights of a larger one."""

from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .features import ShapeError
from .student import Student
from .teacher import Teacher
from .traits import Trait

Heads = Literal["elements", "whole"]

# Dimensions that count pixels, tokens or classes, not channels: there is no half of a picture.
_WHOLE = {
    "patch_embed.proj.weight": (1, 2, 3),
    "pos_embed": (1,),
    "reg_token": (1,),
    "head.weight": (0,),
    "head.bias": (0,),
}
# Of the teacher alone: its classifier, and a token of its training.
_LEFT_OUT = ("head.", "mask_token")


class Inherited(NamedTuple):
    """What a student got from its teacher.

    Attributes:
        copied: Names of the tensors taken as they are.
        selected: Names of the tensors of which a part was taken.
        layers: Blocks of the student and of the teacher; the student has the first ones.
    """

    copied: tuple[str, ...]
    selected: tuple[str, ...]
    layers: tuple[int, int]


@runtime_checkable
class _Transformer(Trait, Protocol):
    """timm's ViT and EVA / DINOv3: a row of equal blocks."""

    blocks: Any
    embed_dim: int


def select_weights(
    student: nn.Module, teacher: nn.Module, *, heads: Heads = "elements"
) -> Inherited:
    """Fill a smaller transformer with weights of a larger one of the same family, in place.

    The student gets the teacher's first blocks, and of every tensor evenly spaced elements in each
    dimension: element i of m is the teacher's number `i * n // m` of n. Query, key and value are
    chosen from separately and alike, so they stay together, and so do an attention's output and the
    layer that reads it. Where sizes are equal, everything is copied. If anything does not fit,
    nothing is changed.

    Args:
        student: timm `VisionTransformer` or `Eva`, or a `Student` with one.
        teacher: Of the same class, or a `Teacher` with one. It is not changed.
        heads: "elements" = evenly spaced channels of all heads, the method as published: a head
            of the student is a mix of neighbouring heads of the teacher. "whole" = evenly spaced
            heads, each with all of its channels; both must have heads of one width.

    Returns:
        Which tensors were copied and which selected.

    Raises:
        ShapeError: If a tensor of the student has no counterpart it can be chosen from; the
            message names it.
        ValueError: If the two are not of one family, or the teacher has parts that the student
            lacks.

    Examples:
        >>> teacher = Teacher("vit_small_patch16_224", pretrained=False, image_size=32)
        >>> student = Student("vit_tiny_patch16_224", image_size=32)
        >>> inherited = select_weights(student, teacher)
        >>> inherited.layers, len(inherited.copied), len(inherited.selected)
        ((12, 12), 0, 150)
        >>> weight = teacher.backbone.patch_embed.proj.weight[::2]
        >>> torch.equal(student.backbone.patch_embed.proj.weight, weight)
        True

    Source:
        Proteus (ICLR 2025), A.2, Tables 11-13 (there it does not help); Xu et al., "Initializing
        models with larger ones" (ICLR 2024), and their `weight_selection.py`.
        *Same:* first blocks, evenly spaced elements; equal tensors where the sizes divide.
        *Different:* sizes that do not divide work (their code asks for element n of n); a
        classifier of the student is filled too; other patch sizes or grids are errors (theirs
        would pick every other pixel and position).
    """
    ours, theirs = _plain(student), _plain(teacher)
    if not isinstance(ours, _Transformer) or type(ours) is not type(theirs):
        raise ValueError(
            f"select_weights: student and teacher are not of one family. Got "
            f"{type(ours).__name__} and {type(theirs).__name__}; expected two timm "
            f"VisionTransformer, or two Eva."
        )
    assert isinstance(theirs, _Transformer)
    if heads not in ("elements", "whole"):
        raise ValueError(f"select_weights: got heads={heads!r}; expected 'elements' or 'whole'.")
    layers = (len(ours.blocks), len(theirs.blocks))
    width = _head_width(ours, theirs) if heads == "whole" else None
    wanted, given = ours.state_dict(), theirs.state_dict()
    _check_parts(wanted, given, layers)
    chosen = {name: _select(name, tensor, given, wanted, width) for name, tensor in wanted.items()}
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(chosen[name])
    equal = {name for name in wanted if wanted[name].shape == given[name].shape}
    return Inherited(
        tuple(name for name in wanted if name in equal),
        tuple(name for name in wanted if name not in equal),
        layers,
    )


def _plain(model: nn.Module) -> nn.Module:
    return model.backbone if isinstance(model, Student | Teacher) else model


def _head_width(ours: _Transformer, theirs: _Transformer) -> int:
    """Channels of a head, where they are the same in both."""
    widths = [model.embed_dim // model.blocks[0].attn.num_heads for model in (ours, theirs)]
    if widths[0] != widths[1]:
        raise ShapeError(
            f"select_weights: heads differ in width. Got {widths[0]} channels in the student's and "
            f"{widths[1]} in the teacher's; expected equal widths. Use heads='elements'."
        )
    return int(widths[0])


def _check_parts(
    wanted: dict[str, Tensor], given: dict[str, Tensor], layers: tuple[int, int]
) -> None:
    missing = [name for name in wanted if name not in given]
    if missing:
        raise ShapeError(
            f"select_weights: the teacher has nothing for {len(missing)} tensors of the student. "
            f"Got blocks {layers[1]} and {layers[0]}, and no {', '.join(missing[:5])}; expected a "
            f"teacher with at least the student's layers and parts."
        )
    deeper = tuple(f"blocks.{n}." for n in range(*layers))
    left = [
        name for name in given if name not in wanted and not name.startswith((*deeper, *_LEFT_OUT))
    ]
    if left:
        raise ValueError(
            f"select_weights: the teacher has parts that the student lacks. Got "
            f"{', '.join(left[:5])}; expected a student of the same design (registers, LayerScale, "
            f"position table and norms)."
        )


def _select(
    name: str,
    like: Tensor,
    given: dict[str, Tensor],
    wanted: dict[str, Tensor],
    head_width: int | None,
) -> Tensor:
    """The student's share of one of the teacher's tensors."""
    source = given[name]
    kept = _WHOLE.get(name, ())
    fits = source.ndim == like.ndim and all(
        m == n if dim in kept else m <= n
        for dim, (m, n) in enumerate(zip(like.shape, source.shape, strict=False))
    )
    parts = _parts(name, given)
    if not fits or parts != _parts(name, wanted):
        raise ShapeError(
            f"select_weights: {name} does not fit. Got {tuple(source.shape)} in the teacher for "
            f"{tuple(like.shape)} in the student; expected at least as many channels, and the same "
            f"patch size, grid, registers, classes and kind of layer. Build both at one image size."
        )
    for dim, (m, n) in enumerate(zip(like.shape, source.shape, strict=True)):
        if m == n:
            continue
        sections = parts if dim == 0 else 1
        by_head = head_width is not None and (
            (dim == 0 and ".attn." in name and (sections > 1 or name.endswith("_bias")))
            or (dim == 1 and name.endswith(".attn.proj.weight"))
        )
        group = head_width if by_head and head_width is not None else 1
        source = source.index_select(dim, _spread(m, n, sections, group).to(source.device))
    return source


def _parts(name: str, tensors: dict[str, Tensor]) -> int:
    """How many layers of equal size lie one after the other in the rows of a tensor."""
    owner = name.rpartition(".")[0]
    if owner.endswith(".qkv"):
        return 3
    if owner.endswith(".kv"):
        return 2
    if owner.endswith(".mlp.fc1"):
        # A gated layer (SwiGLU) makes gate and value in one product: twice what fc2 reads.
        reads = tensors[owner.removesuffix("1") + "2.weight"].shape[1]
        return tensors[name].shape[0] // reads
    return 1


def _spread(m: int, n: int, sections: int = 1, group: int = 1) -> Tensor:
    """Evenly spaced m of n, in each of the sections alike, in groups that stay together."""
    few, many = m // (sections * group), n // (sections * group)
    first = torch.arange(few) * many // few * group
    inside = (first[:, None] + torch.arange(group)).flatten()
    return (torch.arange(sections)[:, None] * (n // sections) + inside).flatten()
