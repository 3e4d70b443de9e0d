"""The tables of docs/speed.md from what the other benchmarks measured.

python benchmarks/speed_page.py
"""

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from pages import fill

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results", HERE.parent / "docs" / "speed.md"
NAMES = {
    "ours": "**ours**",
    "prepared": "**ours, targets prepared**",
    "half": "**ours, teacher in bf16**",
    "straightforward": "straightforward, same models",
    "authors": "authors' code",
    "lightly": "lightly-train `distillationv3`",
    "timm": "timm `FeatureDistillationTask`",
}


def steps() -> list[dict[str, Any]]:
    """What `benchmarks/step.py --json` left."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("step-*.json"))]


def ratios(facts: dict[str, Any], way: str, of: str = "ours") -> list[float]:
    """How many times the time of `of` a step takes, in each round."""
    seconds = facts["seconds"]
    return [a / b for a, b in zip(seconds[way], seconds[of], strict=True)]


def tables(found: list[dict[str, Any]]) -> Iterator[str]:
    """One table for each run of the benchmark."""
    for facts in found:
        said = facts["settings"]
        pair = f"{said['student']} <- {said['teacher']}"
        versions = f"Python {facts['python']}, torch {facts['torch']}, timm {facts['timm']}"
        yield (
            f"\n**{pair}**, {said['image_size']} px, batch {said['batch_size']}, "
            f"{said['precision']}; {facts['hardware']}, {versions}; `{facts['command']}`\n"
        )
        yield "| step | ms | time / ours (rounds) | operations / ours | memory, MiB (/ ours) |"
        yield "| --- | --- | --- | --- | --- |"
        for way in NAMES:
            if way in facts["seconds"]:
                yield row(facts, way)


def row(facts: dict[str, Any], way: str) -> str:
    """A line: median and range of the ratio, taken within each round."""
    each = ratios(facts, way)
    work = facts["operations"][way] / facts["operations"]["ours"]
    memory, ours = facts["mebibytes"][way], facts["mebibytes"]["ours"]
    return (
        f"| {NAMES[way]} | {median(facts['seconds'][way]) * 1e3:,.0f} | {median(each):.2f} "
        f"({min(each):.2f} to {max(each):.2f}) | {work:.2f} | {memory:,.0f} ({memory / ours:.2f}) |"
    )


def page(text: str) -> str:
    """The page with its tables."""
    return fill(text, "steps: benchmarks/speed_page.py", tables(steps()))


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
