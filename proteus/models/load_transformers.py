"""`hf-transformers:NAME_OR_FOLDER`: a model, its statistics and size, with transformers."""

import logging
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..files import read_json
from ..weights.description import Statistics, read_config
from ..weights.state_dicts import refuse_not_finite
from ..words import install
from .read_transformers import family_of, own_size

PREFIX = "hf-transformers:"
_logger = logging.getLogger(__name__)
# What a file may hold that the model has no place for: heads, pooling and the text tower.
_MAY_BE_LEFT = re.compile(
    r"(classifier|cls_classifier|distillation_classifier|lm_head|decoder|pooler|text_model"
    r"|text_projection|visual_projection)\..*|logit_scale|logit_bias|(.*\.)?position_ids"
)
# What a file may lack, because no feature is read from it: a tanh layer and the token of a mask.
_MAY_BE_MISSING = re.compile(r"pooler\.dense\..*|(.*\.)?mask_token")


class Loaded(NamedTuple):
    """A model of transformers with its weights.

    Attributes:
        model: The model, float32, in eval.
        statistics: Mean and std of its images.
        image_size: (height, width) of its images.
        license: Of its weights, as the model card states it; "" where there is none.
    """

    model: nn.Module
    statistics: Statistics
    image_size: tuple[int, int]
    license: str


def load_transformers(name: str, subject: str) -> Loaded:
    """Load a model of transformers from a folder that `save_pretrained` wrote, or from the Hub.

    Weights are read from safetensors alone, and no code that comes with a model is run. Of CLIP and
    SigLIP the vision tower is loaded. Mean, std and size are those of `preprocessor_config.json`;
    where there is none, those of the model's family and configuration. The file may hold heads and
    a text tower that the model has no place for, and lack ViT's pooling layer and the token of a
    mask, which are not read; any other tensor that is missing or left over is an error.

    Args:
        name: A folder, or OWNER/REPO on the Hugging Face Hub.
        subject: "Teacher" or "Student", the first word of error messages.

    Raises:
        ValueError: If transformers is not installed, the model cannot be loaded, its weights do not
            fit exactly or are not finite, or its images are prepared in a way that is not ours.
    """
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            f"{subject}: transformers is not installed. Got {PREFIX + name!r}. "
            f"{install('transformers')} (or 'proteus-distill[eval]')"
        ) from error
    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        kind: Any = transformers.AutoModel
        if config.model_type in ("clip", "siglip"):  # `AutoModel` would build the text tower too
            clip = config.model_type == "clip"
            kind = transformers.CLIPVisionModel if clip else transformers.SiglipVisionModel
        model, found = kind.from_pretrained(
            name,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            dtype=torch.float32,
        )
        preparation = _read_preparation(name)
        license_ = _read_license(name)
    # A repository's description may make transformers do anything.
    except (OSError, ArithmeticError, AssertionError, AttributeError, ImportError, LookupError,
            RuntimeError, TypeError, ValueError) as error:  # fmt: skip
        raise not_loaded(name, subject, error) from error
    _check_weights(found, f"{subject}: {PREFIX + name}")
    refuse_not_finite(model.state_dict(), f"{subject}: {name}", model)
    where = f"{subject}: {PREFIX + name}, preprocessor_config.json"
    statistics, size = (None, None) if preparation is None else _describe(preparation, where)
    if statistics is None:
        statistics = family_of(model).statistics
        _logger.warning(
            "%s: no preprocessor_config.json with %s says its mean and std; those of the family "
            "%r are taken, %s. Pass normalize=(mean, std) where they are others.",
            subject, PREFIX + name, model.config.model_type, statistics,
        )  # fmt: skip
    return Loaded(model.eval(), statistics, size or own_size(model) or (224, 224), license_)


def not_loaded(name: str, subject: str, error: Exception) -> ValueError:
    """The error for a model that is not there, or that transformers cannot load."""
    return ValueError(
        f"{subject}: the model could not be loaded. Got {PREFIX + name!r} and "
        f"{type(error).__name__}: {' '.join(str(error).split())[:400].rstrip(' .')}. Expected a "
        f"folder or a repository with config.json and model.safetensors of a model of images. "
        f"Without a connection pass '{PREFIX}FOLDER' with a copy of the repository."
    )


def _check_weights(found: Mapping[str, Iterable[Any]], where: str) -> None:
    """Refuse tensors that are missing, left over or of another shape, but for what is not read."""
    missing = sorted(k for k in found["missing_keys"] if not _MAY_BE_MISSING.fullmatch(k))
    left = sorted(k for k in found["unexpected_keys"] if not _MAY_BE_LEFT.fullmatch(k))
    other = sorted(str(key) for key in found["mismatched_keys"])
    wrong = {"missing": missing, "left over": left, "of another shape": other}
    said = [f"{', '.join(keys[:3])} ({len(keys)}) {what}" for what, keys in wrong.items() if keys]
    if said:
        raise ValueError(
            f"{where}: the weights do not fit. Got {'; '.join(said)}; expected exactly those of "
            f"the model in config.json. Load it with transformers, and pass the module."
        )


def _file(name: str, file: str) -> Path | None:
    """A file of the folder or the repository; None where it is known not to be there."""
    from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(name, file))
    except errors.LocalEntryNotFoundError:  # no connection
        if try_to_load_from_cache(name, file) is None:  # neither it nor its absence is cached
            raise
        return None
    except errors.EntryNotFoundError:
        return None


def _read_preparation(name: str) -> Mapping[str, Any] | None:
    """How the images are prepared; None where nothing says it."""
    for file in ("preprocessor_config.json", "processor_config.json"):
        path = _file(name, file)
        said = None if path is None else read_json(path)
        if file == "processor_config.json" and isinstance(said, dict):
            said = said.get("image_processor")  # of a model of text and images
        if said is not None:
            if not isinstance(said, dict):
                raise ValueError(f"{file} is no object. Got {said!r}.")
            return said
    return None


def _read_license(name: str) -> str:
    from huggingface_hub.repocard import metadata_load

    path = _file(name, "README.md")
    said = (metadata_load(path) or {}).get("license") if path else None
    return said if isinstance(said, str) else ""


def _describe(
    said: Mapping[str, Any], where: str
) -> tuple[Statistics | None, tuple[int, int] | None]:
    """(mean, std) and the size of the images that an image processor gives."""
    factor = said.get("rescale_factor", 1 / 255)
    usual = isinstance(factor, float | int) and math.isclose(factor, 1 / 255, rel_tol=1e-3)
    if not said.get("do_rescale", True) or not usual or said.get("rescale_offset"):
        raise ValueError(
            f"{where}: pixels are scaled in another way. Got do_rescale {said.get('do_rescale')}, "
            f"rescale_factor {factor}, rescale_offset {said.get('rescale_offset')}; expected 1/255 "
            f"and no offset. Load it with transformers, and pass the module and normalize=."
        )
    if not said.get("do_normalize", True):
        said = {**said, "image_mean": (0.0,) * 3, "image_std": (1.0,) * 3}
    mean, std = said.get("image_mean"), said.get("image_std")
    crop = said.get("crop_size") if said.get("do_center_crop", True) else None
    size = crop or said.get("size")
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge")
        size = [size.get("height", edge), size.get("width", edge)]
    elif size is not None:
        size = [size, size]
    checked = {"mean": mean, "std": std, "input_size": None if size is None else [3, *size]}
    described = read_config(checked, where)
    return None if mean is None or std is None else described.statistics, described.image_size
