"""Trainings for the tests to start in processes of their own, alone or under torchrun.

    python tests/e2e/training_jobs.py FOLDER/jobs.json

The file holds a list of jobs, see `run_job`. What each process saw of each job is written to
`FOLDER/JOB.RANK.json`: one start of Python and torch serves many tests.
"""

import contextlib
import json
import math
import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path
from unittest.mock import patch

import torch
from timm.models.vision_transformer import VisionTransformer
from torch.distributed.tensor import DTensor

import proteus
from proteus.data import make_loader, open_source
from proteus.training import NonFiniteLossError, RunStopped, World, fit, fit_all, join, leave

STEPS, IMAGES = 8, 8
RESULTS = "proteus.training.loop.write_results"


def vit(dim):
    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=dim, depth=2, num_heads=3, num_classes=0
    )


def build(seed=0, student=None, layers=None, **masks):
    """A distiller whose weights, the teacher's too, depend on the seed alone."""
    torch.manual_seed(7 + seed)
    teacher = proteus.Teacher(vit(36), image_size=32, layers=layers)
    torch.manual_seed(seed)
    student = proteus.Student(student or vit(24), image_size=32, layers=layers)
    generator = proteus.MaskGenerator(student.grid, **masks) if masks else None
    return proteus.Distiller(teacher, student, masks=generator)


class Batches:
    """Step n's batch of the whole run, or this process's share; trouble happens on the way."""

    def __init__(
        self, rank=0, world_size=1, *, trouble=None, at=4, on=None, pause=0.0, limit=0, asleep=0.0
    ):
        self.rank, self.world_size = rank, world_size
        self.trouble, self.at, self.on = trouble, at, on
        self.pause, self.limit, self.asleep = pause, limit, asleep
        self.skipped = {f"{rank}.png": "no image"}

    def batches(self, start):
        step = start
        while True:
            generator = torch.Generator().manual_seed(100 + step)
            images = torch.rand(IMAGES, 3, 32, 32, generator=generator)
            if step == self.at and self.on in (None, self.rank):
                self.make_trouble(images)
            elif step == self.at:
                time.sleep(self.asleep)
            time.sleep(self.pause)
            yield images[self.rank :: self.world_size]
            step += 1

    def make_trouble(self, images):
        first_try = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if self.trouble == "nan":
            images[:] = math.nan
        elif self.trouble == "sigterm":
            os.kill(os.getpid(), signal.SIGTERM)
        elif self.trouble == "raise":
            raise KeyError("only here")
        elif self.trouble == "sigkill" and first_try:
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.trouble == "full disk":  # no file may grow beyond this many bytes
            limit_files(self.limit)


def limit_files(size):
    """Let no file of this process grow beyond `size` bytes; None = as far as it may."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


def run_job(job, world):
    """Run one.

    Keys: `out`, and `copy_of`, the run's folder to start from; `options` of `fit`; `trouble` of
    `Batches`; `several` = runs a and b, of this student and a second one;
    `student`, a name; `layers` of both models; `masks`; `folder` = train on the image
    files there, or on the shards `wds/…`; `seeds` = how the ranks initialise their students;
    `uncaught` = die of what stops the run; `results` = write the export and the pictures, which
    take most of the time of runs this small.
    """
    if "copy_of" in job:
        world.once(lambda: str(shutil.copytree(job["copy_of"], job["out"])))
    named = {key: job.get(key) for key in ("student", "layers")}
    distiller = build(job.get("seeds", [0, 0])[world.rank], **named, **job.get("masks", {}))
    teacher = {name: t.clone() for name, t in distiller.teacher.state_dict().items()}
    student = {name: t.clone() for name, t in distiller.student.state_dict().items()}
    data = Batches(world.rank, world.size, **job.get("trouble", {}))
    if "folder" in job:
        data = make_loader(
            open_source(job["folder"]), batch_size=IMAGES // world.size, image_size=32,
            workers=job.get("workers", 0), rank=world.rank, world_size=world.size,
        )  # fmt: skip
    seen = {"stopped": None}
    options = {"steps": STEPS, "device": "cpu", "progress": False} | job.get("options", {})
    results = contextlib.nullcontext() if job.get("results") else patch(RESULTS)
    try:
        with results:
            if job.get("several"):
                second = proteus.Student(vit(30), image_size=32)
                both = {"a": distiller, "b": proteus.Distiller(distiller.teacher, second)}
                seen["rows"] = fit_all(both, data, out=job.get("out"), **options)
            else:
                seen["rows"] = fit(distiller, data, out=job.get("out"), **options)
    except (RunStopped, NonFiniteLossError, ValueError, OSError) as error:
        limit_files(None)
        if job.get("uncaught"):
            raise
        seen["stopped"] = [type(error).__name__, str(error)]
    seen["sharded_teacher_blocks"] = [
        isinstance(p, DTensor) and p.to_local().numel() < p.numel()
        for p in distiller.teacher.backbone.blocks.parameters()
    ]
    seen["sharded_student"] = [isinstance(p, DTensor) for p in distiller.student.parameters()]
    seen["teacher_unchanged"] = same(distiller.teacher, teacher)
    seen["student_unchanged"] = same(distiller.student, student)
    return seen


@torch.no_grad()
def same(module, before):
    """Entry for entry, whether a module still holds these tensors."""
    now = module.state_dict()
    return {
        name: torch.equal(t.full_tensor() if isinstance(t, DTensor) else t, before[name])
        for name, t in now.items()
    }


def run_alone(job):
    """A job in a process of its own that was forked, not started: what it saw goes to `seen`."""
    os.setpgid(0, 0)  # a job's own processes can be told from the tests'
    torch.set_num_threads(1)
    seen = run_job(job, World(torch.device("cpu")))
    Path(job["seen"]).write_text(json.dumps(seen))


def main(path):
    torch.set_num_threads(1)
    world = join("cpu")
    for job in json.loads(path.read_text()):
        seen = run_job(job, world)
        (path.parent / f"{job['name']}.{world.rank}.json").write_text(json.dumps(seen))
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
