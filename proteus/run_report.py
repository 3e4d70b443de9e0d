"""One page for a run, from the files in its folder; also while it goes on, and after it died."""

import contextlib
import itertools
import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoint import flatten
from .curves import NO_TERMS, Array, Curve, save_panels, thin
from .report import Details, Heading, Part, Picture, Table, write_report

_SCORED = "knn_images"
_PICTURES = {
    "pca.png": "Patch features as colours: teacher and student in one basis.",
    "masks.png": "Images, and what the student sees of them in the masked view.",
}


@dataclass
class Columns:
    """A log read from JSON lines.

    Attributes:
        values: Name -> one number a row, NaN where the row has none; "step" is always there.
        unreadable: Lines that could not be read (a run that was killed leaves half of one).
    """

    values: dict[str, Array] = field(default_factory=lambda: {"step": np.empty(0)})
    unreadable: int = 0

    def __len__(self) -> int:
        return len(self.values["step"])


def read_columns(path: str | Path) -> Columns:
    r"""Read a log of JSON lines, each an object of numbers with a "step".

    Where steps start again at a smaller number (a run that was resumed), the later rows replace the
    earlier ones.

    Args:
        path: File; one that does not exist is empty.

    Examples:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "log.jsonl")
        ...     _ = path.write_text('{"step": 0, "total": 2.0}\n{"step": 1, "tot')
        ...     columns = read_columns(path)
        >>> columns.values["total"].tolist(), columns.unreadable
        ([2.0], 1)
    """
    path = Path(path)
    chunks: list[dict[str, Array]] = []
    unreadable = 0
    if path.exists():
        with path.open("rb") as file:
            while lines := list(itertools.islice(file, 10_000)):
                rows = _rows(lines)
                unreadable += sum(map(bool, map(bytes.strip, lines))) - len(rows)
                chunks.append(_columns(rows))
    names = dict.fromkeys(["step", *(name for chunk in chunks for name in chunk)])
    values = {}
    for name in names:
        parts = [c.get(name, np.full(len(c["step"]), np.nan)) for c in chunks]
        values[name] = np.concatenate([np.empty(0), *parts])
    steps = values["step"]
    least_after = np.append(np.minimum.accumulate(steps[::-1])[::-1][1:], np.inf)
    kept = steps < least_after[: len(steps)]
    return Columns({name: column[kept] for name, column in values.items()}, unreadable)


def _rows(lines: list[bytes]) -> list[dict[str, Any]]:
    """The lines that are objects with a step."""
    try:
        rows = json.loads(b"[" + b",".join(lines) + b"]")  # several times faster than one by one
    except ValueError:
        rows = []
        for line in lines:
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
    return [r for r in rows if isinstance(r, dict) and isinstance(r.get("step"), int | float)]


def _columns(rows: list[dict[str, Any]]) -> dict[str, Array]:
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        column = [row.get(name) for row in rows]
        # What is no number is not drawn: NaN.
        columns[name] = np.array(
            [value if isinstance(value, int | float) else np.nan for value in column], np.float64
        )
    return columns if rows else {"step": np.empty(0)}


