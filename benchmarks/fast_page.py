"""The tables of docs/speed.md and docs/prepared.md from what benchmarks/fast.py measured.

python benchmarks/fast_page.py
"""

from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from pages import fill
from pairs import rows_of

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "fast.jsonl"
RECIPE, VIEWS = HERE.parent / "docs" / "speed.md", HERE.parent / "docs" / "prepared.md"
NAMES = {
    "paper": "`paper`: live teacher, full size",
    "fast": "**`fast`**",
    "prepared": "prepared targets alone",
    "small": "half the side first, alone",
}
SCORES = {"knn": "k-NN", "segmentation": "mIoU"}
LENGTH = ("images", "epochs", "batch_size", "lr", "augment", "share")  # what runs compared share

Run = dict[str, Any]
Runs = dict[tuple[str, int], dict[int, Run]]  # way and views -> seed -> its run


def sets(rows: list[Run]) -> dict[tuple[Any, ...], Runs]:
    """Teacher and settings -> the runs that may be compared; a live run has no views: 0."""
    found: dict[tuple[Any, ...], Runs] = {}
    for row in rows:
        if row["way"] != "teacher":
            runs = found.setdefault((row["teacher"], *(row[name] for name in LENGTH)), {})
            views = row["views"] if row["way"] in ("fast", "prepared") else 0
            runs.setdefault((row["way"], views), {})[row["seed"]] = row["found"]
    return found


def gain(run: Run, score: str) -> float:
    """What training brought over the untrained student."""
    return run["after"][score] - run["before"][score]


def against(runs: Runs, way: tuple[str, int]) -> list[tuple[Run, Run]]:
    """Runs of a way, each beside the paper's of its seed."""
    paper = runs[("paper", 0)]
    return [(run, paper[seed]) for seed, run in sorted(runs[way].items()) if seed in paper]


def cost(runs: Runs, way: tuple[str, int]) -> list[float]:
    """CPU seconds, of the paper's at the same seed."""
    return [run["cpu_seconds"] / paper["cpu_seconds"] for run, paper in against(runs, way)]


def kept(runs: Runs, way: tuple[str, int], score: str) -> float:
    """Share of the paper's gain, of means over the seeds that both have."""
    both = against(runs, way)
    return mean(gain(run, score) for run, _ in both) / mean(gain(paper, score) for _, paper in both)


def recipes(rows: list[Run]) -> Iterator[str]:
    """A table for each teacher: the ways, with two views where targets are prepared."""
    for key, runs in sets(rows).items():
        if ("fast", 2) in runs:
            yield from caption(key, rows)
            yield from head("way")
            for way, views in (("paper", 0), ("fast", 2), ("prepared", 2), ("small", 0)):
                if (way, views) in runs:
                    yield line(NAMES[way], runs, (way, views))
            yield ends(key[0], runs, rows)


def views(rows: list[Run]) -> Iterator[str]:
    """A table for each teacher of which other numbers of views were tried."""
    for key, runs in sets(rows).items():
        counts = sorted(views for way, views in runs if way == "prepared")
        if len(counts) > 1:
            yield from caption(key, rows)
            yield from head("views")
            for count in counts:
                yield line(str(count), runs, ("prepared", count))
            yield line("a new one in each epoch, live", runs, ("paper", 0))
            yield ends(key[0], runs, rows)


def caption(key: tuple[Any, ...], rows: list[Run]) -> Iterator[str]:
    said = dict(zip(LENGTH, key[1:], strict=True))
    hardware = next(row["hardware"] for row in rows if row["teacher"] == key[0])
    yield (
        f"\n**{key[0]}**, {said['images']:,} images, {said['epochs']} epochs, batch "
        f"{said['batch_size']}; {hardware}\n"
    )


def head(first: str) -> Iterator[str]:
    scores = "".join(f" {name} | gain kept |" for name in SCORES.values())
    yield f"| {first} | CPU seconds | / live (seeds) |{scores} seeds |"
    yield "| --- | --- | --- |" + " --- | --- |" * len(SCORES) + " --- |"


def line(name: str, runs: Runs, way: tuple[str, int]) -> str:
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
    before = [run["before"] for run in runs[("paper", 0)].values()]
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


def pages(rows: list[Run]) -> dict[Path, str]:
    """Each page with its tables."""
    return {
        RECIPE: fill(RECIPE.read_text(), "fast: benchmarks/fast_page.py", recipes(rows)),
        VIEWS: fill(VIEWS.read_text(), "views: benchmarks/fast_page.py", views(rows)),
    }


if __name__ == "__main__":
    for path, text in pages(rows_of(RESULTS)).items():
        path.write_text(text)
