"""Distil under Accelerate: the Distiller is the model that is prepared.

    python examples/08_accelerate.py --data FOLDER --steps 200
    accelerate launch --num_processes 8 --mixed_precision bf16 examples/08_accelerate.py ...

What Accelerate does: it moves the distiller to each process's device (the teacher follows), wraps
it in DDP, puts autocast around its forward, counts accumulated steps, saves and loads its state.
The teacher is no submodule: it is not wrapped, not saved and not synchronised. Every parameter that
trains is used in every step, so DDP needs no find_unused_parameters.
"""

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

import proteus
from proteus.data import ImageLoader, open_source
from proteus.training import learning_rate, parameter_groups

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", required=True)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--batch-size", type=int, default=32, help="of each process")
parser.add_argument("--accumulate", type=int, default=1, help="batches for each optimizer step")
parser.add_argument("--cpu", action="store_true")
parser.add_argument("--out", default="runs/accelerate")
args = parser.parse_args()

accelerator = Accelerator(gradient_accumulation_steps=args.accumulate, cpu=args.cpu)
set_seed(0)  # the same start in every process

teacher = proteus.Teacher("demo-teacher")
student = proteus.Student("demo-student", image_size=64)
distiller = proteus.Distiller(teacher, student)
optimizer = torch.optim.AdamW(parameter_groups(distiller, weight_decay=0.05), lr=1e-3)
loader = ImageLoader(
    open_source(args.data),
    batch_size=args.batch_size,
    image_size=64,
    rank=accelerator.process_index,
    world_size=accelerator.num_processes,
    device=accelerator.device,
)
# `prepare` shards and moves a DataLoader of your own. An ImageLoader does both itself, from the two
# lines above, and comes back as it is.
distiller, optimizer, loader = accelerator.prepare(distiller, optimizer, loader)
set_seed(0, device_specific=True)  # from here on masks and drop path differ between processes

batches = loader.batches()
for step in range(args.steps):
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, args.steps, 1e-3)
    for _ in range(args.accumulate):
        with accelerator.accumulate(distiller):
            losses = distiller(next(batches))
            accelerator.backward(losses.total)
            optimizer.step()  # both do nothing until the last of the accumulated batches
            optimizer.zero_grad(set_to_none=True)
    if step % 10 == 0:
        accelerator.print(step, f"total {float(losses.total.detach()):.4f}")

accelerator.save_state(f"{args.out}/state")  # resumes under Accelerate: load_state
if accelerator.is_main_process:
    folder = proteus.save_pretrained(accelerator.unwrap_model(distiller), f"{args.out}/export")
    print(f"timm.create_model('local-dir:{folder}', pretrained=True)")
accelerator.end_training()