def write_run_report(run: str | Path, path: str | Path | None = None) -> Path:
    r"""Write the page of a run: numbers, curves, throughput, watch, pictures, recipe, versions.

    Args:
        run: The run's folder. `log.jsonl` must be there; `timing.jsonl`, `watch.jsonl`, `run.json`,
            `pca.png` and `masks.png` are shown where they are.
        path: HTML file; None = `report.html` in the folder.

    Returns:
        The file.

    Raises:
        ValueError: If the folder holds no run.

    Examples:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "log.jsonl").write_text('{"step": 0, "total": 2.0, "lr": 0.1}\n')
        ...     "<h2>Losses</h2>" in write_run_report(folder).read_text(encoding="utf-8")
        True
    """
    folder = Path(run)
    if not (folder / "log.jsonl").is_file():
        raise ValueError(
            f"report: no run. Got {str(folder)!r}, which holds no log.jsonl; expected the folder "
            f"given to `proteus distill --out`."
        )
    target = folder / "report.html" if path is None else Path(path)
    log, timing, watch = (
        read_columns(folder / f"{name}.jsonl") for name in ("log", "timing", "watch")
    )
    facts = _facts(folder / "run.json")
    with tempfile.TemporaryDirectory() as scratch:
        parts = [
            *_summary(log, timing, facts),
            *_losses(log, Path(scratch)),
            *_throughput(timing, Path(scratch)),
            *_watched(watch, Path(scratch)),
            *_pictures(folder),
            *_recipe(facts or {}),
        ]
        write_report(target, f"Run {folder.resolve().name}", parts)
    return target


def _facts(path: Path) -> dict[str, Any] | None:
    """What `run.json` says; None where it is there and cannot be read."""
    if not path.exists():
        return {}
    try:
        facts = json.loads(path.read_bytes())
    except ValueError:
        return None
    return facts if isinstance(facts, dict) else None


def _summary(log: Columns, timing: Columns, facts: dict[str, Any] | None) -> list[Part]:
    parts: list[Part] = []
    rows: list[list[str]] = []
    if len(log):
        wanted = _find(facts or {}, "steps")
        done = int(log.values["step"][-1]) + 1
        rows.append(["steps", f"{done:,} of {wanted:,}" if wanted else f"{done:,}"])
    else:
        parts.append("No step has been logged yet.")
    if "seconds" in timing.values:
        seconds = timing.values["seconds"]
        # Each process counts from its own start.
        ends = np.append(np.flatnonzero(np.diff(seconds) < 0), len(seconds) - 1)
        rows.append(["time spent training", _duration(float(np.nansum(seconds[ends])))])
        if len(ends) > 1:
            rows.append(["processes one after the other", str(len(ends))])
    for name, label, text, of_all in (
        ("images_per_second", "images/s (median)", "{:,.0f}", np.nanmedian),
        ("data_wait", "waiting for data (median)", "{:.1%}", np.nanmedian),
        ("memory_mib", "memory (highest)", "{:,.0f} MiB", np.nanmax),
    ):
        if np.isfinite(timing.values.get(name, np.empty(0))).any():
            rows.append([label, text.format(float(of_all(timing.values[name])))])
    if rows:
        parts.append(Table(["", ""], rows))
    if log.unreadable:
        parts.append(
            f"Lines of the log that could not be read: {log.unreadable} (a run that is killed "
            f"may leave half of one)."
        )
    if facts is None:
        parts.append("run.json could not be read; recipe and versions are not shown.")
    return parts


