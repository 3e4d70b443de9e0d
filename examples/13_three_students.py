"""Three students from one teacher pass: two ViTs and a CNN, each with its own loss and rate.

The teacher, the largest of the models, sees each batch once. Each student's numbers are those that
it would have alone, and each gets a run's folder of its own.

    python examples/13_three_students.py
"""

from pathlib import Path

import torch

import proteus
from proteus.training import fit_all

teacher = proteus.Teacher("demo-teacher")
names = {"small": "demo-student", "tiny": "vit_tiny_patch16_224", "cnn": "resnet10t"}
students = {run: proteus.Student(name, image_size=64) for run, name in names.items()}


def token_alone(student: proteus.Student) -> proteus.ProteusLoss:
    """For a student with another grid than the teacher's, or with no patches to hide."""
    return proteus.ProteusLoss(student.embed_dim, teacher.embed_dim, feature=0, patch=0)


distillers = {
    "small": proteus.Distiller(teacher, students["small"]),
    "tiny": proteus.Distiller(teacher, students["tiny"], token_alone(students["tiny"])),
    "cnn": proteus.Distiller(teacher, students["cnn"], token_alone(students["cnn"])),
}
rows = fit_all(
    distillers,
    [torch.rand(8, 3, 64, 64) for _ in range(4)],
    each={"small": {"lr": 2e-3}, "cnn": {"lr": 5e-3, "clip_grad": 1.0}},
    steps=4,
    out="students",
    progress=False,
)
for name, log in rows.items():
    print(name, round(log[0]["total"], 3), "->", round(log[-1]["total"], 3))
print(sorted(str(path) for path in Path("students").glob("*/export")))
