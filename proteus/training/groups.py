"""Which parameters decay, and which learn slower."""

from collections.abc import Collection, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import nn

from ..traits import Trait

TOKENS = ("pos_embed", "cls_token", "reg_token", "dist_token", "mask_token", "register_tokens")


@runtime_checkable
class _NamesUndecayed(Trait, Protocol):
    def no_weight_decay(self) -> set[str]: ...


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    undecayed: Collection[str] | None = None,
    rates: Mapping[nn.Parameter, float] | None = None,
) -> list[dict[str, Any]]:
    """Two groups for AdamW: matrices, which decay, and all else, which does not.

    Parameters with another rate than 1 are in further groups. A group's is its `lr_scale`, for the
    loop to multiply the learning rate with.

    Biases, norms and LayerScale (at most one dimension) are never decayed.

    Args:
        model: A `Distiller`, or any module.
        weight_decay: Of the first group.
        undecayed: Last parts of further parameters' names that are not decayed. None = class,
            register and mask tokens, positions, and what the timm model lists itself. `()` = no
            others, which is what the authors' code does.
        rates: Factors on the learning rate, see `proteus.models.parts.layer_rates`; 1 for the rest.

    Raises:
        ValueError: If no parameter has a name in `undecayed`.

    Source:
        DeiT `main.py` (`no_weight_decay`); timm `param_groups_weight_decay`.
        *Same:* with `undecayed=()`, the groups of the authors' code, which decays positions, class
        and mask token because its wrapper hides the model's own list. CLIP's class token is a
        vector there and so not decayed: `undecayed=("cls_token",)`.
        *Different:* by default, positions and tokens are not decayed.
    """
    listed = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if undecayed is None and isinstance(module, _NamesUndecayed)
        for name in module.no_weight_decay()
    }
    ends = TOKENS if undecayed is None else tuple(undecayed)
    # In this order: sums over all parameters, such as the gradient's norm, follow it.
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, False): [], (1.0, True): []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        end = name.rsplit(".", 1)[-1]
        spare = parameter.ndim <= 1 or end == "bias" or name in listed or end in ends
        key = ((rates or {}).get(parameter, 1.0), spare)
        groups.setdefault(key, []).append(parameter)
    ends_seen = {name.rsplit(".", 1)[-1] for name, _ in model.named_parameters()}
    if undecayed is not None and not set(ends) <= ends_seen:
        raise ValueError(
            f"undecayed: no such parameter. Got {sorted(set(ends) - ends_seen)}; expected last "
            f"parts of names, such as 'pos_embed'."
        )
    return [
        {"params": found, "weight_decay": 0.0 if spare else weight_decay, "lr_scale": rate}
        for (rate, spare), found in groups.items()
    ]
