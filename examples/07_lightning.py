"""Distil under Lightning: the Distiller is the one submodule of a LightningModule.

    python examples/07_lightning.py --data FOLDER --steps 200

What Lightning does: it moves the module (the teacher follows), wraps it in DDP or FSDP, runs it in
the precision asked for, accumulates, clips, saves. What it does not see: the teacher, which is no
submodule, so it is in no checkpoint, no optimizer and no DDP bucket. Every parameter that trains is
used in every step, so `strategy="ddp"` needs no find_unused_parameters. For an own run:

    lightning.Trainer(strategy="ddp", devices=8, precision="bf16-mixed", max_steps=..., ...)
"""

import argparse
from collections.abc import Iterator

import lightning
import torch
from torch import Tensor

import proteus
from proteus.data import ImageLoader, open_source
from proteus.training import learning_rate, parameter_groups

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", required=True)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--batch-size", type=int, default=32, help="of each process")
parser.add_argument("--accelerator", default="auto", help="auto, cpu, gpu")
parser.add_argument("--precision", default="32-true", help="32-true, bf16-mixed, ...")
parser.add_argument("--out", default="runs/lightning")
args = parser.parse_args()


class From:
    """Batches from a step on, without end; Lightning stops at max_steps."""

    def __init__(self, loader: ImageLoader, start: int) -> None:
        self.loader, self.start = loader, start

    def __iter__(self) -> Iterator[Tensor]:
        return self.loader.batches(self.start)


class Distillation(lightning.LightningModule):
    """One line of training_step, two groups of parameters, a warm-up and a cosine."""

    def __init__(self, distiller: proteus.Distiller) -> None:
        super().__init__()
        self.distiller = distiller

    def training_step(self, images: Tensor, index: int) -> Tensor:
        losses = self.distiller(images)
        self.log_dict({name: term.detach() for name, term in losses._asdict().items()})
        if index % 10 == 0:
            self.print(self.global_step, f"total {float(losses.total.detach()):.4f}")
        return losses.total

    def configure_optimizers(self) -> dict[str, object]:
        groups = parameter_groups(self.distiller, weight_decay=0.05)
        optimizer = torch.optim.AdamW(groups, lr=1e-3)
        share = lambda step: learning_rate(min(step, args.steps - 1), args.steps, 1.0)  # noqa: E731
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def train_dataloader(self) -> From:
        # Here rank and step are known: each process reads its own part, a resumed run goes on
        # where it was. Lightning's own sampler knows DataLoaders only, and is not needed.
        loader = ImageLoader(
            open_source(args.data),
            batch_size=args.batch_size,
            image_size=64,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
        return From(loader, self.trainer.global_step * self.trainer.accumulate_grad_batches)


teacher = proteus.Teacher("demo-teacher")
student = proteus.Student("demo-student", image_size=64)
module = Distillation(proteus.Distiller(teacher, student))
trainer = lightning.Trainer(
    max_steps=args.steps,
    accelerator=args.accelerator,
    devices=1,
    precision=args.precision,
    default_root_dir=args.out,
    logger=False,  # any of Lightning's loggers gets what log_dict is given
    enable_checkpointing=False,  # saved once, below; a ModelCheckpoint saves in between
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(module)

trainer.save_checkpoint(f"{args.out}/last.ckpt")  # resumes under Lightning: fit(..., ckpt_path=)
if trainer.is_global_zero:
    folder = proteus.save_pretrained(module.distiller, f"{args.out}/export")
    print(f"timm.create_model('local-dir:{folder}', pretrained=True)")
