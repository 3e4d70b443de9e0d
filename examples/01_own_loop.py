"""Distil inside your own training loop: the library is one module that returns a loss.

    python examples/01_own_loop.py --data FOLDER --steps 200

Teacher and student are the demo's, so that it runs anywhere; put any names in their place.
"""

import argparse

import torch

import proteus
from proteus.data import ImageLoader, open_source
from proteus.training import parameter_groups

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", required=True)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--out", default="runs/own-loop")
args = parser.parse_args()

teacher = proteus.Teacher("demo-teacher")
student = proteus.Student("demo-student", image_size=64)
distiller = proteus.Distiller(teacher, student)
optimizer = torch.optim.AdamW(parameter_groups(distiller, weight_decay=0.05), lr=1e-3)
loader = ImageLoader(open_source(args.data), batch_size=args.batch_size, image_size=64)

for step, images in zip(range(args.steps), loader.batches()):  # noqa: B905 - endless
    losses = distiller(images)
    losses.total.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if step % 10 == 0:
        print(
            step, *(f"{name} {float(term.detach()):.4f}" for name, term in losses._asdict().items())
        )

folder = proteus.save_pretrained(distiller, args.out)
print(f"timm.create_model('local-dir:{folder}', pretrained=True)")
