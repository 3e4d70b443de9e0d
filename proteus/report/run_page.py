"""One page for a run, from the files in its folder; also while it goes on, and after it died."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..files import is_plain, read_json, seal, unseal, write_whole
from .curves import Array, Columns, thin
from .effective import settings_in_effect, size_of
from .measured import (
    DEMO,
    leaves,
    measure,
    read_demo,
    read_facts,
    read_logs,
    untrained_of,
    verdict_on,
)
from .page import (
    Charts,
    Details,
    Facts,
    Heading,
    Lead,
    Part,
    Picture,
    Table,
    check_page,
    write_report,
)
from .svg import Chart, Line

__all__ = ["DEMO", "write_run_report"]

_SCORED = "knn_images"
_PICTURES = {
    "pca.png": "Patch features as colours: teacher and student in one basis.",
    "masks.png": "Images, and what the student sees of them in the masked view.",
}
_MOST_PANELS = 24
_MOST_NOTES = 20_000  # bytes
_POINTS = 300  # of a curve
_NAMES = {  # of what is logged: title and unit
    "lr": ("learning rate", ""),
    "grad_norm": ("norm of the gradient", ""),
    "images_per_second": ("images/s", ""),
    "data_wait": ("time waiting for images", "share"),
    "memory_mib": ("memory, highest so far", "MiB"),
    "cls_cosine": ("class tokens", "cosine, 1 = equal"),
    "patch_cosine": ("patches", "cosine, 1 = equal"),
    "cls_mse": ("class tokens", "squared error"),
    "patch_mse": ("patches", "squared error"),
    "knn_top1": ("k-NN top-1", "share of images"),
}


def write_run_report(run: str | Path, path: str | Path | None = None) -> Path:
    r"""Write the page of a run: a verdict, student beside teacher, curves, pictures, settings.

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
        >>> import tempfile
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
    log, timing, watch = read_logs(folder)
    facts, demo = read_facts(folder / "run.json"), read_demo(folder)
    found = demo if isinstance(demo, dict) else {}
    untrained, known = untrained_of(watch, found), {**found, **(facts or {})}
    with np.errstate(all="ignore"):
        numbers = measure(log, timing, watch, known)
        verdict = verdict_on(numbers, log, watch, untrained)
        parts = [
            Lead(verdict.sentences),
            *_demo(demo),
            *_costs(numbers, known),
            *_notes(folder / "notes.txt"),
            *_gaps(numbers, log, facts),
            *_compared(watch, untrained, known),
            *_watched(watch, numbers["watch"]),
            *_losses(log, numbers["losses"]),
            *_throughput(timing),
            *_pictures(folder),
            *_settings(known, log),
        ]
        write_report(target, title, parts)
    numbers["verdict"] = verdict.lines
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


def _demo(found: Mapping[str, Any] | str) -> list[Part]:
    """What a demo found, as it wrote it down: sentences and tables."""
    if isinstance(found, str):
        return [found]
    page = found.get("page", [])
    return [part if isinstance(part, str) else Table(**part) for part in page]


def _notes(path: Path) -> list[Part]:
    if not is_plain(path):
        return []
    with path.open("rb") as file:
        return [*file.read(_MOST_NOTES).decode("utf-8", "replace").splitlines()]


def _costs(numbers: Mapping[str, Any], facts: Mapping[str, Any]) -> list[Part]:
    rows: list[tuple[str, str]] = []
    if numbers["steps"]:
        done, wanted = numbers["steps"], numbers["of"]
        rows.append(("steps", f"{done:,} of {wanted:,}" if wanted else f"{done:,}"))
    if numbers.get("seconds") is not None:
        rows.append(("time spent training", _duration(numbers["seconds"])))
        if numbers["processes"] > 1:
            rows.append(("processes one after the other", str(numbers["processes"])))
    count, device = facts.get("processes"), facts.get("device")
    if isinstance(device, str):
        several = type(count) is int and count > 1
        rows.append(("on", f"{count} × {device}" if several else device))
    for name, label, text in (
        ("images_per_second", "images/s (median)", "{:,.0f}"),
        ("data_wait", "waiting for data (median)", "{:.1%}"),
        ("memory_mib", "memory (highest)", "{:,.0f} MiB"),
    ):
        if numbers.get(name) is not None:
            rows.append((label, text.format(numbers[name]).replace("%", " %")))
    return [Facts(rows)] if rows else []


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _gaps(numbers: Mapping[str, Any], log: Columns, facts: Any) -> Iterable[Part]:
    """What the files lack."""
    if numbers["missing"]:
        yield f"Rows that the log lacks: {numbers['missing']}. Curves join what is left."
    if log.unreadable:
        yield (
            f"Lines of the log that could not be read: {log.unreadable} (a run that is killed "
            f"may leave half of one)."
        )
    if facts is None:
        yield "run.json could not be read; recipe and versions are not shown."


