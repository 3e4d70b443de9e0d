"""timm's folder layout (`config.json` beside the weights) -> a plain timm model, strictly."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..files import read_json
from .description import read_config
from .state_dicts import (
    StateDict,
    load_strictly,
    model_tensors,
    naming,
    read_state_dict,
    without_classifier,
)

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# Arguments of `timm.create_model` that are none of a model: timm would read other files for them.
_FOREIGN = {
    *("checkpoint_path", "cache_dir", "pretrained_cfg_overlay", "pretrained_cfg", "pretrained"),
    *("features_only", "out_indices", "feature_cfg"),
}
_SPARE = 10**8  # numbers that are no trouble, so that a small misfit is told key by key
_DEPTHS = {"depth", "depths", "layers", "num_layers", "num_blocks"}
# Whatever a stranger's numbers make a constructor do.
_UNBUILDABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
_FILES = (WEIGHTS, "pytorch_model.bin", "pytorch_model.pth", "model.pth")


def load_folder(folder: str | Path, subject: str) -> nn.Module:
    """Build the model a folder describes, `num_classes=0`, and fill it.

    `timm.create_model("local-dir:…")` does the same; it is not used because it reads `.bin` files
    of strangers with fewer restrictions, and before timm 1.0.31 not every safetensors file.

    Args:
        folder: Holds `config.json` and `model.safetensors` (or a `.bin`/`.pth` state dict).
        subject: First word of error messages.

    Raises:
        ValueError: If a file is missing or broken, timm does not know the architecture, or a key is
            missing or left over. Weights of a classifier are left alone.
    """
    folder = Path(folder)
    config = _read_config(folder, subject)
    files = [folder / name for name in _FILES if (folder / name).is_file()]
    if not files:
        raise ValueError(
            f"{subject}: no weights there. Got {str(folder)!r}; expected {WEIGHTS} beside {CONFIG}."
        )
    with naming(files[0]):
        tensors = model_tensors(read_state_dict(files[0]), subject)
    arguments = {k: v for k, v in (config.get("model_args") or {}).items() if k != "num_classes"}
    with naming(folder / CONFIG):
        model = _build(config, arguments, tensors, subject)
    with naming(files[0]):
        load_strictly(model, without_classifier(model, tensors), subject)
    vars(model)["_model_args"] = arguments  # timm records them itself from 1.0.31 on
    return model


def _build(
    config: dict[str, Any], arguments: dict[str, Any], tensors: StateDict, subject: str
) -> nn.Module:
    """The empty model that a `config.json` describes, if the weights can be those of it."""
    import timm

    name = config["architecture"]
    shown = f"{name!r} with {str(arguments)[:200]}"
    if not timm.is_model(name) or _FOREIGN & set(arguments):
        raise ValueError(
            f"{subject}: {CONFIG} describes no timm model. Got {shown}; expected a name of "
            f"timm.list_models() and arguments of that model."
        )
    described = dict(config.get("pretrained_cfg") or {})
    # What timm would look up by itself; the file may say something else here.
    described |= {"architecture": name.partition(".")[0], "num_classes": 0}
    build = partial(
        timm.create_model,
        name,
        pretrained=False,
        pretrained_cfg=described,
        num_classes=0,
        **arguments,
    )
    layers = [_largest(arguments[key]) for key in _DEPTHS & set(arguments)]
    if max(layers, default=0) > 1000 + len(tensors):
        raise ValueError(
            f"{subject}: {CONFIG} describes more layers than there are weights for. Got {shown}; "
            f"expected what belongs to the {len(tensors)} tensors beside it."
        )
    try:
        # Without memory first: what is described may be larger than the machine.
        with torch.device("meta"):
            numbers = sum(weight.numel() for weight in build().parameters())
    except RuntimeError:  # also of models that look at their numbers while they are built
        numbers = 0
    except _UNBUILDABLE as error:
        raise _unbuildable(subject, shown, error) from error
    there = sum(weight.numel() for weight in tensors.values())
    if numbers > 2 * there + _SPARE:
        raise ValueError(
            f"{subject}: {CONFIG} describes a larger model. Got {shown}, which has {numbers:,} "
            f"numbers; expected what belongs to the {there:,} beside it."
        )
    try:
        return build()
    except _UNBUILDABLE as error:
        raise _unbuildable(subject, shown, error) from error


def _unbuildable(subject: str, shown: str, error: Exception) -> ValueError:
    return ValueError(
        f"{subject}: timm cannot build what {CONFIG} describes. Got {shown}, and: "
        f"{type(error).__name__}: {str(error)[:300]}."
    )


def _largest(value: Any) -> float:
    """The largest number in it; for what is no number, timm has the words."""
    numbers = value if isinstance(value, list) else [value]
    return max((n for n in numbers if isinstance(n, int | float)), default=0)


def _read_config(folder: Path, subject: str) -> dict[str, Any]:
    """The folder's `config.json`, with an architecture in it."""
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(
            f"{subject}: no model there. Got {str(folder)!r}, which has no {CONFIG}; expected a "
            f"folder in timm's layout, such as the export folder of a run (RUN/export)."
        )
    try:
        config = read_json(path)
    except ValueError as error:
        raise ValueError(
            f"{subject}: {path} is not JSON. Got {error}; expected what an export wrote."
        ) from error
    if (
        not isinstance(config, dict)
        or not isinstance(config.get("architecture"), str)
        or any(not isinstance(config.get(k) or {}, dict) for k in ("model_args", "pretrained_cfg"))
    ):
        raise ValueError(
            f"{subject}: {path} describes no timm model. Expected an 'architecture' by name, and "
            f"'model_args' and 'pretrained_cfg' as objects; folders of other libraries cannot be "
            f"read."
        )
    read_config(config.get("pretrained_cfg"), f"{subject}: {path}")
    return config
