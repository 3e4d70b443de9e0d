"""A Distiller as a task of timm's `train.py`: the three terms in place of a classification loss."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import timm
import torch
from timm.utils.model import unwrap_model as _unwrap
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from ..distiller import Distiller
from ..training.groups import parameter_groups
from ..traits import Trait
from ..words import install

try:
    # 1.0.23 is the first with tasks; from 1.0.27 on a task brings what is trained, averaged, saved.
    from timm.task import TrainingTask, resume_task_checkpoint  # noqa: F401 - the sign of 1.0.27
except ImportError as error:
    raise ImportError(
        f"ProteusTask: this timm has no tasks that bring their own model. Got timm "
        f"{timm.__version__}; expected 1.0.27 or newer. {install('-U', 'timm')}"
    ) from error

_BACKBONE = "student.backbone."


@runtime_checkable
class _Grouped(Trait, Protocol):
    """A timm model that knows its layers."""

    def group_matcher(self, coarse: bool = False) -> Mapping[str, Any]: ...


class ProteusTask(TrainingTask):
    """What timm's `train.py` trains: one `Distiller`, for its own loop, optimizer and checkpoints.

    Takes the place of `ClassificationTask(model, …)` there. Labels are ignored: a batch's images
    are all that is used of it. A checkpoint of timm's then holds the plain student as `state_dict`,
    which `timm.create_model(name, checkpoint_path=…)` loads, and mask token and heads as
    `task_state`; the teacher is in none. The moving average is the plain student's alone.

    Args:
        distiller: On the device it is to train on.
        mean: What timm's loader has subtracted; undone, since each model normalises by its own
            statistics. `data_config["mean"]` of `train.py`; 0 = its images are in [0, 1].
        std: What it has divided by.
        verbose: Log that labels are ignored.

    Attributes:
        trainable_module: What is trained, under DDP if timm has wrapped it.
        distiller: The module inside.

    Raises:
        ImportError: Of this module, where timm is older than 1.0.27.
        ValueError: In a step, if images are not in [0, 1] once `mean` and `std` are undone: of the
            first batch. Random erasing must be `--remode const`; its noise is no colour.

    Examples:
        >>> from proteus import Student, Teacher
        >>> teacher = Teacher("vit_tiny_patch16_224", pretrained=False, image_size=32)
        >>> student = Student("vit_tiny_patch16_224", image_size=32)
        >>> task = ProteusTask(Distiller(teacher, student), verbose=False)
        >>> result = task(torch.rand(2, 3, 32, 32), torch.tensor([0, 1]))
        >>> result["loss"].backward()
        >>> sorted(result)
        ['feature', 'loss', 'patch', 'token']

    Source:
        timm `timm/task/task.py` and `train.py`.
        *Same:* losses and gradients of `Distiller`; bit by bit where the loader does not normalise.
        *Different:* positions, class and mask token are not decayed, as with `fit`; timm would
        decay the mask token.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        distiller: Distiller,
        *,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        verbose: bool = True,
    ) -> None:
        weight = next(distiller.parameters())
        super().__init__(device=weight.device, dtype=weight.dtype, verbose=verbose)
        self.trainable_module: nn.Module = _Trainable(distiller)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, weight.new_tensor(values).view(1, 3, 1, 1), persistent=False)
        if verbose:
            _say_what_is_ignored(distiller)

    @property
    def distiller(self) -> Distiller:
        """The module inside whatever timm has wrapped around it."""
        return _inside(self.trainable_module).distiller

    def forward(self, input: Tensor, target: Tensor | None = None) -> dict[str, Tensor]:
        """One step up to `.backward()`, as `train.py` calls it.

        Args:
            input: Images [B, 3, H, W] as timm's loader gives them.
            target: Ignored.

        Returns:
            `loss`, to call `.backward()` on, and the unweighted terms by name, for a log.
        """
        losses = self.trainable_module(input * self.std + self.mean)
        terms = {name: term.detach() for name, term in losses._asdict().items() if name != "total"}
        return {"loss": losses.total, **terms}

    def prepare_distributed(self, device_ids: Any = None, **ddp: Any) -> "ProteusTask":
        """Wrap what is trained in DDP; the teacher stays outside."""
        self.trainable_module = nn.parallel.DistributedDataParallel(
            self.trainable_module, device_ids=device_ids, **ddp
        )
        return self

    def compile(  # type: ignore[override]  # of nn.Module; as timm's
        self, backend: str = "inductor", mode: str | None = None, **options: Any
    ) -> nn.Module:
        """Compile the step, in place, and the plain student for evaluation, which is returned."""
        distiller, options = self.distiller, {"backend": backend, "mode": mode, **options}
        for module in (*distiller.teachers.values(), distiller):
            module.compile(**options)
        compiled: Any = torch.compile(distiller.student.backbone, **options)
        self.eval_model: nn.Module = compiled
        return cast("nn.Module", compiled)

    def setup_ema(
        self,
        decay: float = 0.9999,
        use_warmup: bool = False,
        device: torch.device | None = None,
        **options: Any,
    ) -> nn.Module:
        """Begin the moving average of the plain student."""
        # Not of the whole module, whose copy would hold a second teacher.
        self.trainable_module_ema = ModelEmaV3(
            self.distiller.student.backbone,
            decay=decay, use_warmup=use_warmup, device=device, **options,
        )  # fmt: skip
        return self.trainable_module_ema

    def update_ema(self, step: int | None = None) -> None:
        """Move the average towards the present weights."""
        if self.has_ema():
            self.trainable_module_ema.update(self.distiller.student.backbone, step=step)

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> Any:
        """The plain student, or its average."""
        found = super().get_eval_model(module=module, ema=ema)
        inside = None if found is None else _unwrap(found)  # type: ignore[no-untyped-call]
        return inside.distiller.student.backbone if isinstance(inside, _Trainable) else found

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        """What trains; without the heads of the loss for adaptive clipping."""
        trained: nn.Module = self.distiller.student if exclude_head else self.distiller
        return [p for p in trained.parameters() if p.requires_grad]

    def get_task_state(
        self, module: nn.Module | None = None, ema: bool = False
    ) -> dict[str, dict[str, Tensor]]:
        """Mask token, heads and what else the loss keeps; nothing of the average."""
        state = {} if ema else self.distiller.state_dict()
        own = {name: t for name, t in state.items() if not name.startswith(_BACKBONE)}
        return {} if ema else {"distiller": own}

    def load_task_state(
        self,
        state: Mapping[str, Mapping[str, Tensor]] | None,
        strict: bool = True,
        module: nn.Module | None = None,
        ema: bool = False,
    ) -> None:
        """Take over what `get_task_state` gave.

        Raises:
            ValueError: If the checkpoint is of another task.
        """
        if ema:
            return
        distiller = self.distiller
        if not state or "distiller" not in state:
            raise ValueError(
                f"ProteusTask: the checkpoint is of another task. Got "
                f"{', '.join(state or ()) or 'nothing'} beside its weights; expected mask token "
                f"and heads. Start from the weights alone with --initial-checkpoint."
            )
        kept = {k: v for k, v in distiller.state_dict().items() if k.startswith(_BACKBONE)}
        distiller.load_state_dict({**kept, **state["distiller"]}, strict=strict)

    def create_evaluator(self, **options: Any) -> Any:
        """Refuse: a student has no classes.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "ProteusTask: there is nothing to validate. A distilled student gives features and no "
            "classes. Run train.py with --val-split '', and measure with `proteus evaluate`."
        )


class _Trainable(nn.Module):
    """The distiller with what timm asks of a model: what is not decayed, and which layer is where.

    Its attribute is not called `module`, through which timm looks for the model inside a wrapper.
    """

    def __init__(self, distiller: Distiller) -> None:
        super().__init__()
        self.distiller = distiller

    def forward(self, images: Tensor) -> Any:
        return self.distiller(images)

    def no_weight_decay(self) -> set[str]:
        groups = parameter_groups(self.distiller, 1.0)
        spared = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
        return {name for name, p in self.named_parameters() if id(p) in spared}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """The student's own layers from the bottom up; heads and mask token count as its last."""
        from timm.models import group_parameters

        backbone = self.distiller.student.backbone
        if not isinstance(backbone, _Grouped):
            raise ValueError(
                f"ProteusTask: the layers of the student are not known. Got "
                f"{type(backbone).__name__}; expected a timm model. Leave --layer-decay out."
            )
        layers = group_parameters(backbone, backbone.group_matcher(coarse=coarse), reverse=True)
        last = max(layers.values(), default=0)
        return lambda name: int(layers.get(name.removeprefix(f"distiller.{_BACKBONE}"), last))


def _inside(module: nn.Module) -> _Trainable:
    inside = _unwrap(module)  # type: ignore[no-untyped-call]
    assert isinstance(inside, _Trainable)
    return inside


def _say_what_is_ignored(distiller: Distiller) -> None:
    import logging

    logging.getLogger(__name__).info(
        "ProteusTask: %s learns from the features of %s; labels are ignored.",
        distiller.student.name,
        distiller.teacher.name,
    )