def _compared(
    watch: Columns, untrained: Mapping[str, float], facts: Mapping[str, Any]
) -> list[Part]:
    """Teacher, student and, where it was looked at, the untrained student, line by line."""
    last = {name: _last(values) for name, values in watch.values.items()}
    measures = ("knn_top1", "cls_cosine", "patch_cosine")
    student = {name: last.get(name) for name in measures}
    teacher = {"knn_top1": last.get("teacher_knn_top1")}
    teacher |= {name: 1.0 for name in measures[1:] if student[name] is not None}
    rows = [("teacher", teacher), ("student", student)]
    if any(name in untrained for name in measures):
        rows.append(("student, untrained", {name: untrained.get(name) for name in measures}))
    models = facts.get("models")
    sizes = models if isinstance(models, dict) else {}
    lines = []
    for name, found in rows:
        role = name.partition(",")[0]
        size = sizes.get(role)
        count = size.get("parameters") if isinstance(size, dict) else None
        weights = ["", ""] if type(count) is not int else [f"{count / 1e6:.2f} M", size_of(count)]
        model = _name_of(role, facts) if name == role else ""
        share = found.get("knn_top1")
        cosines = (found.get(name) for name in measures[1:])
        lines.append(
            [
                f"{name} ({model})" if model else name,
                *weights,
                "" if share is None else f"{100 * share:.1f} %",
                *("" if cosine is None else f"{cosine:.3f}" for cosine in cosines),
            ]
        )
    header = ["model", "parameters", "as float32", "k-NN top-1", "cosine, class tokens", "patches"]
    known = [n for n in range(len(header)) if n == 0 or any(line[n] for line in lines)]
    if len(known) == 1:
        return []
    table = Table([header[n] for n in known], [[line[n] for n in known] for line in lines])
    return [Heading("Student beside teacher"), table]


def _name_of(role: str, facts: Mapping[str, Any]) -> str:
    found = leaves(facts.get("recipe")) | leaves(facts.get("models"))
    names = [v for p, v in found.items() if p in (f"science.model.{role}", f"{role}.name")]
    return names[-1] if names and isinstance(names[-1], str) else ""


def _last(values: Array) -> float | None:
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else None


def _losses(log: Columns, losses: Mapping[str, list[float | None]]) -> list[Part]:
    if not len(log):
        return []
    late = max(1, min(100, len(log) // 10))
    header = ["loss", "first step", "last step", f"mean of the last {late}", "lowest"]
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
    return [*parts, *_charts(log, {name: {name: log.values[name]} for name in shown})]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _throughput(timing: Columns) -> list[Part]:
    names = ("images_per_second", "data_wait", "memory_mib")
    panels = {name: {name: timing.values[name]} for name in names if name in timing.values}
    drawn = _charts(timing, panels)
    return [Heading("Throughput"), *drawn] if drawn else []


def _watched(watch: Columns, found: Mapping[str, list[float | None]]) -> list[Part]:
    """One chart a measure; what was measured of the teacher goes into its student's."""
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
    drawn = _charts(watch, panels)
    if not drawn:
        return []
    scored = watch.values.get(_SCORED, np.empty(0))
    scored = scored[np.isfinite(scored)]
    notes = [
        f"The k-NN is scored on {count:.0f} images; ± is the 95 % interval that so few leave. "
        f"`proteus evaluate` scores all images of a set."
        for count in scored[-1:]
    ]
    table = Table(["measure", "first look", "last look"], rows)
    return [Heading("On held-out images"), *drawn, table, *notes]


def _uncertain(value: float, margin: float) -> str:
    return f"{_number(value)} ± {margin:.2g}" if np.isfinite(margin) else _number(value)


def _charts(columns: Columns, panels: Mapping[str, Mapping[str, Array]]) -> list[Part]:
    """Charts of what has a finite value."""
    drawn: dict[str, list[Line]] = {}
    for name, lines in panels.items():
        for label, values in lines.items():
            curve = thin(columns.values["step"], values, _POINTS)
            if len(curve.steps):
                shown = label if label != name else ""
                drawn.setdefault(name, []).append(Line(shown, *(part.tolist() for part in curve)))
    if not drawn:
        return []
    charts = []
    for name, found in [*drawn.items()][:_MOST_PANELS]:
        title, unit = _NAMES.get(name, (name, ""))
        charts.append(Chart(title, found, unit))
    left_out = len(drawn) - len(charts)
    bands = any(list(one.low) != list(one.high) for lines in drawn.values() for one in lines)
    more = ["Lines are means of several steps, bands their lowest and highest."] if bands else []
    more += [f"Not drawn: {left_out} more columns."] if left_out else []
    return [Charts(charts), *more]


def _pictures(folder: Path) -> list[Part]:
    found: list[Part] = [
        Picture(folder / name, caption)
        for name, caption in _PICTURES.items()
        if (folder / name).exists()  # what it is, the page looks at
    ]
    return [Heading("Pictures"), *found] if found else []


def _settings(facts: Mapping[str, Any], log: Columns) -> list[Part]:
    """What was in effect; all of it as JSON, folded away."""
    active = [name for name, values in log.values.items() if np.nan_to_num(values).any()]
    groups = settings_in_effect(facts, active)
    parts: list[Part] = [Heading("Settings"), Facts(groups=groups)] if groups else []
    whole = {key: facts[key] for key in ("recipe", "settings") if key in facts}
    for name, found in whole.items():
        parts.append(
            Details(f"The whole {name} as JSON", json.dumps(found, indent=2, ensure_ascii=False))
        )
    return parts
