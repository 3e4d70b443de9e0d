"""Distil on as many GPUs as there are, with the library's loop in a script of your own.

    torchrun --nproc-per-node 8 examples/09_many_gpus.py --data FOLDER --steps 200
    python examples/09_many_gpus.py --data FOLDER --steps 200        # one process

The batch size is that of all processes together, and the losses do not depend on their number.
Run it again after it was killed: it goes on where it was. `--parallel fsdp` shards the teacher too.
"""

import argparse

import torch

import proteus
from proteus.data import ImageLoader, open_source
from proteus.training import join, leave

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", required=True)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--precision", default="fp32", help="fp32, bf16 or fp16")
parser.add_argument("--parallel", default="auto", help="auto (DDP) or fsdp")
parser.add_argument("--out", default="runs/many-gpus")
args = parser.parse_args()

world = join()  # this process among those of torchrun
torch.manual_seed(0)  # the same first weights everywhere
teacher = proteus.Teacher("demo-teacher")
student = proteus.Student("demo-student", image_size=64)
distiller = proteus.Distiller(teacher, student)
loader = ImageLoader(
    open_source(args.data),
    batch_size=args.batch_size // world.size,
    image_size=64,
    rank=world.rank,
    world_size=world.size,
    device=world.device,
)
rows = distiller.fit(
    loader,
    steps=args.steps,
    precision=args.precision,
    parallel=args.parallel,
    out=args.out,
    resume="auto",
)
if world.first:
    print(f"{world.size} processes, total {rows[0]['total']:.4f} -> {rows[-1]['total']:.4f}")
leave()
