"""A name, a file or a module -> a plain model, and what must be known to feed it."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from torch import nn

from ..features import ShapeError
from ..traits import Trait
from ..weights import load_checkpoint
from ..weights.description import read_config
from ..weights.installed import installed_weights
from ..weights.positions import (
    check_image_size,
    fit_positions,
    is_resizable,
    to_pair,
)
from ..weights.state_dicts import refuse_not_finite
from ..weights.timm_folder import load_folder
from .fused import Layers, choose
from .image_model import Backbone
from .load_transformers import PREFIX, load_transformers, not_loaded
from .names import STUDENTS, TEACHERS, Entry, position_rule, unknown_name
from .probes import noise
from .read import ImageInput, probe, reader_for
from .read_transformers import TransformersModel, family_of, own_size

_WEIGHTS = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin")
_TRAINING = ("num_classes", "drop_path_rate")  # arguments that no saved model needs


@runtime_checkable
class _HasConfig(Trait, Protocol):
    pretrained_cfg: Any


def load_backbone(
    model: str | nn.Module,
    *,
    subject: str,
    pretrained: bool,
    checkpoint: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
    grid: tuple[int, int] | None = None,
    layers: Layers | None = None,
    drop_path: float = 0.0,
) -> Backbone:
    """Build the model a user asked for, or raise; never a different one.

    Args:
        model: A name of `proteus.models.names`, a timm name, `local-dir:FOLDER`,
            `hf-hub:OWNER/REPO`, `hf-transformers:OWNER/REPO` (or a folder), or
            a module, which is used as it is (a copy of it where it has to be resized).
        subject: "Teacher" or "Student", the first word of error messages.
        pretrained: Load the published weights.
        checkpoint: A local `.safetensors` or `.pth` file with the weights instead.
        image_size: Pixels; None = the model's own. Positions are resampled here, once, by the rule
            of the model's family.
        grid: (h, w) of the patches instead of a size: the size at which it has them.
        layers: Whose grid that is; None = the output's.
        drop_path: Rate of stochastic depth in training, for names. It is no part of the weights, so
            it is not among the recorded arguments.

    Raises:
        ValueError: If the name is unknown, weights are missing, or the size does not fit.
    """
    if image_size is not None and grid is not None:
        raise ValueError(
            f"{subject}: image_size= and grid= say the same. Got {image_size} and {grid}; expected "
            f"one of them."
        )
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
        backbone = _named(model, subject, pretrained, checkpoint, size, drop_path=drop_path)
    if grid is not None:
        size = _size_of_grid(backbone, to_pair(grid), layers, subject)
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


def _size_of_grid(
    backbone: Backbone, grid: tuple[int, int], layers: Layers | None, subject: str
) -> tuple[int, int]:
    """The image size at which a model has a grid: its own, by the pixels of one of its patches."""
    model, size = backbone.model, backbone.image_size
    inputs, read = ImageInput(backbone.statistics, subject).like(model), reader_for(model)
    if layers is not None:
        image = noise(inputs, size)
        read = choose(model, layers, read, image, subject=subject, name=backbone.name)
    own = probe(read, model, inputs, size).grid
    if 0 in own or size[0] % own[0] or size[1] % own[1]:
        raise ShapeError(
            f"{subject}: there is no size for a grid. Got grid={grid} for {backbone.name}, which "
            f"has a grid of {own} at {size[0]}x{size[1]}; expected a model whose patches divide "
            f"the image. Pass image_size= instead; unequal grids meet on the coarser one."
        )
    return grid[0] * (size[0] // own[0]), grid[1] * (size[1] // own[1])


def is_known(name: str) -> bool:
    """Whether it is a name of `proteus.models.names` or of timm."""
    import timm

    return name in STUDENTS or name in TEACHERS or bool(timm.is_model(name))


def _named(
    name: str,
    subject: str,
    pretrained: bool,
    checkpoint: str | Path | None,
    size: tuple[int, int] | None,
    *,
    drop_path: float,
) -> Backbone:
    """A named model with the weights of its installed package, where its name has one."""
    package = TEACHERS[name].package if name in TEACHERS else None
    if package is None or checkpoint is not None or not pretrained:
        return _create(name, subject, pretrained, checkpoint, size, drop_path=drop_path)
    file = installed_weights(package.name, subject)
    made = _create(name, subject, pretrained, file, size, drop_path=drop_path)
    return replace(made, license=package.license, origin=package.origin)


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
    if source.startswith(("local-dir:", PREFIX)):
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
        return _open_folder(name, entry, size, subject)
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


def _open_folder(name: str, entry: Entry, size: tuple[int, int] | None, subject: str) -> Backbone:
    """A model that brings its own weights: timm's in a folder, or one of transformers."""
    source = entry.architecture
    if not source.startswith(PREFIX):
        model = load_folder(source.removeprefix("local-dir:"), subject)
        return replace(_describe(model, name, size, subject), objectives=entry.objectives)
    place = source.removeprefix(PREFIX)
    if not Path(place).is_dir():
        try:
            _reach(place, ("config.json",))
        except (OSError, ValueError) as error:
            raise not_loaded(place, subject, error) from error
    loaded = load_transformers(place, subject)
    described = _describe(loaded.model, name, size or loaded.image_size, subject)
    return replace(described, statistics=loaded.statistics, license=loaded.license)


def _reach(repo: str, files: tuple[str, ...] = _WEIGHTS) -> None:
    """Fail at once where the files are neither cached nor reachable; others try for a minute."""
    from huggingface_hub import HfApi, errors, try_to_load_from_cache

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
    if isinstance(model, TransformersModel):
        family, native = family_of(model), own_size(model) or (224, 224)
        return Backbone(
            cast("nn.Module", model),
            name,
            size or native,
            fixed_size=False,
            own_size=native,
            statistics=family.statistics,
            objectives=family.objectives,
        )
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
