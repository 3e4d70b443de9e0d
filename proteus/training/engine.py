"""One optimizer step, whatever the precision and the number of processes."""

import contextlib
import copy
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from ..features import Features
from ..heads import ProjectionHead
from ..masking import Hidden
from ..models.parts import batch_norms, layer_rates
from ..ranges import check_numbers
from ..settings import Machine, Optimizer, Parallel, Precision, numbers
from ..student import Student
from ..traits import Trait
from ..world import World
from .ema import Ema
from .groups import parameter_groups
from .objective import check_objective
from .parallel import blocks_of, whole, wrap
from .state import EngineState, collect, restore

# What a step needs; the loop around it follows the other fields of the two.
_STEP = (
    "lr", "weight_decay", "undecayed", "layer_decay", "frozen", "clip_grad", "ema", "precision",
    "accumulate", "parallel", "compile", "activation_checkpointing",
)  # fmt: skip
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@runtime_checkable
class _Checkpointable(Trait, Protocol):
    """timm's models."""

    def set_grad_checkpointing(self, enable: bool = True) -> None: ...


class Engine:
    """A model with its optimizer, and all that happens between two batches.

    Args:
        model: See `proteus.training.Objective`; moved to the world's device and put in train mode.
        world: The processes, see `join`.
        optimizer: Its `lr` is the first one; `step` is given each.
        machine: How the step is computed. Fields of both that only `fit` follows
            (`warmup`, `save_every`, …) are not looked at.
        seed: Of masks, drop path and whatever else is random in a step.
        settings: Single fields of the two, in their place: `Engine(model, world, lr=1e-3)`.

    Raises:
        ValueError: If a setting is unknown, or the model cannot do what is asked.
    """

    def __init__(
        self,
        model: Any,
        world: World,
        optimizer: Optimizer = Optimizer(),
        machine: Machine = Machine(),
        *,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        if unknown := settings.keys() - _STEP:
            raise TypeError(f"Engine: unknown settings. Got {sorted(unknown)}; expected {_STEP}.")
        own = {name: settings.pop(name) for name in vars(optimizer) if name in settings}
        optimizer, machine = replace(optimizer, **own), replace(machine, **settings)
        check_numbers("Engine", {"seed": seed, **numbers(optimizer, machine)})
        _check(optimizer.precision, machine.parallel)
        check_objective(model)
        self.world, self.seed, self.precision = world, seed, optimizer.precision
        self.accumulate, self.clip_grad = machine.accumulate, optimizer.clip_grad
        self.plain = model.to(world.device).train()
        if optimizer.frozen:
            model.student.freeze(optimizer.frozen)
        # DDP would do this for the student; FSDP takes each shard from the process that holds it.
        world.share(*model.teachers.values(), model)
        # An export needs whole weights in a plain module, which a sharded one cannot be again.
        self._twin = copy.deepcopy(model.student).cpu() if machine.parallel == "fsdp" else None
        if machine.activation_checkpointing:
            _keep_few_activations(model.student)
        if machine.compile:
            _compile(model, blocks_only=machine.parallel == "fsdp")
        self.model = wrap(model, _parts(model), world, machine.parallel)
        by_layer = optimizer.layer_decay
        rates = {} if by_layer is None else layer_rates(model.student.backbone, by_layer)
        groups = parameter_groups(model, optimizer.weight_decay, optimizer.undecayed, rates)
        # Fused: the fp16 scaler then decides on the device whether a step is skipped.
        self.optimizer = torch.optim.AdamW(
            groups, lr=optimizer.lr, fused=world.device.type == "cuda"
        )
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=self.precision == "fp16")
        decay = optimizer.ema
        still = _still(model.student)
        self.ema = None if decay is None else Ema(model.student.backbone, decay, still)
        self._parameters = [p for group in groups for p in group["params"]]

    def step(
        self,
        batch: Sequence[Tensor],
        step: int,
        lr: float,
        image_size: tuple[int, int] | None = None,
        target: Features | None = None,
    ) -> tuple[list[str], Tensor]:
        """Forward, backward, update.

        Args:
            batch: Images, and what else the model takes, of this process.
            step: Number of the step; with the seed it fixes everything random in it.
            lr: Learning rate of this step, where `layer_decay` does not lower it.
            image_size: (height, width) of the student's images, where smaller than its own.
            target: The teacher's features of the batch, where they were prepared.

        Returns:
            Names and values [n] (on the device, float32) of this process's losses and of the
            gradient's norm before clipping, which comes last.
        """
        if len(batch[0]) % self.accumulate:
            raise ValueError(
                f"accumulate: the batch cannot be divided. Got {len(batch[0])} images for each "
                f"process and accumulate={self.accumulate}; expected a multiple."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        seed_everything(self.seed, step, self.world.rank)
        names: list[str] = []
        total = torch.zeros((), device=self.world.device)
        sized = {} if image_size is None else {"image_size": image_size}
        more = sized if target is None else {**sized, "target": target}
        masks = self._draw(len(batch[0]), step, sized)
        for part in range(self.accumulate):
            losses = self._forward_backward(batch, step, part, masks, more)
            names = list(losses._fields)
            total = total + torch.stack([term.detach().float() for term in losses])
        self.scaler.unscale_(self.optimizer)
        norm = self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.plain.student.backbone)
        return [*names, "grad_norm"], torch.cat([total / self.accumulate, norm.float()[None]])

    def _generator(self, step: int) -> torch.Generator:
        """Seeded alike for every part and process: each draws for the whole batch."""
        return generator_of(self.seed, step, self.world.device)

    def _draw(self, images: int, step: int, sized: Mapping[str, Any]) -> Hidden | None:
        """The masks of a step, drawn once for all of its parts."""
        place = (self.world.rank, self.world.size)
        masks: Hidden | None = self.plain.draw(
            images, self._generator(step), self.world.device, place, **sized
        )
        return masks

    def _forward_backward(
        self,
        batch: Sequence[Tensor],
        step: int,
        part: int,
        masks: Hidden | None,
        more: Mapping[str, Any],
    ) -> Any:
        count = self.accumulate
        inputs: list[Any] = [item[part::count] for item in batch[: self.plain.num_inputs]]
        if masks is not None:
            inputs.append(masks.part(part, count))
        if "target" in more:
            cls, patches, grid = more["target"]
            more = {**more, "target": Features(cls[part::count], patches[part::count], grid)}
        place = (self.world.rank + self.world.size * part, self.world.size * count)
        with self._last_part(part == count - 1):
            with self._autocast():
                losses = self.model(*inputs, generator=self._generator(step), part=place, **more)
            self.scaler.scale(losses.total / count).backward()
        return losses

    @contextlib.contextmanager
    def _last_part(self, last: bool) -> Iterator[None]:
        """Gradients travel between processes once a step."""
        if isinstance(self.model, nn.parallel.DistributedDataParallel) and not last:
            with self.model.no_sync():
                yield
            return
        if self._twin is not None:
            self.model.set_requires_gradient_sync(last)  # type: ignore[operator]
        yield

    def _autocast(self) -> Any:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.world.device.type, _HALF[self.precision])

    def _clip(self) -> Tensor:
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.clip_grad is not None:
            nn.utils.clip_grads_with_norm_(self._parameters, self.clip_grad, norm)
        return whole(norm)

    def state(self) -> EngineState:
        """Everything that a resumed run needs, see `collect`."""
        return collect(self.plain, self.optimizer, self.scaler, self.ema, self.world)

    def load_state(self, state: EngineState) -> None:
        """Take over a saved state, see `restore`."""
        restore(state, self.plain, self.optimizer, self.scaler, self.ema)

    def export_student(self, state: EngineState, weights: Literal["weights", "ema"]) -> Student:
        """A plain student with the run's weights, or with their average (first process only)."""
        if weights == "weights" and self._twin is None:
            return self.plain.student  # type: ignore[no-any-return]
        student: Student = self._twin or copy.deepcopy(self.plain.student)
        tensors: Mapping[str, Tensor] = state.tensors[weights]
        if weights == "weights":
            prefix = "student.backbone."
            tensors = {
                name.removeprefix(prefix): tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            }
        student.backbone.load_state_dict(tensors)
        return student


