"""A Distiller under Lightning: a module that steps as `fit` does, a callback that watches."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..distiller import Distiller
from ..hub.save import save_pretrained
from ..training.engine import generator_of, seed_everything
from ..training.groups import parameter_groups
from ..training.schedule import Schedule, learning_rate
from ..training.watch import Watch
from ..words import install

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError(
        f"ProteusModule: lightning is not installed. Got {error}. {install('lightning')}"
    ) from error


class ProteusModule(LightningModule):
    """`Distiller` as a `LightningModule`: the step, optimizer and schedule of `fit`.

    With the same batches, seed and settings, and without accumulation, weights after each step on
    a CPU are those of `fit`, to the bit; drop path and masks included. Under DDP every process
    draws the masks of the whole batch and takes its part, as there. With accumulation Lightning
    takes one batch after the other where `fit` divides one, so the images of a step differ.

    Args:
        distiller: The one submodule; its teacher follows to the device and is in no checkpoint.
        lr: Peak learning rate, or the rate of each step as a function of its number.
        weight_decay: Of matrices, see `proteus.training.parameter_groups`.
        warmup: Share of the steps that warm up; not with a function for `lr`.
        seed: Of masks and drop path.

    Raises:
        ImportError: Of this module, without lightning (the extra `lightning`).

    Examples:
        >>> from proteus import Student, Teacher
        >>> teacher = Teacher("vit_tiny_patch16_224", pretrained=False, image_size=32)
        >>> student = Student("vit_tiny_patch16_224", image_size=32)
        >>> module = ProteusModule(Distiller(teacher, student), lr=1e-3)
        >>> [group["weight_decay"] for group in module.groups()]
        [0.05, 0.0]
    """

    def __init__(
        self,
        distiller: Distiller,
        *,
        lr: float | Schedule = 1e-3,
        weight_decay: float = 0.05,
        warmup: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.distiller = distiller
        self.lr, self.weight_decay, self.warmup, self.seed = lr, weight_decay, warmup, seed

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One step; logs the total and the terms. Of a batch that is no tensor, the first item."""
        images: Tensor = batch if isinstance(batch, Tensor) else batch[0]
        trainer, step = self.trainer, self.global_step
        parts = trainer.accumulate_grad_batches
        part, rank, size = batch_idx % parts, trainer.global_rank, trainer.world_size
        if part == 0:
            seed_everything(self.seed, step, rank)
        losses = self.distiller(
            images,
            generator=generator_of(self.seed, step, images.device),
            part=(rank + size * part, size * parts),
        )
        self.log_dict({name: term.detach() for name, term in losses._asdict().items()})
        total: Tensor = losses.total
        return total

    def groups(self) -> list[dict[str, Any]]:
        """What the optimizer gets."""
        return parameter_groups(self.distiller, self.weight_decay)

    def rate(self, step: int) -> float:
        """The learning rate of a step; beyond the last one, the last one's."""
        if not isinstance(self.lr, float | int):
            return self.lr(step)
        steps = int(self.trainer.estimated_stepping_batches)
        return learning_rate(min(step, steps - 1), steps, self.lr, self.warmup)

    def configure_optimizers(self) -> Any:
        """AdamW; the schedule moves in every step."""
        optimizer = torch.optim.AdamW(self.groups(), lr=1.0)  # times the rate, exactly
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class WatchCallback(Callback):
    """Logs how close the student is to its teacher, every `watch.every` steps; exports at the end.

    Args:
        watch: What is measured, on which images.
        export: Folder for the student when training ends; None = no export. Not under FSDP, whose
            shards are no plain model.

    Examples:
        >>> images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
        >>> callback = WatchCallback(Watch(images, every=100), export="exported")
    """

    def __init__(self, watch: Watch, export: str | Path | None = None) -> None:
        self.watch, self.export = watch, export
        self._seen = 0  # the step that was looked at last

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Measure, if a step was done and it is time."""
        step = trainer.global_step
        if step == self._seen or step % self.watch.every:
            return
        self._seen = step
        values = self.watch(pl_module.distiller)
        pl_module.log_dict({f"watch/{name}": value for name, value in values.items()})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the export."""
        if self.export is not None and trainer.is_global_zero:
            assert isinstance(pl_module.distiller, Distiller)
            save_pretrained(pl_module.distiller, self.export)
