"""Resume a run exactly. A checkpoint resumes a run; an export is used by others.

`RUN/checkpoint/step-00000500/` holds `weights.safetensors` (student, mask token, heads; never the
teacher), `optimizer.safetensors` and `state.json`. No pickle. A checkpoint is written under another
name and renamed when complete, so that whatever is there under its own name is whole.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .saving import sync
from .version import __version__

KEPT = 2  # the newest, and the one before it


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says why and what to do."""


def claim_folder(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Make sure that a run may write here, before any work is done.

    Args:
        out: The run's folder; created if missing.
        resume: It must hold a run, which goes on.
        overwrite: What a run wrote there before is removed. Other files stay.

    Raises:
        ValueError: If the folder holds a run and neither is set, or holds none and `resume` is.
    """
    if resume and overwrite:
        raise ValueError("run folder: resume and overwrite exclude each other. Got both.")
    holds_run = (out / "log.jsonl").exists() or (out / "checkpoint").exists()
    if holds_run and not (resume or overwrite):
        raise ValueError(
            f"run folder: {str(out)!r} already holds a run. Pass resume (--resume) to go on with "
            f"it, overwrite (--overwrite) to replace it, or another folder."
        )
    if resume and newest(out) is None:
        raise CheckpointError(
            f"run folder: nothing to resume. Got {str(out)!r}, which holds no checkpoint; expected "
            f"the folder of a run that was saved at least once. Leave resume (--resume) out."
        )
    if out.exists() and not out.is_dir():
        raise ValueError(f"run folder: not a folder. Got {str(out)!r}, which is a file.")
    if overwrite:
        for name in ("checkpoint", "export"):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in ("log.jsonl", "curves.png", "pca.png", "report.html"):
            (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)


def newest(out: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    return max((out / "checkpoint").glob("step-*"), default=None)


def save(
    out: Path,
    step: int,
    modules: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any],
) -> Path:
    """Write a checkpoint and drop all but the newest two.

    Args:
        out: The run's folder.
        step: Steps done.
        modules: The `Distiller`: its state dict has student, mask token and heads.
        optimizer: Its optimizer.
        settings: JSON-able; `load` refuses to go on with others.

    Returns:
        The checkpoint's folder.
    """
    from safetensors.torch import save_file

    folder = out / "checkpoint"
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in folder.glob(".tmp-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    staging = folder / f".tmp-{os.getpid()}"
    staging.mkdir()
    state = {"step": step, "proteus": __version__, "settings": dict(settings)}
    save_file(_on_cpu(modules.state_dict()), staging / "weights.safetensors")
    save_file(_flatten(optimizer), staging / "optimizer.safetensors")
    (staging / "state.json").write_text(json.dumps(state, indent=2) + "\n")
    for file in staging.iterdir():
        sync(file)
    sync(staging)
    final = folder / f"step-{step:08d}"
    shutil.rmtree(final, ignore_errors=True)
    staging.replace(final)
    sync(folder)
    for old in sorted(folder.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old)
    return final


def load(
    out: Path,
    modules: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any],
) -> int:
    """Restore the newest checkpoint in place.

    Returns:
        Steps done.

    Raises:
        CheckpointError: If there is none, it does not fit the model, or was made with other
            settings.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = newest(out)
    if folder is None:
        raise CheckpointError(f"checkpoint: none found in {str(out)!r}.")
    try:
        state = json.loads((folder / "state.json").read_text())
        weights = load_file(folder / "weights.safetensors")
        moments = load_file(folder / "optimizer.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint: {folder} is damaged. Got {type(error).__name__}: {error}. Remove that "
            f"folder to resume from the one before."
        ) from error
    _compare(state["settings"], dict(settings), folder)
    try:
        modules.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"checkpoint: {folder} belongs to another student or loss. {error}"
        ) from error
    _unflatten(optimizer, moments)
    return int(state["step"])


def _compare(saved: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    now = json.loads(json.dumps(now))  # tuples become lists, as in the file
    changed = [key for key in sorted({*saved, *now}) if saved.get(key) != now.get(key)]
    if changed:
        lines = "; ".join(f"{key} was {saved.get(key)!r}, is {now.get(key)!r}" for key in changed)
        raise CheckpointError(
            f"checkpoint: {folder} was made with other settings. Got {lines}. Resume with the "
            f"settings of the run, or start a new one in another folder."
        )


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in tensors.items()}


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`{0: {"exp_avg": t}}` -> `{"0.exp_avg": t}`; all of AdamW's state is tensors."""
    state = optimizer.state_dict()["state"]
    return _on_cpu({f"{i}.{key}": value for i, row in state.items() for key, value in row.items()})


def _unflatten(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
