"""One page for a run, from the files in its folder; also while it goes on, and after it died."""

import json
import math
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..files import flatten, holes, is_plain, read_json, seal, unseal, write_whole
from .curves import NO_TERMS, Array, Columns, Curve, read_columns, save_panels, thin
from .page import Details, Heading, Part, Picture, Table, check_page, write_report

DEMO = "demo.json"  # what a demo found; it stands at the head of the page
_SCORED = "knn_images"
_PICTURES = {
    "pca.png": "Patch features as colours: teacher and student in one basis.",
    "masks.png": "Images, and what the student sees of them in the masked view.",
}
_MOST_PANELS = 24
_MOST_NOTES = 20_000  # bytes


def write_run_report(run: str | Path, path: str | Path | None = None) -> Path:
    r"""Write the page of a run: numbers, curves, throughput, watch, pictures, recipe, versions.

    The numbers also go to a JSON file beside the page, of the same name. What is a link in the
    run's folder is not followed: the page shows the run's own files only.

    Args:
        run: The run's folder. `log.jsonl` must be there; `timing.jsonl`, `watch.jsonl`, `run.json`,
            `pca.png`, `masks.png` and what a demo found are shown where they are.
        path: HTML file; None = `report.html` in the folder.

    Returns:
        The file.

    Raises:
        ValueError: If the folder holds no run, or another page or file would be replaced.

    Examples:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "log.jsonl").write_text('{"step": 0, "total": 2.0, "lr": 0.1}\n')
        ...     "<h2>Losses</h2>" in write_run_report(folder).read_text(encoding="utf-8")
        True
    """
    folder = Path(run)
    if not is_plain(folder / "log.jsonl"):
        raise ValueError(
            f"report: no run. Got {str(folder)!r}, which holds no log.jsonl; expected the folder "
            f"given to `proteus distill --out`. Links are not followed."
        )
    target = folder / "report.html" if path is None else Path(path)
    title = f"Run {folder.resolve().name}"
    check_page(target, title)
    _check_ours(target.with_suffix(".json"))
    log, timing, watch = (
        read_columns(folder / f"{name}.jsonl") for name in ("log", "timing", "watch")
    )
    facts = _facts(folder / "run.json")
    with tempfile.TemporaryDirectory() as scratch, np.errstate(all="ignore"):
        numbers = _measure(log, timing, watch, facts or {})
        parts = [
            *_demo(folder / DEMO),
            *_notes(folder / "notes.txt"),
            *_summary(numbers, log, facts),
            *_losses(log, numbers["losses"], Path(scratch)),
            *_throughput(timing, Path(scratch)),
            *_watched(watch, numbers["watch"], Path(scratch)),
            *_pictures(folder),
            *_recipe(facts or {}),
        ]
        write_report(target, title, parts)
    write_whole(target.with_suffix(".json"), seal({"run": folder.resolve().name, **numbers}))
    return target


def _check_ours(path: Path) -> None:
    """Refuse to replace a JSON file that is not the numbers of a page."""
    if not path.exists():
        return
    try:
        if "run" in unseal(read_json(path)):
            return
        reason = "it holds other results"
    except ValueError as error:
        reason = str(error)
    raise ValueError(
        f"report: {str(path)!r} would be replaced, which is no page's numbers: {reason}. Move it "
        f"away, or write to another place (--out)."
    )


def _facts(path: Path) -> dict[str, Any] | None:
    """What `run.json` says; None where it is there and cannot be read."""
    if not path.exists() and not path.is_symlink():
        return {}
    try:
        facts = read_json(path) if is_plain(path) else None
    except ValueError:
        return None
    return facts if isinstance(facts, dict) else None


def _demo(path: Path) -> list[Part]:
    """What a demo found, as it wrote it down: sentences and tables."""
    if not is_plain(path):
        return []
    try:
        page = unseal(read_json(path))["page"]
    except (ValueError, KeyError) as error:
        return [f"{path.name} is damaged, and not shown ({error})."]
    return [part if isinstance(part, str) else Table(**part) for part in page]


