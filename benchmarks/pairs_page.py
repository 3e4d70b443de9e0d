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
COSINES = ("cls_cosine", "patch_cosine")


Rows = dict[str, dict[int, dict[str, Any]]]


def by_pair(rows: list[dict[str, Any]]) -> Rows:
    """Name of a pair -> seed -> what was measured."""
    found: Rows = {}
    for row in rows:
        found.setdefault(row["pair"], {})[row["seed"]] = row
    return found


def to_equal_grids(rows: Rows) -> dict[str, dict[str, float]]:
    """Name of a pair -> cosine -> mean difference to equal grids, each seed to its own.

    Pairs of which there is none with equal grids, of the same kind, are left out.
    """
    equal = {pair.group: pair for pair in PAIRS if pair.rule.startswith("equal grids: ")}
    found: dict[str, dict[str, float]] = {}
    for pair in PAIRS:
        first = equal.get(pair.group, pair)
        if first == pair or pair.key not in rows:
            continue
        found[pair.key] = {
            column: mean(
                row["student"][column] - rows[first.key][seed]["student"][column]
                for seed, row in rows[pair.key].items()
            )
            for column in COSINES
        }
    return found


def tables(rows: Rows) -> Iterator[str]:
    """One Markdown table a group; mean ± standard deviation over the seeds."""
    apart = to_equal_grids(rows)
    for group in dict.fromkeys(pair.group for pair in PAIRS):
        measured = [p for p in PAIRS if p.group == group and p.key in rows]
        if not measured:
            continue
        yield f"\n**{group}**\n"
        yield f"| rule | grids | {' | '.join(COLUMNS.values())} | seeds |"
        yield "| --- | --- |" + " --- |" * (len(COLUMNS) + 1)
        for pair in measured:
            yield line(pair, rows[pair.key], apart.get(pair.key, {}))
        some = next(iter(rows[measured[0].key].values()))
        for name, what in (("teacher", "teacher"), ("before", "untrained student")):
            yield (
                f"| *{what}* | | | | {some[name]['knn']:.3f} | {some[name]['segmentation']:.3f} | |"
            )


def line(pair: Pair, rows: dict[int, dict[str, Any]], apart: dict[str, float]) -> str:
    """One line of a table; in brackets, the difference to the pair with equal grids."""
    cells = []
    for column in COLUMNS:
        cell = show([r["student"][column] for r in rows.values() if column in r["student"]])
        cells.append(cell + (f" ({apart[column]:+.3f})" if column in apart else ""))
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
    return head + START + note + "\n".join(tables(by_pair(rows))) + "\n\n" + END + tail


if __name__ == "__main__":
    PAGE.write_text(page_with_tables(PAGE.read_text(), rows_of(RESULTS)))
