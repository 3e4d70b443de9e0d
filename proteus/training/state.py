"""What a checkpoint holds of a run in progress, out of the engine's parts and back into them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..world import World
from .ema import Ema
from .parallel import shared_like, whole


class EngineState(NamedTuple):
    """What a checkpoint holds of an engine: named tensors in named files, and plain facts."""

    tensors: dict[str, dict[str, Tensor]]
    facts: dict[str, Any]


def collect(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    ema: Ema | None,
    world: World,
) -> EngineState:
    """Everything that a resumed run needs; whole tensors on the CPU of the first process.

    All processes must call it together. What computes on the CPU is handed out itself, not a copy:
    the next step changes it.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: Any = get_model_state_dict(model, options=options)
    # Not torch's `get_optimizer_state_dict`: before the first step, which fp16 may skip several
    # times, it takes one to have moments to show, and the run would go on differently.
    moments = {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    tensors = {"weights": dict(weights), "optimizer": _gathered(moments, world)}
    if ema is not None:
        tensors["ema"] = _gathered(ema.tensors, world)
    return EngineState(tensors, {"scaler": scaler.state_dict()})


def restore(
    state: EngineState,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    ema: Ema | None,
) -> None:
    """Take over a saved state; all processes must call it together, each with the whole of it.

    Raises:
        ValueError: If the tensors do not fit the model.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    missing = [name for name in ("weights", "optimizer") if name not in state.tensors]
    if missing:
        raise ValueError(f"it holds no {' and no '.join(missing)}.")
    if ("ema" in state.tensors) != (ema is not None):
        raise ValueError("ema: the checkpoint and the run differ in whether they keep one.")
    weights, own = state.tensors["weights"], model.state_dict()
    # With `full_state_dict`, torch takes missing tensors from the model, however strict it is.
    if own.keys() != weights.keys():
        raise ValueError(
            f"it belongs to another student or loss. Missing: "
            f"{', '.join(sorted(own.keys() - weights.keys())) or 'nothing'}; left over: "
            f"{', '.join(sorted(weights.keys() - own.keys())) or 'nothing'}."
        )
    try:
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(model, dict(weights), options=options)
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"it belongs to another student or loss. {error}") from error
    _load_moments(state.tensors["optimizer"], model, optimizer)
    if ema is not None:
        averages = state.tensors["ema"]
        ema.load({name: shared_like(t, ema.tensors[name]) for name, t in averages.items()})
    if scaler.is_enabled():
        try:
            scaler.load_state_dict(state.facts["scaler"])
        except (KeyError, TypeError, RuntimeError, AttributeError) as error:
            raise ValueError(f"it holds no scale of fp16 ({error!r}).") from error


def _gathered(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    gathered = {}
    for name, tensor in tensors.items():
        full = whole(tensor)  # all processes must ask
        if world.first:
            gathered[name] = full.cpu()
    return gathered


def _load_moments(
    moments: Mapping[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    # Not torch's `set_optimizer_state_dict`: it wants moments for every parameter, and one that
    # never got a gradient has none.
    rows: dict[str, dict[str, Tensor]] = {}
    for name, value in moments.items():
        parameter, _, key = name.rpartition("/")
        rows.setdefault(parameter, {})[key] = value
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    state = {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, parameter in enumerate(parameters):
        row = rows.pop(names[id(parameter)], None)
        if row is not None:
            state[number] = {
                key: value if key == "step" else shared_like(value, parameter)
                for key, value in row.items()
            }
    if rows:
        raise ValueError(f"the optimizer has parameters that the model lacks: {sorted(rows)}.")
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
