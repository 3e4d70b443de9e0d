"""The tables of docs/pairs.md from what benchmarks/pairs.py measured.

python benchmarks/pairs_page.py
"""

from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pairs import PAIRS, Pair, rows_of

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "pairs.jsonl", HERE.parent / "docs" / "pairs.md"
START, END = "<!-- tables: benchmarks/pairs_page.py -->\n", "<!-- end of tables -->\n"
COLUMNS = {
    "cls_cosine": "cosine, class token",
    "patch_cosine": "cosine, patches",
    "knn": "k-NN",
    "segmentation": "mIoU",
}


def tables(rows: list[dict[str, Any]]) -> Iterator[str]:
    """One Markdown table a group; mean ± standard deviation over the seeds."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["pair"], {})[row["seed"]] = row
    for group in dict.fromkeys(pair.group for pair in PAIRS):
        measured = [p for p in PAIRS if p.group == group and p.key in found]
        if not measured:
            continue
        first = found[measured[0].key]
        alike = measured[0].rule.startswith("equal grids: ")
        yield f"\n**{group}**\n"
        yield f"| rule | grids | {' | '.join(COLUMNS.values())} | seeds |"
        yield "| --- | --- |" + " --- |" * (len(COLUMNS) + 1)
        for pair in measured:
            yield line(pair, found[pair.key], first if alike and pair != measured[0] else {})
        some = next(iter(first.values()))
        for name, what in (("teacher", "teacher"), ("before", "untrained student")):
            yield (
                f"| *{what}* | | | | {some[name]['knn']:.3f} | {some[name]['segmentation']:.3f} | |"
            )


def line(pair: Pair, rows: dict[int, dict[str, Any]], equal: dict[int, dict[str, Any]]) -> str:
    """One line of a table; in brackets, the difference to the equal-grid pair of the same seed."""
    cells = []
    for column in COLUMNS:
        values = {s: row["student"][column] for s, row in rows.items() if column in row["student"]}
        cell = show([*values.values()])
        if equal and "cosine" in column:
            apart = mean(values[s] - equal[s]["student"][column] for s in values)
            cell += f" ({apart:+.3f})"
        cells.append(cell)
    student, teacher, common = ("x".join(map(str, g)) for g in next(iter(rows.values()))["grids"])
    grids = f"{student}, {teacher}: {common}"
    return f"| {pair.rule} | {grids} | {' | '.join(cells)} | {len(rows)} |"


def show(values: list[float]) -> str:
    if not values:
        return ""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def page_with_tables(text: str, rows: list[dict[str, Any]]) -> str:
    """A page with the tables between its two marks."""
    head, rest = text.split(START)
    tail = rest.split(END)[1]
    said = sorted({row["hardware"] for row in rows})
    images = sorted({row["images"] for row in rows})
    note = f"\n{images[0]:,} images a run, {rows[0]['precision']}; {'; '.join(said)}.\n"
    return head + START + note + "\n".join(tables(rows)) + "\n\n" + END + tail


if __name__ == "__main__":
    PAGE.write_text(page_with_tables(PAGE.read_text(), rows_of(RESULTS)))
