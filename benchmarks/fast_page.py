"""The table of docs/speed.md from what benchmarks/fast.py measured.

python benchmarks/fast_page.py
"""

from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from pages import fill
from pairs import rows_of

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "fast.jsonl"
PAGE = HERE.parent / "docs" / "speed.md"
NAMES = {
    "paper": "`paper`: live teacher, full size",
    "both": "targets prepared, and half the side first",
    "prepared": "targets prepared",
    "small": "half the side first",
}
SCORES = {"knn": "k-NN", "segmentation": "mIoU"}
ALIKE = ("images", "batch_size", "augment")  # what runs that are compared share

Run = dict[str, Any]


class Way(NamedTuple):
    """How a student was trained; 0 = no views prepared, no steps of half the side."""

    name: str
    views: int
    share: float
    epochs: int
    lr: float


Runs = dict[Way, dict[int, Run]]  # by seed


def sets(rows: list[Run]) -> dict[tuple[Any, ...], Runs]:
    """Teacher and settings -> the runs that may be compared."""
    found: dict[tuple[Any, ...], Runs] = {}
    for row in rows:
        if row["way"] != "teacher":
            runs = found.setdefault((row["teacher"], *(row[name] for name in ALIKE)), {})
            views = row["views"] if row["way"] in ("both", "prepared") else 0
            share = row["share"] if row["way"] in ("both", "small") else 0.0
            way = Way(row["way"], views, share, row["epochs"], row["lr"])
            runs.setdefault(way, {})[row["seed"]] = row["found"]
    return found


def paper_of(runs: Runs) -> Way:
    """What the others are compared with."""
    return next(way for way in runs if way.name == "paper")


def gain(run: Run, score: str) -> float:
    """What training brought over the untrained student."""
    return run["after"][score] - run["before"][score]


def against(runs: Runs, way: Way) -> list[tuple[Run, Run]]:
    """Runs of a way, each beside the paper's of its seed."""
    paper = runs[paper_of(runs)]
    return [(run, paper[seed]) for seed, run in sorted(runs[way].items()) if seed in paper]


def cost(runs: Runs, way: Way) -> list[float]:
    """CPU seconds, of the paper's at the same seed."""
    return [run["cpu_seconds"] / paper["cpu_seconds"] for run, paper in against(runs, way)]


def kept(runs: Runs, way: Way, score: str) -> float:
    """Share of the paper's gain, of means over the seeds that both have."""
    both = against(runs, way)
    return mean(gain(run, score) for run, _ in both) / mean(gain(paper, score) for _, paper in both)


def tables(rows: list[Run]) -> Iterator[str]:
    """A table for each teacher."""
    for key, runs in sets(rows).items():
        paper = paper_of(runs)
        yield from caption(key, rows)
        yield from head()
        for way in sorted(
            runs, key=lambda way: ([*NAMES].index(way.name), -way.epochs, -way.share)
        ):
            yield line(called(way, paper), runs, way)
        yield ends(key[0], runs, rows)


def called(way: Way, paper: Way) -> str:
    """A way in words, as far as it differs from the paper's."""
    words = [f"{NAMES[way.name]}"]
    if way.views not in (0, 2):
        words.append(f"{way.views} views")
    if way.share:
        words.append(f"{way.share:.0%} of the steps".replace("%", " %"))
    if way.epochs != paper.epochs:
        words.append(f"{way.epochs} epochs")
    if way.lr != paper.lr:
        words.append(f"rate {way.lr:g}")
    return ", ".join(words)


def caption(key: tuple[Any, ...], rows: list[Run]) -> Iterator[str]:
    said = dict(zip(ALIKE, key[1:], strict=True))
    paper = next(row for row in rows if row["way"] == "paper" and row["teacher"] == key[0])
    hardware = next(row["hardware"] for row in rows if row["teacher"] == key[0])
    yield (
        f"\n**{key[0]}**, {said['images']:,} images, {paper['epochs']} epochs, batch "
        f"{said['batch_size']}, rate {paper['lr']:g}; {hardware}\n"
    )


def head() -> Iterator[str]:
    scores = "".join(f" {name} | gain kept |" for name in SCORES.values())
    yield f"| way | CPU seconds | / live (seeds) |{scores} seeds |"
    yield "| --- | --- | --- |" + " --- | --- |" * len(SCORES) + " --- |"


def line(name: str, runs: Runs, way: Way) -> str:
    """A way: means over its seeds."""
    both, each = against(runs, way), cost(runs, way)
    cells = [
        f"{mean(run['after'][score] for run, _ in both):.3f} | {kept(runs, way, score):.0%}"
        for score in SCORES
    ]
    return (
        f"| {name} | {mean(run['cpu_seconds'] for run, _ in both):,.0f} | {mean(each):.2f} "
        f"({min(each):.2f} to {max(each):.2f}) | {' | '.join(cells)} | {len(both)} |"
    )


def ends(teacher: str, runs: Runs, rows: list[Run]) -> str:
    """The untrained student and the teacher."""
    before = [run["before"] for run in runs[paper_of(runs)].values()]
    frozen = next(
        row["found"]["teacher"]
        for row in rows
        if row["teacher"] == teacher and row["way"] == "teacher"
    )
    low, high = (
        " | ".join(f"{mean(some[score] for some in found):.3f} | " for score in SCORES)
        for found in (before, [frozen])
    )
    return f"| *untrained student* | | | {low} | |\n| *teacher* | | | {high} | |"


def page(text: str) -> str:
    """The page with its tables."""
    return fill(text, "fast: benchmarks/fast_page.py", tables(rows_of(RESULTS)))


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