def _find(facts: Mapping[str, Any], name: str) -> int | None:
    """A count of this name, from the settings or the recipe, at any depth."""
    leaves = [leaf for key in ("settings", "recipe") for leaf in _leaves(facts.get(key))]
    found = (value for path, value in leaves if path.rpartition(".")[2] == name)
    return next((value for value in found if type(value) is int), None)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _losses(log: Columns, scratch: Path) -> list[Part]:
    if not len(log):
        return []
    terms = [name for name in log.values if name not in NO_TERMS]
    late = max(1, min(100, len(log) // 10))
    rows = [
        [name, *(_number(value) for value in (v[0], v[-1], float(np.mean(v[-late:])), np.min(v)))]
        for name, v in ((name, log.values[name]) for name in terms)
    ]
    header = ["", "first step", "last step", f"mean of the last {late}", "lowest"]
    # A term that is off is logged as zeros.
    shown = [
        name
        for name in [*terms, "lr", "grad_norm"]
        if name in log.values and np.nan_to_num(log.values[name]).any()
    ]
    parts: list[Part] = [Heading("Losses"), Table(header, rows)]
    lost = sum(int((~np.isfinite(log.values[name])).sum()) for name in terms)
    if lost:
        parts.append(f"Values that are missing or not finite, and not drawn: {lost}.")
    panels = {name: {name: log.values[name]} for name in shown}
    return [*parts, *_panels(log, panels, scratch / "losses.png")]


def _number(value: float) -> str:
    return f"{value:.4g}"


def _throughput(timing: Columns, scratch: Path) -> list[Part]:
    names = {
        "images_per_second": "images/s",
        "data_wait": "share of time waiting for data",
        "memory_mib": "memory, MiB",
    }
    panels = {
        label: {label: timing.values[name]}
        for name, label in names.items()
        if name in timing.values
    }
    pictures = _panels(timing, panels, scratch / "throughput.png")
    return [Heading("Throughput"), *pictures] if pictures else []


def _watched(watch: Columns, scratch: Path) -> list[Part]:
    """One panel a measure; what was measured of the teacher goes into its student's panel."""
    panels: dict[str, dict[str, Array]] = {}
    rows = []
    names = {name for name in watch.values if not name.endswith("_margin")}
    for name in sorted(names - {"step", _SCORED}, key=lambda n: n.startswith("teacher_")):
        title, values = name.removeprefix("teacher_"), watch.values[name]
        panels.setdefault(title, {})["student" if title == name else "teacher"] = values
        known = np.isfinite(values)
        margins = watch.values.get(f"{name}_margin", np.full(len(values), np.nan))[known]
        shown = [_uncertain(*pair) for pair in zip(values[known], margins, strict=True)]
        if shown:
            rows.append([name, shown[0], shown[-1]])
    pictures = _panels(watch, panels, scratch / "watch.png")
    if not pictures:
        return []
    table = Table(["", "first look", "last look"], rows)
    scored = watch.values.get(_SCORED, np.empty(0))
    scored = scored[np.isfinite(scored)]
    notes = [
        f"The k-NN is scored on {count:.0f} images; ± is the 95 % interval that so few leave. "
        f"`proteus evaluate` scores all images of a set."
        for count in scored[-1:]
    ]
    return [Heading("On held-out images"), table, *notes, *pictures]


def _uncertain(value: float, margin: float) -> str:
    return f"{_number(value)} ± {margin:.2g}" if np.isfinite(margin) else _number(value)


def _panels(columns: Columns, panels: Mapping[str, Mapping[str, Array]], path: Path) -> list[Part]:
    """A picture of what has a finite value."""
    drawn: dict[str, dict[str, Curve]] = {}
    for title, lines in panels.items():
        for name, values in lines.items():
            curve = thin(columns.values["step"], values)
            if len(curve.steps):
                drawn.setdefault(title, {})[name] = curve
    if not drawn:
        return []
    save_panels(drawn, path)
    caption = f"{', '.join(drawn)} over steps: mean (line), lowest and highest (band)."
    return [Picture(path, caption)]


def _pictures(folder: Path) -> list[Part]:
    found: list[Part] = [
        Picture(folder / name, caption)
        for name, caption in _PICTURES.items()
        if (folder / name).is_file()
    ]
    return [Heading("Pictures"), *found] if found else []


def _recipe(facts: Mapping[str, Any]) -> list[Part]:
    parts: list[Part] = []
    for key, title in (("recipe", "Recipe"), ("settings", "Settings"), ("versions", "Versions")):
        rows = [[path, _text(value)] for path, value in _leaves(facts.get(key))]
        if rows:
            parts += [Heading(title), Table([key, "value"], rows)]
        if rows and key == "recipe":
            parts.append(Details("As JSON", json.dumps(facts[key], indent=2, ensure_ascii=False)))
    return parts


def _leaves(found: Any) -> Iterable[tuple[str, Any]]:
    """What a file holds as (dotted path, value); nothing if it is not nested."""
    return flatten(found).items() if isinstance(found, dict) else ()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
