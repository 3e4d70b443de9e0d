"""The table of docs/plan.md from what benchmarks/plan.py measured.

python benchmarks/plan_page.py
"""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "plan.json", HERE.parent / "docs" / "plan.md"
START, END = "<!-- table: benchmarks/plan_page.py -->\n", "<!-- end of table -->\n"
MARK = 0.15


def error(row: dict[str, Any], what: str) -> float:
    """Of the prediction, relative to what came."""
    predicted: float = row["predicted"][what]
    return predicted / row["measured"][what] - 1


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """One line a run: predicted, measured, and how far apart."""
    yield "| run | seconds | processor seconds | GiB at the most | other programs' cores |"
    yield "| --- | --- | --- | --- | --- |"
    for row in rows:
        cells = [f"{row['case']}, `{row['options']}`"]
        for what, unit in (("seconds", 1.0), ("cpu_seconds", 1.0), ("memory", 2.0**30)):
            digits = 2 if what == "memory" else 0
            said, came = row["predicted"][what] / unit, row["measured"][what] / unit
            cells.append(f"{said:.{digits}f}, {came:.{digits}f} ({error(row, what):+.0%})")
        cells.append(f"{row['others']['plan']:.1f}, {row['others']['run']:.1f}")
        yield f"| {' | '.join(cells)} |"


def summary(rows: list[dict[str, Any]]) -> str:
    """How many are within the mark."""
    counted = {
        what: sum(abs(error(row, what)) <= MARK for row in rows)
        for what in ("seconds", "cpu_seconds", "memory")
    }
    mean = statistics.mean(error(row, "cpu_seconds") for row in rows)
    return (
        f"Within {MARK:.0%} of {len(rows)} runs: {counted['seconds']} in seconds, "
        f"{counted['cpu_seconds']} in processor seconds, {counted['memory']} in memory. "
        f"On average the processor seconds are off by {mean:+.0%}."
    )


def page_with_table(text: str, facts: dict[str, Any]) -> str:
    """A page with the table between its two marks."""
    head, rest = text.split(START)
    tail = rest.split(END)[1]
    rows = facts["rows"]
    said = f"{facts['hardware']}; `{facts['command']}`. {summary(rows)}"
    lines = [said, "", *table(rows)]
    return head + START + "\n" + "\n".join(lines) + "\n\n" + END + tail


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text(), json.loads(RESULTS.read_text())))
