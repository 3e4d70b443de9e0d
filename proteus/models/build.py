"""A name, a file or a module -> a plain model, and what must be known to feed it."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from torch import Tensor, nn

from ..features import IMAGENET, Features
from ..traits import Trait
from ..weights import load_checkpoint
from ..weights.description import Statistics, choose_statistics, read_config
from ..weights.positions import (
    FAILURES,
    check_image_size,
    fit_positions,
    is_resizable,
    refuse_size,
    to_pair,
)
from ..weights.state_dicts import refuse_not_finite
from ..weights.timm_folder import load_folder
from .names import STUDENTS, TEACHERS, Entry, position_rule, unknown_name
from .read import ImageInput, probe, reader_for

OBJECTIVES = ("token", "feature", "patch")
_TRAINING = ("num_classes", "drop_path_rate")  # arguments that no saved model needs


@dataclass(frozen=True)
class Backbone:
    """A plain model and what must be known to feed it.

    Attributes:
        model: The plain model; nothing of ours inside.
        name: What the user called it, for messages.
        image_size: (height, width) it is built for, or the size to try it with.
        fixed_size: Whether other sizes are refused by the model.
        statistics: Its mean and std.
        architecture: timm architecture, "" for other modules.
        arguments: timm arguments that rebuild it together with the architecture.
        objectives: The loss terms it supports as a teacher.
        license: Of its weights, as timm states it, "" where unknown.
        own_size: (height, width) it says it is made for; None where it does not say.
    """

    model: nn.Module
    name: str
    image_size: tuple[int, int]
    fixed_size: bool
    statistics: Statistics = IMAGENET
    architecture: str = ""
    arguments: dict[str, Any] | None = None
    objectives: tuple[str, ...] = OBJECTIVES
    license: str = ""
    own_size: tuple[int, int] | None = None


@runtime_checkable
class _HasConfig(Trait, Protocol):
    pretrained_cfg: Any


class ImageModel(nn.Module):
    """What `Teacher` and `Student` share: the way in, the plain model, the way out.

    Args:
        loaded: The plain model.
        normalize: True = its own statistics; (mean, std) = these; False = none.
    """

    def __init__(self, loaded: Backbone, normalize: bool | Statistics) -> None:
        super().__init__()
        self.name, self.image_size = loaded.name, loaded.image_size
        self.backbone = loaded.model
        subject = type(self).__name__
        statistics = choose_statistics(normalize, loaded.statistics, subject)
        self.inputs = ImageInput(statistics, subject).like(self.backbone)
        self._read = reader_for(self.backbone)
        try:
            sample = self._probe()
        except FAILURES as error:
            name, size = loaded.name, loaded.image_size
            refuse_size(error, subject, name, size, loaded.own_size, fits=self._takes)
            raise
        self.embed_dim: int = sample.cls.shape[-1]
        self.grid = sample.grid

    def _probe(self) -> Features:
        """`Features` of one grey image."""
        return probe(self._read, self.backbone, self.inputs, self.image_size)

    def _takes(self, size: tuple[int, int]) -> bool:
        """Whether the model can take images of a size."""
        try:
            probe(self._read, self.backbone, self.inputs, size)
        except (*FAILURES, ValueError):
            return False
        return True

    def _features(self, images: Tensor) -> Features:
        """`Features` of normalised images."""
        try:
            return self._read(self.backbone, images)
        except FAILURES as error:
            size = (images.shape[-2], images.shape[-1])
            refuse_size(error, type(self).__name__, self.name, size, self.image_size)
            raise

    def __repr__(self) -> str:
        # One line: the plain model, all its layers, prints as `.backbone`.
        kind = type(self).__name__
        return f"{kind}({self.name!r}, embed_dim={self.embed_dim}, grid={self.grid})"


def load_backbone(
    model: str | nn.Module,
    *,
    subject: str,
    pretrained: bool,
    checkpoint: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
    drop_path: float = 0.0,
) -> Backbone:
    """Build the model a user asked for, or raise; never a different one.

    Args:
        model: A name of `proteus.models.names`, a timm name, `local-dir:FOLDER`,
            `hf-hub:OWNER/REPO`, or
            a module, which is used as it is (a copy of it where it has to be resized).
        subject: "Teacher" or "Student", the first word of error messages.
        pretrained: Load the published weights.
        checkpoint: A local `.safetensors` or `.pth` file with the weights instead.
        image_size: Pixels; None = the model's own. Positions are resampled here, once, by the rule
            of the model's family.
        drop_path: Rate of stochastic depth in training, for names. It is no part of the weights, so
            it is not among the recorded arguments.

    Raises:
        ValueError: If the name is unknown, weights are missing, or the size does not fit.
    """
    size = None if image_size is None else to_pair(image_size)
    if isinstance(model, nn.Module):
        if checkpoint is not None:
            raise ValueError(
                f"{subject}: checkpoint= goes with a name. Got a module of type "
                f"{type(model).__name__}; load its weights before, with load_state_dict."
            )
        if drop_path:
            raise ValueError(
                f"{subject}: drop_path= goes with a name. Got a module of type "
                f"{type(model).__name__}; build it with stochastic depth instead."
            )
        backbone = _describe(model, type(model).__name__, size, subject)
    elif not isinstance(model, str):
        raise ValueError(
            f"{subject}: not a model. Got {model!r}; expected a name, or an nn.Module. A folder is "
            f"'local-dir:FOLDER'."
        )
    else:
        backbone = _create(model, subject, pretrained, checkpoint, size, drop_path=drop_path)
    if is_resizable(backbone.model):
        patch = backbone.model.patch_embed.patch_size
        check_image_size(size or backbone.image_size, patch, subject)
    if size is None or size == backbone.image_size:
        return backbone
    if is_resizable(backbone.model):
        if backbone.model is model:  # the user's stays what it is
            backbone = replace(backbone, model=copy.deepcopy(model))
        fit_positions(
            cast("Any", backbone.model), size, position_rule(backbone.architecture), subject
        )
    if backbone.arguments is not None and backbone.fixed_size:
        backbone = replace(backbone, arguments={**backbone.arguments, "img_size": size})
    return replace(backbone, image_size=size)


def is_known(name: str) -> bool:
    """Whether it is a name of `proteus.models.names` or of timm."""
    import timm

    return name in STUDENTS or name in TEACHERS or bool(timm.is_model(name))


def _create(
    name: str,
    subject: str,
    pretrained: bool,
    checkpoint: str | Path | None,
    size: tuple[int, int] | None,
    *,
    drop_path: float,
) -> Backbone:
    """A named model; at its native size if it gets weights, else directly at the wanted one."""
    import timm

    entry = {**STUDENTS, **TEACHERS}.get(name, Entry(name))
    source = entry.architecture
    if source.startswith("local-dir:"):
        if checkpoint is not None:
            raise ValueError(
                f"{subject}: checkpoint= would be ignored. Got {name!r}, which brings its own "
                f"weights; leave checkpoint= out."
            )
        if drop_path:
            raise ValueError(
                f"{subject}: drop_path= would be ignored. Got {name!r}, which is rebuilt from its "
                f"own description; expected a timm name."
            )
        model = load_folder(source.removeprefix("local-dir:"), subject)
        return replace(_describe(model, name, size, subject), objectives=entry.objectives)
    if not source.startswith("hf-hub:"):
        architecture, _, tag = source.partition(".")
        tags = [t.partition(".")[2] for t in timm.list_models(architecture + ".*", pretrained=True)]
        if not timm.is_model(architecture) or (tag and tag not in tags):
            known = [*STUDENTS, *TEACHERS, *timm.list_models(), *timm.list_models(pretrained=True)]
            raise ValueError(unknown_name(subject, name, known))
    from_file = source.startswith("hf-hub:")
    weights = from_file or (pretrained and checkpoint is None)
    if weights and not entry.published:
        raise ValueError(
            f"{subject}: no published weights. Got {name!r} with pretrained=True; expected "
            f"checkpoint='FILE', or pretrained=False for random weights."
        )
    arguments = dict(entry.arguments)
    target = size or (to_pair(entry.image_size) if entry.image_size else None)
    config = None if from_file else timm.get_pretrained_cfg(source)
    if target and not weights and checkpoint is None and config and config.fixed_input_size:
        arguments["img_size"] = target
    try:
        if weights and config and config.hf_hub_id:
            _reach(config.hf_hub_id.partition("@")[0])
        extra: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
        model = timm.create_model(source, pretrained=weights, num_classes=0, **arguments, **extra)
    # A repository's description may make timm do anything.
    except (OSError, ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError,
            TypeError, ValueError) as error:  # fmt: skip
        if size is not None and "img_size" in arguments and not weights:
            raise ValueError(f"{subject}: {name} cannot be built at {size}. {error}") from error
        raise ValueError(
            f"{subject}: the model could not be loaded. Got {name!r} and from timm: "
            f"{type(error).__name__}: {error}. {_offline_advice(subject, name, config)}"
        ) from error
    if weights:
        refuse_not_finite(model.state_dict(), f"{subject}: {name}", model)
    if checkpoint is not None:
        model = load_checkpoint(model, checkpoint, subject)
    described = _describe(model, name, size, subject)
    return replace(
        described,
        arguments={**(described.arguments or {}), **arguments},
        objectives=entry.objectives,
        license=(config.license if config and weights else None) or described.license,
    )


def _reach(repo: str) -> None:
    """Fail at once where the weights are neither cached nor reachable; timm tries for a minute."""
    from huggingface_hub import HfApi, errors, try_to_load_from_cache

    files = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin")
    if any(isinstance(try_to_load_from_cache(repo, file), str) for file in files):
        return
    try:
        HfApi().model_info(repo, timeout=10)
    except errors.HTTPError as error:  # type: ignore[attr-defined]
        raise OSError(str(error)) from error


def _offline_advice(subject: str, name: str, config: Any) -> str:
    """Which file to put where on a machine without a connection."""
    if config is None or not config.hf_hub_id:
        return "Without a connection pass 'local-dir:FOLDER' with a copy of the repository."
    if subject == "Student":  # which takes no checkpoint=
        return (
            f"Without a connection: copy config.json and model.safetensors of {config.hf_hub_id} "
            f"on the Hugging Face Hub into a folder here, and pass 'local-dir:FOLDER'."
        )
    official = f", or {config.url}" if config.url else ""
    return (
        f"Without a connection: fetch model.safetensors of {config.hf_hub_id} on the Hugging Face "
        f"Hub{official} elsewhere, copy it here, and pass checkpoint='FILE' with {name!r} (for a "
        f"command, --teacher-checkpoint FILE, or --checkpoint FILE where it is its MODEL)."
    )


def _describe(model: nn.Module, name: str, size: tuple[int, int] | None, subject: str) -> Backbone:
    """What a built model says about itself."""
    if not isinstance(model, _HasConfig):
        return Backbone(model, name, size or (224, 224), fixed_size=False)
    described = read_config(model.pretrained_cfg, f"{subject}: {name}")
    native = described.image_size or (224, 224)
    fixed = is_resizable(model)
    if fixed:
        native = to_pair(cast("Any", model).patch_embed.img_size or native)
    return Backbone(
        model,
        name,
        native,
        fixed_size=fixed,
        own_size=native,
        statistics=described.statistics,
        architecture=described.architecture,
        # Recorded by timm from 1.0.31 on and by `proteus.weights`; img_size may have changed since.
        arguments={
            **{k: v for k, v in vars(model).get("_model_args", {}).items() if k not in _TRAINING},
            **({"img_size": native} if fixed else {}),
        },
        license=described.license,
    )
