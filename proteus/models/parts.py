"""Parts of a model by their names: which a pattern means, and how deep each lies."""

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, Protocol, runtime_checkable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..traits import Trait
from ..words import nearest

_EMBEDDINGS = ("patch_embed.", "pos_embed", "cls_token", "reg_token", "mask_token")


@runtime_checkable
class _Grouped(Trait, Protocol):
    """timm's models, which tell their layers from the stem up."""

    def group_matcher(self, coarse: bool = False) -> Mapping[str, Any]: ...


def names_of(patterns: Iterable[str], names: Iterable[str]) -> set[str]:
    """The names that patterns mean.

    Args:
        patterns: With `*`, `?` and `[0-5]`, for one character; upper and lower case differ.
        names: Of parameters.

    Raises:
        ValueError: If a pattern means none of them.

    Examples:
        >>> sorted(names_of(["blocks.[0-1].*"], ["blocks.0.w", "blocks.1.w", "blocks.2.w"]))
        ['blocks.0.w', 'blocks.1.w']
    """
    names, found = list(names), set[str]()
    for pattern in patterns:
        meant = {name for name in names if fnmatchcase(name, pattern)}
        if not meant:
            raise ValueError(
                f"frozen: no such parameter. Got {pattern!r}; expected a pattern of the student's "
                f"names, such as 'patch_embed.*' or 'blocks.[0-5].*'. {nearest(pattern, names)}"
            )
        found |= meant
    return found


def batch_norms(model: nn.Module, frozen: Iterable[str]) -> Iterator[tuple[str, nn.Module]]:
    """Names and layers of batch norm that are frozen whole: both of their parameters are."""
    frozen = set(frozen)
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            own = {f"{name}.{end}" if name else end for end, _ in module.named_parameters()}
            if own and own <= frozen:
                yield name, module


def has_blocks(model: nn.Module) -> bool:
    """Whether a model is a row of `blocks`, as transformers are."""
    return any(name.startswith("blocks.") for name, _ in model.named_parameters())


def layer_rates(model: nn.Module, decay: float) -> dict[nn.Parameter, float]:
    """The factor on the learning rate of each parameter, falling from the top of a model down.

    Of a transformer with n blocks, the final norm has 1, block i has `decay ** (n - i)`, and
    embeddings and tokens have `decay ** (n + 1)`. Of other timm models, timm's groups of layers
    have `decay`, `decay ** 2`, … from the last to the stem.

    Args:
        model: A plain model, without heads; what is built on it has 1.
        decay: In (0, 1].

    Raises:
        ValueError: If the model's layers are not known.

    Source:
        BEiT `optim_factory.py` (as in mmseg's `LayerDecayOptimizerConstructor`, and DINOv2's
        training); timm `param_groups_layer_decay`.
        *Same:* factors of a transformer; timm's groups.
        *Different:* register tokens count as embeddings; timm counts from a model's last group, and
        here the heads of the distillation are above it.
    """
    named = dict(model.named_parameters())
    embeds = any(name.startswith("patch_embed.") for name in named)
    if isinstance(model, _Grouped) and not (has_blocks(model) and embeds):
        from timm.models import group_parameters

        layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
        above = max(layers.values()) + 1
        return {named[name]: decay ** (above - layer) for name, layer in layers.items()}
    if not has_blocks(model):
        raise ValueError(
            f"layer_decay: the layers of the model are not known. Got {type(model).__name__}; "
            f"expected a transformer with `blocks`, or a timm model. Leave layer_decay out for one "
            f"learning rate."
        )
    top = 2 + max(int(name.split(".")[1]) for name in named if name.startswith("blocks."))
    return {p: decay ** (top - _depth_of(name, top)) for name, p in named.items()}


def _depth_of(name: str, top: int) -> int:
    if name.startswith(_EMBEDDINGS):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else top
