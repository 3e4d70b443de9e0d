"""The numbers of a run's page, from its logs; what is not known is left out."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..files import flatten, holes, is_plain, read_json, unseal
from .curves import NO_TERMS, Columns, read_columns
from .verdict import Verdict, judge

DEMO = "demo.json"  # what a demo found; it stands at the head of the page


def read_logs(folder: Path) -> tuple[Columns, Columns, Columns]:
    """What a run logged: losses, timings, looks at held-out images."""
    log, timing, watch = (
        read_columns(folder / f"{name}.jsonl") for name in ("log", "timing", "watch")
    )
    return log, timing, watch


def read_facts(path: Path) -> dict[str, Any] | None:
    """What `run.json` says; None where it is there and cannot be read."""
    if not path.exists() and not path.is_symlink():
        return {}
    try:
        facts = read_json(path) if is_plain(path) else None
    except ValueError:
        return None
    return facts if isinstance(facts, dict) else None


def read_demo(folder: Path) -> dict[str, Any] | str:
    """What a demo found; why not, where it is damaged; nothing where there is none."""
    if not is_plain(folder / DEMO):
        return {}
    try:
        found = unseal(read_json(folder / DEMO))
    except ValueError as error:
        return f"{DEMO} is damaged, and not shown ({error})."
    return found


def measure(
    log: Columns, timing: Columns, watch: Columns, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The numbers of the page, as JSON has them; what is not known is left out or None."""
    found: dict[str, Any] = {"steps": int(log.values["step"][-1]) + 1 if len(log) else 0}
    found["of"] = _steps_of(facts)
    found["missing"] = holes([int(step) for step in log.values["step"]], found["steps"])
    seconds = timing.values.get("seconds", np.empty(0))
    if len(seconds):
        # Each process counts from its own start.
        ends = np.append(np.flatnonzero(np.diff(seconds) < 0), len(seconds) - 1)
        found["seconds"] = _known(np.nansum(seconds[ends]))
        found["processes"] = len(ends)
    for name, of_all in (
        ("images_per_second", np.nanmedian),
        ("data_wait", np.nanmedian),
        ("memory_mib", np.nanmax),
    ):
        values = timing.values.get(name, np.empty(0))
        if np.isfinite(values).any():
            found[name] = _known(of_all(values))
    late = max(1, min(100, len(log) // 10))
    found["mean_of"] = late
    terms = [name for name in log.values if name not in NO_TERMS] if len(log) else []
    found["losses"] = {
        name: [_known(x) for x in (v[0], v[-1], np.mean(v[-late:]), np.min(v))]
        for name, v in ((name, log.values[name]) for name in terms)
    }
    found["watch"] = {}
    looked_at = [name for name in watch.values if name != "step"]
    for name in sorted(looked_at, key=lambda name: name.startswith("teacher_")):
        known = watch.values[name][np.isfinite(watch.values[name])]
        if len(known):
            found["watch"][name] = [_known(known[0]), _known(known[-1])]
    return found


def untrained_of(watch: Columns, demo: Mapping[str, Any]) -> dict[str, float]:
    """A look at the student before it was trained: the demo's, or the one before its first step."""
    before = demo.get("before")
    if isinstance(before, Mapping):
        return {str(k): float(v) for k, v in before.items() if type(v) in (int, float)}
    if len(watch) and watch.values["step"][0] < 0:
        first = {name: float(values[0]) for name, values in watch.values.items()}
        return {name: value for name, value in first.items() if math.isfinite(value)}
    return {}


def judge_run(folder: str | Path) -> Verdict:
    r"""The verdict on the run in a folder; see `judge`.

    Args:
        folder: The run's, of which only its own files are read.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as run:
        ...     _ = Path(run, "log.jsonl").write_text('{"step": 0, "total": 2.0}\n')
        ...     print(judge_run(run).lines[0])
        The training loss was logged once: 2.
    """
    folder = Path(folder)
    log, timing, watch = read_logs(folder)
    facts, demo = read_facts(folder / "run.json"), read_demo(folder)
    found = demo if isinstance(demo, dict) else {}
    with np.errstate(all="ignore"):
        numbers = measure(log, timing, watch, {**found, **(facts or {})})
    return verdict_on(numbers, log, watch, untrained_of(watch, found))


def verdict_on(
    numbers: Mapping[str, Any], log: Columns, watch: Columns, untrained: Mapping[str, float]
) -> Verdict:
    """The verdict on what was read and measured already."""
    columns = [{n: v.tolist() for n, v in one.values.items()} for one in (log, watch)]
    return judge(
        columns[0], columns[1], untrained=untrained, steps=numbers["of"],
        data_wait=numbers.get("data_wait"),
    )  # fmt: skip


def leaves(found: Any) -> dict[str, Any]:
    """What a file holds as dotted path -> value; nothing if it is not nested."""
    return flatten(found) if isinstance(found, dict) else {}


def _known(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _steps_of(facts: Mapping[str, Any]) -> int | None:
    """How many were asked for: as counted at the start, or a setting of this name at any depth."""
    counted = facts.get("steps")
    nested = (leaves(facts.get(key)) for key in ("settings", "recipe"))
    named = (v for one in nested for path, v in one.items() if path.rpartition(".")[2] == "steps")
    return next((value for value in (counted, *named) if type(value) is int), None)
