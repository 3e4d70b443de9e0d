"""Settings of an optimizer and of a machine: of recipes, `fit`, `Engine` and the command line.

Without torch, because the command line makes its options of them.
"""

from dataclasses import dataclass
from typing import Any, Literal

from .ranges import RANGES

Precision = Literal["fp32", "bf16", "fp16"]
Parallel = Literal["auto", "ddp", "fsdp"]
ScheduleName = Literal["cosine", "deit", "official"]


@dataclass(frozen=True)
class Optimizer:
    """AdamW, its schedule, and the precision of the step.

    Attributes:
        lr: Peak learning rate.
        weight_decay: Of matrices.
        undecayed: Further parameters that are spared; None = positions and tokens.
        schedule: `cosine` (warm-up as a share of the run, to a hundredth of the peak), `deit` (in
            epochs, moved in every step) or `official` (moved once an epoch, one epoch late).
        layer_decay: Factor on the student's learning rate from layer to layer, from the top down;
            None = one rate for all. See `proteus.models.parts.layer_rates`.
        frozen: Patterns of names of the student's parameters that stay as they are, such as
            `patch_embed.*` or `blocks.[0-5].*`; None = none. See `Student.freeze`.
        warmup: Share of the steps; None = 0.05. Only with `cosine`.
        warmup_epochs: Epochs; None = 5. Only with `deit` and `official`, as the next two.
        warmup_lr: Where the warm-up starts; None = 1e-6.
        min_lr: Where the cosine ends; None = 1e-5.
        first_scale: Side of the student's images in the first part, as a share of its own
            (to whole patches), for steps that cost less; None = its own throughout. The teacher
            keeps its size.
        first_share: Share of the steps with `first_scale`; None = 0.5.
        clip_grad: Largest norm of the gradient; None = no clipping, as in the paper.
        ema: Decay of a moving average of the student; None = none.
        precision: `fp32`, `bf16` or `fp16`. The last two are autocast, `fp16` with a gradient
            scaler; weights, losses and the optimizer stay float32.
    """

    lr: float = 1e-3
    weight_decay: float = 0.05
    undecayed: tuple[str, ...] | None = None
    layer_decay: float | None = None
    frozen: tuple[str, ...] | None = None
    schedule: ScheduleName = "cosine"
    warmup: float | None = None
    warmup_epochs: float | None = None
    warmup_lr: float | None = None
    min_lr: float | None = None
    first_scale: float | None = None
    first_share: float | None = None
    clip_grad: float | None = None
    ema: float | None = None
    precision: Precision = "fp32"


@dataclass(frozen=True)
class Machine:
    """What must not change the numbers.

    Attributes:
        device: `auto`, `cpu`, `cuda`, `cuda:1`, …
        workers: Processes that decode images; None = one less than the cores.
        accumulate: Parts of a process's batch that go through the model one after the other.
        parallel: `auto`, `ddp` or `fsdp`. The first is DDP where there are several processes; FSDP2
            shards student, heads and teacher.
        compile: Compile the whole step with `torch.compile`; with FSDP, block by block.
        activation_checkpointing: Compute the blocks' activations twice instead of keeping them.
        save_every: Steps between checkpoints.
        keep: How many checkpoints stay.
        watch: Held-out images on which the student is compared with its teacher now and then.
        watch_labels: They have classes: k-NN as well, half of them voting (where they are held out
            of the run: the images that it trains on).
        watch_every: Steps between these comparisons.
        track: `tensorboard`, `wandb`, `mlflow` or `trackio`, besides `log.jsonl`.
    """

    device: str = "auto"
    workers: int | None = None
    accumulate: int = 1
    parallel: Parallel = "auto"
    compile: bool = False
    activation_checkpointing: bool = False
    save_every: int = 500
    keep: int = 2
    watch: tuple[str, ...] = ()
    watch_labels: bool = False
    watch_every: int = 1000
    track: tuple[str, ...] = ()


def numbers(*settings: Optimizer | Machine) -> dict[str, Any]:
    """The numbers among them, for `check_numbers`."""
    return {k: v for one in settings for k, v in vars(one).items() if k in RANGES}
