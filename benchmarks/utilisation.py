"""Which share of an H100's peak the runs of benchmarks/pairs.py were busy with.

The FLOP of each pair are counted on its real modules (`proteus.recipes.counting`), times the images
of its runs, over the seconds that all runs took. The card was shared by `JOBS` runs at once (the
command in benchmarks/pairs.py), and a run's seconds hold its measurements, too: a low bound.

    python benchmarks/utilisation.py     # counts, and writes benchmarks/results/utilisation.json
"""

import json
from pathlib import Path
from typing import Any

from pairs import PAIRS, SMALL, STUDENTS, Pair, rows_of, small

from proteus import Distiller, ProteusLoss, Student, Teacher
from proteus.recipes.accelerators import ACCELERATORS
from proteus.recipes.counting import count

HERE = Path(__file__).parent
RUNS, RESULTS = HERE / "results" / "pairs.jsonl", HERE / "results" / "utilisation.json"
JOBS = 8


def objective(pair: Pair) -> Distiller:
    """What a pair trains, with random weights."""
    (name, size), (student_name, student_size) = pair.teacher, pair.student
    teacher = Teacher(small(name) if name in SMALL else name, pretrained=False, image_size=size)
    options = dict(pair.options)
    layers = {"layers": options.pop("layers")} if "layers" in options else {}
    student = Student(STUDENTS[student_name](student_size), image_size=student_size, **layers)
    widths = (student.embed_dim, student.patch_dim), (teacher.embed_dim, teacher.patch_dim)
    return Distiller(teacher, student, ProteusLoss(*widths, **options))


def share(flops: dict[str, float], rows: list[dict[str, Any]]) -> float:
    """Of the peak in bf16: FLOP of all runs, over their seconds on a part of the card each."""
    done = sum(flops[row["pair"]] * row["images"] for row in rows)
    seconds = sum(row["seconds"] for row in rows) / JOBS
    return done / seconds / ACCELERATORS["H100"].half


def main() -> None:
    rows = rows_of(RUNS)
    flops = {}
    for pair in PAIRS:
        flops[pair.key] = count(objective(pair)).flops
        print(f"{pair.key:60} {flops[pair.key] / 1e9:7.2f} GFLOP an image", flush=True)
    found = share(flops, rows)
    print(f"{len(rows)} runs, {JOBS} at once: {found:.2%} of an H100's peak in bf16")
    facts = {"jobs": JOBS, "runs": len(rows), "share": found, "flops_an_image": flops}
    RESULTS.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
