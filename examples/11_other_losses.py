"""The losses of other papers, by name: a few steps each on random images.

python examples/11_other_losses.py

The numbers of different distances and targets are not comparable; the last column is, where the
student is compared with the teacher in one space (1 = the same direction).
"""

import torch

import proteus
from proteus.evaluation.agreement import compare_projected

LOSSES = {
    "the paper's": {},
    "smooth L1": {"distance": "smooth_l1"},
    "cosine": {"distance": "cosine"},
    "cosine and smooth L1": {"distance": "cosine_smooth_l1"},
    "token relation": {"distance": "relation"},
    "queue": {"token_distance": "queue", "queue_size": 64},
    "standardized": {"targets": "standardized"},
    "PHI-S": {"targets": "phi_s"},
    "angles": {"targets": "angle", "head": "identity", "distance": "cosine"},
}

teacher = proteus.Teacher("demo-teacher")
for name, settings in LOSSES.items():
    torch.manual_seed(0)
    student = proteus.Student("demo-student", image_size=64)
    loss = proteus.ProteusLoss(student.embed_dim, teacher.embed_dim, **settings)
    distiller = proteus.Distiller(teacher, student, loss)
    batches = [torch.rand(8, 3, 64, 64) for _ in range(2)]
    rows = distiller.fit(batches, steps=6, lr=1e-3, device="cpu", progress=False)
    with torch.no_grad():
        distiller.eval()
        found = compare_projected(loss, student(batches[0]), teacher(batches[0]))
    first, last = rows[0]["total"], rows[-1]["total"]
    print(f"{name:20}  {first:7.3f} -> {last:7.3f}   cosine {found['cls_cosine']:.3f}")
