"""The results of a suite as tables: for a terminal, as Markdown and on a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...files import write_whole
from ...report.page import Facts, Heading, Lead, Part, Table, write_report
from ...text import markdown_text
from .judged import judge_results
from .paper_rows import paper_score

TITLES = {"knn": "k-NN (k)", "linear": "linear probe", "finegrained": "logistic regression"}
_MAPS = ("mIoU", "mAcc", "aAcc")
_METRES = ("rmse", "abs_rel", "d1")
_DENSE = {  # protocol -> title, columns
    "segmentation": ("Segmentation", _MAPS),
    "segmentation-finetune": ("Segmentation, fine-tuned", _MAPS),
    "depth": ("Depth", _METRES),
    "depth-finetune": ("Depth, fine-tuned", _METRES),
}
_FINETUNED = ("segmentation-finetune", "depth-finetune")
_BELONGS = {  # how a setting's name starts -> the protocols that use it; others are of all
    "linear": ("linear", "robustness"), "select": ("linear", "robustness"),
    "sweep": ("finegrained",), "severities": ("robustness",),
    "segmentation": ("segmentation", "segmentation-finetune"),
    "depth_iterations": ("depth", "depth-finetune"), "depth": ("depth",),
    "dense": ("segmentation", "depth", *_FINETUNED), "finetune": _FINETUNED,
}  # fmt: skip
_NOTES = (
    "Per cent; depth RMSE in metres. k-NN has the best of its k, in brackets. Logistic regression "
    "is mean per class or 11-point mAP where the paper's is (m).",
    "Where a paper's number stands in brackets, it is of the whole set: not comparable.",
)

Results = Mapping[str, Mapping[str, Any]]


def result_tables(model: str, results: Results) -> dict[str, Table]:
    """The tables of a suite, by title: classification, dense, robustness, agreement.

    Args:
        model: Its name; the paper's row for it stands beside the numbers.
        results: `PROTOCOL/SET` -> numbers, as `SuiteRun.run` returns them.

    Examples:
        >>> knn = {"protocol": "knn", "best": 50.0, "best_k": 20, "subset": True}
        >>> table = result_tables("mine", {"knn/flowers5": knn})["Classification"]
        >>> table.rows
        [['flowers5', '50.0 (20)'], ['mean', '50.0']]
    """
    tables = {"Classification": _classification(model, results)}
    for protocol, (title, columns) in _DENSE.items():
        tables[title] = _dense(model, results, protocol, columns)
    tables["Robustness"] = _robustness(results)
    tables["Agreement with the teacher"] = _agreement(results)
    return {title: table for title, table in tables.items() if table.rows}


def _classification(model: str, results: Results) -> Table:
    ran = [p for p in TITLES if any(key.startswith(f"{p}/") for key in results)]
    names = list(dict.fromkeys(_name(key) for key in results if key.split("/")[0] in ran))
    columns: list[list[str]] = []
    for protocol in ran:
        found = [results.get(f"{protocol}/{name}", {}) for name in names]
        values = [value for one in found if (value := value_of(one)) is not None]
        # A mean over fewer sets than the one beside it would look like another model.
        mean = f"{sum(values) / len(values):.1f}" if len(values) == len(names) else ""
        columns.append([TITLES[protocol], *map(_cell, found), mean])
        papers = [_paper(model, protocol, *pair) for pair in zip(names, found, strict=True)]
        if any(papers):
            columns.append(["paper", *papers, ""])
    rows = zip(["set", *names, "mean"], *columns, strict=True)
    header, *lines = [list(row) for row in rows]
    return Table(header, lines if names else [], footer=1 if names else 0)


def _dense(model: str, results: Results, protocol: str, columns: Sequence[str]) -> Table:
    rows = []
    scale, digits = (100, 1) if columns == _MAPS else (1, 3)
    for key, one in results.items():
        if not key.startswith(f"{protocol}/"):
            continue
        found = [
            "error" if "error" in one else _text(one[column.lower()], scale, digits)
            for column in columns
        ]
        rows.append([_name(key), *found, _paper(model, protocol, _name(key), one)])
    header = ["set", *columns]
    if any(row[-1] for row in rows):
        return Table([*header, "paper"], rows)
    return Table(header, [row[:-1] for row in rows])


def _agreement(results: Results) -> Table:
    rows = []
    for key, one in results.items():
        if key.startswith("agreement/") and "error" not in one:
            cosines = [one["distances"].get(name) for name in ("cls_cosine", "patch_cosine")]
            rows.append([_name(key), *(_text(n, 1, 3) for n in (*cosines, one["cka_cls"]))])
    return Table(["set", "cosine of cls", "cosine of patches", "CKA of cls"], rows)


def _robustness(results: Results) -> Table:
    rows = []
    for key, one in results.items():
        if key.startswith("robustness/") and "error" not in one:
            worst, by_severity = min(one["accuracy"].items(), key=lambda i: min(i[1].values()))
            lowest = _text(min(by_severity.values()), 100, 1)
            rows.append(
                [
                    _name(key),
                    *(_text(one[name], 100, 1) for name in ("clean", "corrupted")),
                    f"{worst} {lowest}",
                ]
            )
    return Table(["set", "clean", "corrupted", "worst"], rows)


def _text(value: float | None, scale: int, digits: int) -> str:
    """A number of a table; None, for what could not be measured, is left empty."""
    return "" if value is None else f"{scale * value:.{digits}f}"


def _name(key: str) -> str:
    return key.partition("/")[2]


def value_of(one: Mapping[str, Any]) -> float | None:
    """The score of a classification result; None for a failure."""
    value = one.get("best", one.get("score"))
    return None if value is None else float(value)


def _cell(one: Mapping[str, Any]) -> str:
    if "error" in one:
        return "error"
    value = value_of(one)
    if value is None:
        return ""
    if "best_k" in one:
        return f"{value:.1f} ({one['best_k']})"
    return f"{value:.1f} (m)" if one.get("metric") in ("mean_class", "map_11") else f"{value:.1f}"


def _paper(model: str, protocol: str, name: str, one: Mapping[str, Any]) -> str:
    score = paper_score(model, protocol, name)
    if score is None:
        return ""
    return f"({score})" if one.get("subset") else f"{score}"


def markdown(table: Table) -> str:
    """The table in Markdown.

    Examples:
        >>> print(markdown(Table(["a", "b"], [["x", "1"]])))
        | a | b |
        |---|---:|
        | x | 1 |
    """
    rule = "|---|" + "---:|" * (len(table.header) - 1)
    rows = [table.header, *table.rows]
    lines = ["| " + " | ".join(map(markdown_text, row)) + " |" for row in rows]
    return "\n".join([lines[0], rule, *lines[1:]])


def failures(results: Results) -> list[str]:
    """`PROTOCOL/SET: reason` for what could not be run."""
    return [f"{key}: {one['error']}" for key, one in results.items() if "error" in one]


def write_tables(
    out: str | Path,
    model: str,
    results: Results,
    *,
    settings: Mapping[str, Any],
    pictures: Sequence[Part] = (),
) -> None:
    """Write `results.md` and `report.html`.

    Args:
        out: Folder.
        model: Its name.
        results: As in `SuiteRun.results`.
        settings: How the protocols were run; they are written down.
        pictures: For the page: what `suite_pictures` returns.
    """
    out = Path(out)
    tables = result_tables(model, results)
    how = "Settings: " + ", ".join(f"{name} {value}" for name, value in settings.items()) + "."
    notes = [*_NOTES, how, *(f"Failed: {reason}" for reason in failures(results))]
    title = f"Evaluation of {model}"
    lines = [f"# {markdown_text(title)}", ""]
    parts: list[Part] = [Lead(judge_results(results))]
    for name, table in tables.items():
        lines += [f"## {name}", "", markdown(table), ""]
        parts += [Heading(name), _without_empty(table)]
    parts += [*_NOTES, *(f"Failed: {reason}" for reason in failures(results))]
    parts += _hardest(results)
    # Each a paragraph of its own: Markdown joins lines.
    paragraphs = [text for note in notes for text in (markdown_text(note), "")]
    write_whole(out / "results.md", "\n".join([*lines, *paragraphs]))
    used = Facts(groups=[("In effect", _in_effect(settings, results))])
    parts += [*pictures, Heading("Settings"), used]
    write_report(out / "report.html", title, parts)


def _in_effect(settings: Mapping[str, Any], results: Results) -> list[tuple[str, str]]:
    """The settings that are set, and belong to a protocol that has results."""
    ran = {key.partition("/")[0] for key in results}
    shown = []
    for name, value in settings.items():
        words = next((w for start, w in _BELONGS.items() if name.startswith(start)), None)
        if value not in (None, False) and (words is None or any(one in ran for one in words)):
            text = ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
            shown.append((name, text))
    return shown


def _without_empty(table: Table) -> Table:
    """Without the columns that have no cell."""
    kept = [n for n in range(len(table.header)) if n == 0 or any(row[n] for row in table.rows)]
    rows = [[row[n] for n in kept] for row in table.rows]
    return Table([table.header[n] for n in kept], rows, table.footer)


def _hardest(results: Results) -> list[Part]:
    """The classes that k-NN gets wrong most often, of each set."""
    rows = [
        [_name(key), row["class"], f"{100 * row['right'] / row['of']:.1f}",
         f"{row['right']} of {row['of']}", row["taken_for"]]
        for key, one in results.items() if key.startswith("knn/")
        for row in one.get("mistakes", {}).get("worst", [])
    ]  # fmt: skip
    header = ["set", "class", "right, %", "images", "mostly taken for"]
    return [Heading("Hardest classes for k-NN"), Table(header, rows)] if rows else []