def seed_everything(*parts: int | str) -> None:
    """Seed Python's, NumPy's and torch's global generators with the hash of some numbers."""
    value = _hash(*parts)
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def generator_of(seed: int, step: int, device: torch.device) -> torch.Generator:
    """What draws the masks of a step, alike in all processes."""
    return torch.Generator(device).manual_seed(_hash(seed, step))


def _hash(*parts: int | str) -> int:
    # 32 bits, because torch's generator for the CPU and NumPy's look at no more.
    return random.Random("/".join(map(str, parts))).getrandbits(32)


def _check(precision: str, parallel: Parallel) -> None:
    if precision not in get_args(Precision):
        raise ValueError(
            f"precision: unknown. Got {precision!r}; expected {', '.join(get_args(Precision))}."
        )
    if precision == "fp16" and parallel == "fsdp":
        raise ValueError(
            "precision: fp16 with fsdp is not supported, because each process would look for "
            "overflows in its own shards only. Use bf16, or parallel='ddp'."
        )


def _parts(model: Any) -> Iterable[nn.Module]:
    """What FSDP shards one by one, inner parts first; heads, which `project` calls alone."""
    for part in (*model.teachers.values(), model.student):
        yield from blocks_of(part.backbone)
        yield part
    yield from (module for module in model.modules() if isinstance(module, ProjectionHead))


def _still(student: Student) -> set[str]:
    """Names in the plain model's state that no step moves, statistics of batch norm included."""
    norms = batch_norms(student.backbone, student.frozen)
    return {
        *student.frozen,
        *(f"{name}.{end}" for name, norm in norms for end in norm.state_dict()),
    }


def _keep_few_activations(student: Student) -> None:
    if not isinstance(student.backbone, _Checkpointable):
        raise ValueError(
            f"activation_checkpointing: the student cannot do this. Got {student.name!r}; expected "
            f"a timm model."
        )
    student.backbone.set_grad_checkpointing(True)


def _compile(model: Any, *, blocks_only: bool) -> None:
    """In place, so that names in state dicts stay as they are.

    The whole step is one graph, losses included. The teachers are compiled for themselves, too:
    several students share what a teacher gave, which no graph can hold (`Teacher.shared`).
    """
    if blocks_only:
        for part in (*model.teachers.values(), model.student):
            for block in blocks_of(part.backbone):
                block.compile()
        return
    for module in (*model.teachers.values(), model):
        module.compile()