def _notes(path: Path) -> list[Part]:
    if not is_plain(path):
        return []
    with path.open("rb") as file:
        return [*file.read(_MOST_NOTES).decode("utf-8", "replace").splitlines()]


def _measure(
    log: Columns, timing: Columns, watch: Columns, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The numbers of the page, as JSON has them; what is not known is left out or None."""
    found: dict[str, Any] = {"steps": int(log.values["step"][-1]) + 1 if len(log) else 0}
    found["of"] = _find(facts, "steps")
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
    for name in sorted(set(watch.values) - {"step"}, key=lambda n: n.startswith("teacher_")):
        known = watch.values[name][np.isfinite(watch.values[name])]
        if len(known):
            found["watch"][name] = [_known(known[0]), _known(known[-1])]
    return found


def _known(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _summary(numbers: dict[str, Any], log: Columns, facts: dict[str, Any] | None) -> list[Part]:
    parts: list[Part] = []
    rows: list[list[str]] = []
    if numbers["steps"]:
        done, wanted = numbers["steps"], numbers["of"]
        rows.append(["steps", f"{done:,} of {wanted:,}" if wanted else f"{done:,}"])
    else:
        parts.append("No step has been logged yet.")
    if numbers.get("seconds") is not None:
        rows.append(["time spent training", _duration(numbers["seconds"])])
        if numbers["processes"] > 1:
            rows.append(["processes one after the other", str(numbers["processes"])])
    for name, label, text in (
        ("images_per_second", "images/s (median)", "{:,.0f}"),
        ("data_wait", "waiting for data (median)", "{:.1%}"),
        ("memory_mib", "memory (highest)", "{:,.0f} MiB"),
    ):
        if numbers.get(name) is not None:
            rows.append([label, text.format(numbers[name])])
    if rows:
        parts.append(Table(["", ""], rows))
    if numbers["missing"]:
        parts.append(f"Rows that the log lacks: {numbers['missing']}. Curves join what is left.")
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


def _losses(log: Columns, losses: Mapping[str, list[float | None]], scratch: Path) -> list[Part]:
    if not len(log):
        return []
    late = max(1, min(100, len(log) // 10))
    header = ["", "first step", "last step", f"mean of the last {late}", "lowest"]
    rows = [[name, *map(_number, values)] for name, values in losses.items()]
    # A term that is off is logged as zeros.
    shown = [
        name
        for name in [*losses, "lr", "grad_norm"]
        if name in log.values and np.nan_to_num(log.values[name]).any()
    ]
    parts: list[Part] = [Heading("Losses"), Table(header, rows)]
    lost = sum(int((~np.isfinite(log.values[name])).sum()) for name in losses)
    if lost:
        parts.append(f"Values that are missing or not finite, and not drawn: {lost}.")
    panels = {name: {name: log.values[name]} for name in shown}
    return [*parts, *_panels(log, panels, scratch / "losses.png")]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


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


def _watched(watch: Columns, found: Mapping[str, list[float | None]], scratch: Path) -> list[Part]:
    """One panel a measure; what was measured of the teacher goes into its student's panel."""
    panels: dict[str, dict[str, Array]] = {}
    rows = []
    for name in found:
        if name == _SCORED or name.endswith("_margin"):
            continue
        title, values = name.removeprefix("teacher_"), watch.values[name]
        panels.setdefault(title, {})["student" if title == name else "teacher"] = values
        known = np.isfinite(values)
        margins = watch.values.get(f"{name}_margin", np.full(len(values), np.nan))[known]
        shown = [_uncertain(*pair) for pair in zip(values[known], margins, strict=True)]
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
    left_out = [*drawn][_MOST_PANELS:]
    drawn = {title: drawn[title] for title in [*drawn][:_MOST_PANELS]}
    save_panels(drawn, path)
    caption = f"{', '.join(drawn)} over steps: mean (line), lowest and highest (band)."
    more = [f"Not drawn: {len(left_out)} more columns."] if left_out else []
    return [Picture(path, caption), *more]


def _pictures(folder: Path) -> list[Part]:
    found: list[Part] = [
        Picture(folder / name, caption)
        for name, caption in _PICTURES.items()
        if (folder / name).exists()  # what it is, the page looks at
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
