"""The table of docs/device.md from what benchmarks/device.py measured.

python benchmarks/device_page.py
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pages import fill

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "device.json", HERE.parent / "docs" / "device.md"


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """One line a graph."""
    yield "| model | pixels | numbers | class tokens | patches | layers in float | MB | ms |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for row in rows:
        start = f"| {row['model']} | {row['image_size']} | {row['dtype']}"
        if "refused" in row:
            cls, patches = re.findall(r"(?:tokens|patches) ([\d.]+\d)", row["refused"])
            yield f"{start} | {cls} | {patches} | refused | | |"
            continue
        kept = f"{len(row['kept_float'])} of {row['layers']}" if row["layers"] else ""
        yield (
            f"{start} | {row['cls']:.4f} | {row['patches']:.4f} | {kept} "
            f"| {row['size'] / 1e6:.1f} of {row['fp32_size'] / 1e6:.1f} "
            f"| {row['latency']:.1f}, float32 {row['fp32_latency']:.1f} |"
        )


def throughout(rows: list[dict[str, Any]]) -> str:
    """What int8 alone came to, where it was not enough."""
    found = [
        f"{row['model']} {number[1]}"
        for row in rows
        for text in row["said"]
        if (number := re.search(r"agrees to ([\d.]+\d)", text))
    ]
    if not found:
        return "int8 throughout was enough for all of them."
    return (
        f"The lower of the two with int8 throughout, where that was below 0.992 (the mark and a "
        f"margin) on images that calibrate: {', '.join(found)}."
    )


def page_with_table(text: str, facts: dict[str, Any]) -> str:
    """The page with the table between its two marks."""
    rows = facts["rows"]
    said = f"{facts['hardware']}; `{facts['command']}`."
    return fill(text, "table: benchmarks/device_page.py", [said, "", *table(rows), "",
                                                          throughout(rows)])  # fmt: skip


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text(), json.loads(RESULTS.read_text())))
