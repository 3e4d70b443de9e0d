"""Distil the embedded teacher into a student a quarter of its size, and show what came of it.

Nothing is downloaded. The teacher (`teacher/`, see its card) and the images (`images/`, hand signs
for the ten digits) are inside the package; `tools/` in the repository made them.
"""

import time
from pathlib import Path

import torch
from torch import Tensor

from ..data import ImageLoader, open_source
from ..distiller import Distiller
from ..files import seal, write_whole
from ..hub.card import sizes_and_device
from ..ranges import check_numbers
from ..report.page import Table, text_table
from ..report.run_page import DEMO, write_run_report
from ..student import Student
from ..teacher import Teacher
from ..training import join
from ..training.folder import holding
from ..training.watch import Watch

IMAGES = Path(__file__).parent / "images"
SIZE = 64
_LOOKS = 5  # at the held-out images, while it trains
_BATCH, _LR, _WARMUP, _SCALE = 32, 2e-3, 0.1, (0.8, 1.0)


def run_demo(
    out: str | Path,
    *,
    steps: int = 500,
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, float]:
    """Run the demo and write `report.html`, its results (`demo.json`) and the run's own files.

    The labels are used for nothing but the k-NN scores: training sees images only.

    Args:
        out: Folder for the run.
        steps: Optimizer steps of 32 images.
        seed: Of the student's weights, the data order and the masks.
        device: `auto` = the accelerator if there is one, else the CPU.
        resume: Go on with the run in `out`.
        overwrite: Replace a run in `out`.

    Returns:
        `teacher`, `before` and `after`: k-NN top-1 in percent; `recovered`: the share of the gap
        between the untrained student and the teacher that training closed; `seconds`.
    """
    check_numbers("demo", {"steps": steps, "seed": seed})
    out, world = Path(out), join(device)
    with holding(out, world):
        return _run(
            out, steps=steps, seed=seed, device=world.device, resume=resume, overwrite=overwrite
        )


def _run(
    out: Path, *, steps: int, seed: int, device: torch.device, resume: bool, overwrite: bool
) -> dict[str, float]:
    started = time.perf_counter()
    torch.manual_seed(seed)
    teacher, student = Teacher("demo-teacher"), Student("demo-student", image_size=SIZE)
    distiller = Distiller(teacher, student)
    bank, test = _labelled(IMAGES / "train.tar"), _labelled(IMAGES / "test.tar")
    watch = Watch(*test, bank, batch_size=250, every=max(1, steps // _LOOKS))
    before = watch(distiller)
    data = ImageLoader(
        open_source(IMAGES / "train.tar"),
        batch_size=_BATCH,
        image_size=SIZE,
        seed=seed,
        scale=_SCALE,
    )
    preview = test[0][:: len(test[0]) // 8][:8]
    rows = distiller.fit(
        data,
        steps=steps,
        lr=_LR,
        warmup=_WARMUP,
        seed=seed,
        device=device,
        out=out,
        resume=resume,
        overwrite=overwrite,
        preview=preview,
        watch=watch,
    )
    after = watch(distiller)
    scores = {
        "teacher": 100 * before["teacher_knn_top1"],
        "before": 100 * before["knn_top1"],
        "after": 100 * after["knn_top1"],
    }
    scores["recovered"] = (scores["after"] - scores["before"]) / (
        scores["teacher"] - scores["before"]
    )
    facts = sizes_and_device(teacher, student, device)
    sizes = {
        model: f"{facts['models'][role]['parameters'] / 1e6:.2f} M"
        for role, model in (("teacher", teacher), ("student", student))
    }
    table = Table(
        ["", "parameters", "cosine to teacher", "k-NN top-1"],
        [
            ["teacher", sizes[teacher], "1.000", f"{scores['teacher']:.1f} %"],
            [
                "student before",
                sizes[student],
                f"{before['cls_cosine']:.3f}",
                f"{scores['before']:.1f} %",
            ],
            [
                "student after",
                sizes[student],
                f"{after['cls_cosine']:.3f}",
                f"{scores['after']:.1f} %",
            ],
        ],
    )
    scores["seconds"] = time.perf_counter() - started
    summary = (
        f"The student recovered {scores['recovered']:.0%} of the k-NN gap in "
        f"{scores['seconds']:.0f} s, from {len(bank[0])} images without labels."
    )
    terms = ("total", "token", "feature", "patch")
    losses = Table(
        ["loss", *terms],
        [
            ["first step", *(f"{rows[0][term]:.3f}" for term in terms)],
            ["last step", *(f"{rows[-1][term]:.3f}" for term in terms)],
        ],
    )
    print(f"\n{text_table(table)}\n\n{text_table(losses)}\n\n{summary}\n")
    note = (
        f"k-NN (k = 20) on {len(test[0])} photographs of hand signs by people who are not in the "
        f"training images; cosine between class tokens on the same photographs. The student's "
        f"colours below should look like the teacher's."
    )
    found = {"scores": scores, "page": [summary, note], "before": before, **facts}
    found["settings"] = {
        "steps": steps, "seed": seed, "image_size": SIZE, "batch_size": _BATCH, "lr": _LR,
        "warmup": _WARMUP, "crops": list(_SCALE), "images": len(bank[0]),
    }  # fmt: skip
    write_whole(out / DEMO, seal(found))
    print(f"Report: {write_run_report(out)}")
    return scores


def _labelled(shard: Path) -> tuple[Tensor, Tensor]:
    """All images of a shard, uint8 [n, 3, 64, 64], and labels [n] from the members' folders."""
    source = open_source(shard)
    loader = ImageLoader(source, batch_size=1, image_size=SIZE, augment="none", workers=0)
    names = [source.name(index).partition(":")[2] for index in range(len(source))]
    return torch.cat(list(loader)), torch.tensor([int(name.split("/")[0]) for name in names])
