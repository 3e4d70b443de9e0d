"""The Proteus authors' own files: training checkpoints and every form of released student."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from ..features import IMAGENET
from .openai_clip import build_clip
from .state_dicts import StateDict, model_tensors, naming, open_weights, rename
from .vit import build_vit

_STUDENT = "student.backbone."
# What a training checkpoint holds beside the student.
_OTHERS = ("teacher.backbone.", "token_head.", "fea_head.", "patch_head.")


def from_proteus(
    state_dict: Mapping[str, Any] | str | Path,
    *,
    weights: Literal["student", "ema"] = "student",
    image_size: int | tuple[int, int] | None = None,
    num_heads: int | None = None,
) -> nn.Module:
    """A student of the Proteus authors as a plain timm model.

    Takes their training checkpoints and every released form: under `model` or `state_dict` or flat,
    with `student.backbone.`, `module.student.backbone.` or nothing before the names. The students
    of DINOv2, SynCLR and CLIP are told apart by their tensors.

    Args:
        state_dict: The dictionary or a local file.
        weights: "student" (which all evaluations of the paper use) or "ema" (the running average
            that training checkpoints hold under `model_ema`).
        image_size: Pixels; None = the trained size (224). Positions are resampled once, by the rule
            of the teacher's family.
        num_heads: None = width / 64, which holds for all published students.

    Returns:
        timm `VisionTransformer` in eval, `num_classes=0`, with `mask_token` as in `from_dinov2`.
        Its statistics are ImageNet's also for the student of CLIP, which was trained with them.

    Raises:
        ValueError: If no key is the student's, a key is missing or left over, or "ema" is asked of
            a file without it.

    Examples:
        >>> import timm
        >>> backbone = timm.create_model(
        ...     "vit_small_patch14_dinov2", num_classes=0, img_size=56, depth=2
        ... )
        >>> file = {"model": {f"student.backbone.{k}": v for k, v in backbone.state_dict().items()}}
        >>> from_proteus(file).pos_embed.shape
        torch.Size([1, 17, 384])

    Source:
        Proteus `pretrain/main.py` (checkpoints), `eval/*/utils` (loaders).
        *Same:* outputs; the student's weights by default.
        *Different:* their loaders use `strict=False` and load nothing from bare keys, silently;
        here a file without the student is an error.
    """
    if weights not in ("student", "ema"):
        raise ValueError(
            f"from_proteus: unknown weights. Got {weights!r}; expected 'student' or 'ema'."
        )
    with naming(state_dict):
        content = open_weights(state_dict, "from_proteus")
        tensors = _student(model_tensors(_chosen(content, weights), "from_proteus"))
        if "class_embedding" not in tensors:
            return build_vit(tensors, image_size, num_heads, "from_proteus")
        model = build_clip(tensors, image_size, num_heads, "from_proteus")
    # The authors feed ImageNet's statistics to CLIP and to its student.
    mean, std = IMAGENET
    vars(model)["pretrained_cfg"] = {**vars(model)["pretrained_cfg"], "mean": mean, "std": std}
    return model


def _chosen(content: dict[str, Any], weights: str) -> Mapping[str, Any]:
    """What holds the student, or its running average."""
    if weights == "ema":
        if not isinstance(content.get("model_ema"), Mapping):
            raise ValueError(
                f"from_proteus: no EMA weights. Got a file with {sorted(content)[:5]}; expected "
                f"'model_ema', which training checkpoints have. Use weights='student'."
            )
        return {"model": content["model_ema"]}
    return content


def _student(tensors: StateDict) -> dict[str, Tensor]:
    """The student's tensors under bare names; unknown others stay, to be complained of."""
    own = {name: value for name, value in tensors.items() if not name.startswith(_OTHERS)}
    if len(own) < len(tensors) and not any(name.startswith(_STUDENT) for name in own):
        raise ValueError(
            f"from_proteus: no student in the file. Got {len(tensors)} keys such as "
            f"{sorted(tensors)[:3]}; expected '{_STUDENT}…'."
        )
    return rename(own, lambda name: name.removeprefix(_STUDENT), "from_proteus")
