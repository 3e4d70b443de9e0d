"""Checkpoints: they resume a run exactly, where an export (see `hub`) is for others to use.

A checkpoint is a folder with safetensors files (student, mask token and heads; the optimizer; a
moving average where there is one; never the teacher) and `state.json`. No pickle. It is written
under another name and renamed when complete, and `state.json` holds the checksum of each file and
of itself, so that what is there under its own name is whole or known not to be.
"""

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import flatten, is_sealed, read_json, seal, sha256_of, sync, unseal
from ..version import __version__
from ..weights.state_dicts import apart

_logger = logging.getLogger(__name__)
_STATE = "state.json"
_STEP = re.compile(r"step-(\d{8,15})")
_KEYS = {"step": int, "proteus": str, "settings": dict, "facts": dict, "sha256": dict}


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """What was saved.

    Attributes:
        step: Steps done.
        tensors: File name without its ending -> named tensors.
        facts: JSON-able; what is neither a tensor nor a setting.
        settings: JSON-able; a run goes on with the same ones only.
        path: Its folder.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    facts: dict[str, Any]
    settings: dict[str, Any]
    path: Path


def all_steps(out: Path) -> list[Path]:
    """The checkpoints of a run that were completed, oldest first."""
    found = (out / "checkpoint").glob("step-*")
    return sorted(filter(_step_of, found), key=_step_of)


def newest(out: Path) -> Path | None:
    """The newest completed checkpoint of a run, or None."""
    return max(all_steps(out), key=_step_of, default=None)


def _step_of(folder: Path) -> int:
    """Steps done, as the name tells; 0 where it is not the name of a checkpoint."""
    match = _STEP.fullmatch(folder.name)
    return int(match[1]) if match else 0


def save(
    out: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    *,
    settings: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
    keep: int = 2,
) -> Path:
    """Write a checkpoint and drop all but the newest few.

    Args:
        out: The run's folder.
        step: Steps done.
        tensors: File name without its ending -> named tensors on the CPU.
        settings: JSON-able; `check_settings` refuses to go on with others.
        facts: JSON-able; handed back by `load`.
        keep: How many checkpoints stay, at least 1.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: If it cannot be written, as on a full disk. What was saved before stays.
    """
    from safetensors.torch import save_file

    folder = out / "checkpoint"
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in folder.glob(".tmp-*"):
        if left_over.is_dir() and not left_over.is_symlink():
            shutil.rmtree(left_over, ignore_errors=True)
        else:
            left_over.unlink(missing_ok=True)
    staging = folder / f".tmp-{os.getpid()}"
    staging.mkdir()
    try:
        sums = {}
        for name, named in tensors.items():
            file = staging / f"{name}.safetensors"
            save_file(apart(named), file)
            sums[file.name] = sha256_of(file)
        state = {
            "step": step,
            "proteus": __version__,
            "settings": dict(settings),
            "facts": dict(facts or {}),
            "sha256": sums,
        }
        (staging / _STATE).write_text(seal(state))
        for path in (*staging.iterdir(), staging):
            sync(path)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)  # a full disk gets its space back
        if type(error).__name__ == "SafetensorError":  # what it makes of a full disk
            raise OSError(f"{staging}: {error}") from error
        raise
    final = folder / _name(step)
    _remove(final)  # only there if it was found damaged
    staging.replace(final)
    sync(folder)
    keep_newest(out, keep)
    return final


def keep_newest(out: Path, keep: int) -> None:
    """Drop all but the newest few."""
    for old in all_steps(out)[:-keep]:
        _remove(old)


def drop_after(out: Path, step: int) -> None:
    """Drop the whole ones of later steps."""
    for folder in all_steps(out):
        with contextlib.suppress(CheckpointError):
            if _step_of(folder) > step and _read(folder):
                _remove(folder)


def set_aside_after(out: Path, step: int) -> None:
    """Rename the checkpoints of later steps, which `load` found damaged.

    Under their own names they would be counted among those to keep, before good ones.
    """
    for folder in all_steps(out):
        if _step_of(folder) > step:
            aside = folder.with_name(f"damaged-{folder.name}")
            _remove(aside)
            folder.replace(aside)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _remove(folder: Path) -> None:
    """Rename, then delete: a folder that is half deleted never has the name of a whole one."""
    if not os.path.lexists(folder):
        return
    doomed = folder.with_name(f".tmp-old-{folder.name}")
    folder.replace(doomed)
    if doomed.is_dir() and not doomed.is_symlink():
        shutil.rmtree(doomed)
    else:
        doomed.unlink()  # not ours, but in our place


def common_steps(outs: Sequence[Path]) -> set[int]:
    """Steps after which all of these runs have a completed checkpoint."""
    return set.intersection(*({_step_of(path) for path in all_steps(out)} for out in outs))


def load(out: Path) -> Checkpoint:
    """The newest checkpoint that is whole; a damaged one is passed over with a warning.

    Raises:
        CheckpointError: If there is none, or none that is whole.
    """
    return load_all([out])[0]


def load_all(outs: Sequence[Path]) -> list[Checkpoint]:
    """Those of the newest step whose checkpoints are whole in all of these runs.

    Raises:
        CheckpointError: If there is none.
    """
    damage = []
    for step in sorted(common_steps(outs), reverse=True):
        try:
            return [
                _read(path) for out in outs for path in all_steps(out) if _step_of(path) == step
            ]
        except CheckpointError as error:
            damage.append(str(error))
            _logger.warning("%s Going on from the one before.", error)
    where = ", ".join(repr(str(out)) for out in outs)
    if damage:
        raise CheckpointError(f"checkpoint: none in {where} is whole. {' '.join(damage)}")
    raise CheckpointError(f"checkpoint: none found in {where}.")


def _read(folder: Path) -> Checkpoint:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = _read_state(folder)
        tensors = {}
        for name, digest in state["sha256"].items():
            if not (folder / name).is_file() or sha256_of(folder / name) != digest:
                raise ValueError(f"{name} is not what was saved")
            tensors[Path(name).stem] = load_file(folder / name)
        return Checkpoint(state["step"], tensors, state["facts"], state["settings"], folder)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint: {folder} is damaged ({type(error).__name__}: {error})."
        ) from error


def _read_state(folder: Path) -> dict[str, Any]:
    """`state.json`, whole and of the right shape.

    Raises:
        ValueError: With the reason, if it is not.
    """
    try:
        state = read_json(folder / _STATE)
        if is_sealed(state):  # older ones are not, and have these keys alone
            state = unseal(state)
        if not isinstance(state, dict) or state.keys() != _KEYS.keys():
            raise ValueError(f"expected an object with {', '.join(_KEYS)}")
        for key, kind in _KEYS.items():
            if type(state[key]) is not kind:
                raise ValueError(f"{key!r} is {state[key]!r:.80}; expected {kind.__name__}")
        if state["step"] != _step_of(folder):
            raise ValueError(f"'step' is {state['step']!r:.80}; its folder tells another")
        names = {path.name for path in folder.glob("*.safetensors")}
        if not state["sha256"] or state["sha256"].keys() != names:
            raise ValueError(f"'sha256' lists {[*state['sha256']]!r:.200}, and there are {names}")
    except ValueError as error:
        raise ValueError(f"{_STATE}: {error}") from error
    return state


_WHERE_IMAGES_LIE = ("data", "recipe.science.data.paths")


def check_settings(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
    """Refuse to go on with other settings than those it was made with.

    The same images, by their number and names, may lie elsewhere: a job of a cluster gets its own
    folder for them.

    Raises:
        CheckpointError: Naming what differs.
    """
    saved = flatten(checkpoint.settings)
    now = flatten(json.loads(json.dumps(dict(settings))))
    changed = [key for key in sorted({*saved, *now}) if saved.get(key) != now.get(key)]
    if "images.digest" in now and "images.digest" not in changed:
        changed = [key for key in changed if key not in _WHERE_IMAGES_LIE]
    # A run of a recipe has most of its settings twice; the loop's own name is said.
    told = {key.rpartition(".")[2] for key in changed if not key.startswith("recipe.")}
    changed = [
        key for key in changed if not (key.startswith("recipe.") and key.split(".")[-1] in told)
    ]
    if changed:
        lines = "; ".join(f"{key} was {saved.get(key)!r}, is {now.get(key)!r}" for key in changed)
        raise CheckpointError(
            f"checkpoint: {checkpoint.path} was made with other settings. Got {lines}. Resume with "
            f"the settings of the run, or start a new one in another folder."
        )
