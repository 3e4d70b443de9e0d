"""timm's folder layout (`config.json` beside the weights) -> a plain timm model, strictly."""

from pathlib import Path
from typing import Any

from torch import nn

from ..files import read_json
from .files import load_strictly, model_tensors, read_state_dict, without_classifier

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# Arguments of `timm.create_model` that are none of a model: timm would read other files for them.
_FOREIGN = {"checkpoint_path", "cache_dir", "pretrained_cfg_overlay"}
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
    import timm

    folder = Path(folder)
    config = _read_config(folder, subject)
    described = dict(config.get("pretrained_cfg") or {})
    arguments = {k: v for k, v in (config.get("model_args") or {}).items() if k != "num_classes"}
    # What timm would look up by itself; the file may say something else here.
    described |= {"architecture": config["architecture"].partition(".")[0], "num_classes": 0}
    if not timm.is_model(config["architecture"]) or _FOREIGN & set(arguments):
        raise ValueError(
            f"{subject}: {CONFIG} describes no timm model. Got {config['architecture']!r} with "
            f"{arguments}; expected a name of timm.list_models() and arguments of that model."
        )
    try:
        model = timm.create_model(
            config["architecture"],
            pretrained=False,
            pretrained_cfg=described,
            num_classes=0,
            **arguments,
        )
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise ValueError(
            f"{subject}: timm cannot build what {CONFIG} describes. Got {config['architecture']!r} "
            f"with {arguments}, and: {error}."
        ) from error
    files = [folder / name for name in _FILES if (folder / name).is_file()]
    if not files:
        raise ValueError(
            f"{subject}: no weights there. Got {str(folder)!r}; expected {WEIGHTS} beside {CONFIG}."
        )
    tensors = model_tensors(read_state_dict(files[0]), subject)
    load_strictly(model, without_classifier(model, tensors), subject)
    vars(model)["_model_args"] = arguments  # timm records them itself from 1.0.31 on
    return model


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
            f"{subject}: {path} describes no timm model. Expected an 'architecture'; folders of "
            f"other libraries cannot be read."
        )
    return config
