"""A timm vision transformer as a folder of transformers' DINOv2."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..features import IMAGENET
from ..files import replace_files

_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
_MLP = {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
_SWIGLU = {"mlp.fc1": "mlp.weights_in", "mlp.fc2": "mlp.weights_out"}
_LAYERS = ("patch_embed.proj", "norm", "norm1", "norm2", "attn.qkv", "attn.proj", *_MLP)
_TENSORS = {
    "cls_token",
    "pos_embed",
    *(f"{n}.{kind}" for n in _LAYERS for kind in ("weight", "bias")),
}
_OPTIONAL = {"reg_token", "ls1.gamma", "ls2.gamma"}
_HEADS = ("head.", "fc_norm.", "attn_pool.")  # behind the tokens


def to_transformers(model: nn.Module, folder: str | Path) -> Path:
    """Write a folder that transformers loads: `AutoModel.from_pretrained(folder)`.

    A `Dinov2Model`, or a `Dinov2WithRegistersModel` where there are registers. Outputs are the same
    at the model's image size; at others, transformers resamples positions by a rule of its own.

    Args:
        model: A timm `VisionTransformer` with a class token, exact GELU or SwiGLU, and no norm
            before the blocks: every student of the paper but CLIP's.
        folder: Gets `config.json`, `model.safetensors` and `preprocessor_config.json`.

    Returns:
        The folder.

    Raises:
        ValueError: If transformers' DINOv2 cannot express the model. (Every export folder in timm's
            layout loads in transformers as it is, as a `TimmWrapperModel`, where timm is
            installed.)
    """
    from safetensors.torch import save_file

    config = _describe(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-export-") as name:
        staging = Path(name)
        save_file(_rename(model), staging / "model.safetensors", {"format": "pt"})
        (staging / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        preprocessing = json.dumps(_preprocessing(model, config["image_size"]), indent=2)
        (staging / "preprocessor_config.json").write_text(preprocessing + "\n")
        replace_files(staging, folder)
    return folder


def _describe(model: nn.Module) -> dict[str, Any]:
    """The configuration, or an error that says which part of the model has no place in it."""
    from timm.layers.mlp import GluMlp
    from timm.models.vision_transformer import Block, VisionTransformer

    if not isinstance(model, VisionTransformer):
        raise _cannot(f"a {type(model).__name__}", "a timm VisionTransformer")
    if not isinstance(model.blocks[0], Block):
        raise _cannot(f"blocks of type {type(model.blocks[0]).__name__}", "timm's plain Block")
    block: Any = model.blocks[0]
    height, width = model.patch_embed.img_size or (0, 0)
    patch, channels = model.patch_embed.patch_size, model.patch_embed.proj.in_channels
    names = {re.sub(r"^blocks\.\d+\.", "", name) for name in model.state_dict()}
    names -= _OPTIONAL | {name for name in names if name.startswith(_HEADS)}
    gated = isinstance(block.mlp, GluMlp)
    hidden = block.mlp.fc2.in_features
    wrong = {
        "a norm before the blocks": not isinstance(model.norm_pre, nn.Identity),
        "a norm behind the pooling": isinstance(model.norm, nn.Identity),
        f"the activation {type(block.mlp.act).__name__}": not gated
        and not (isinstance(block.mlp.act, nn.GELU) and block.mlp.act.approximate == "none"),
        "another gated MLP than SwiGLU": gated
        and (not isinstance(block.mlp.act, nn.SiLU) or hidden != _swiglu_width(model.embed_dim)),
        f"the image size {height}x{width}": height != width or height == 0,
        f"patches of {patch[0]}x{patch[1]} of {channels} channels": patch[0] != patch[1]
        or channels != 3,
        f"an MLP of width {hidden}": not gated and hidden % model.embed_dim != 0,
        f"more tensors ({', '.join(sorted(names - _TENSORS)[:3])})": bool(names - _TENSORS),
        f"fewer tensors, without {', '.join(sorted(_TENSORS - names)[:3])}": bool(_TENSORS - names),
        "class token and registers in another order": model.reg_token is not None
        and not model.no_embed_class,
    }
    found = [what for what, is_so in wrong.items() if is_so]
    if found:
        raise _cannot(" and ".join(found), "a transformer as DINOv2's")
    registers = 0 if model.reg_token is None else model.reg_token.shape[1]
    kind = "dinov2_with_registers" if registers else "dinov2"
    return {
        "architectures": ["Dinov2WithRegistersModel" if registers else "Dinov2Model"],
        "model_type": kind,
        "hidden_size": model.embed_dim,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": block.attn.num_heads,
        "mlp_ratio": 4 if gated else hidden // model.embed_dim,
        "use_swiglu_ffn": gated,
        "hidden_act": "gelu",
        "layer_norm_eps": model.norm.eps,
        "qkv_bias": True,
        "layerscale_value": 1.0,
        "image_size": height,
        "patch_size": patch[0],
        "num_channels": 3,
        **({"num_register_tokens": registers} if registers else {}),
    }


def _cannot(got: str, expected: str) -> ValueError:
    return ValueError(
        f"to_transformers: Dinov2Model cannot express this model. Got {got}; expected {expected}. "
        f"An export folder in timm's layout loads in transformers as it is, with AutoModel."
    )


def _swiglu_width(width: int) -> int:
    return (int(int(width * 4) * 2 / 3) + 7) // 8 * 8


def _rename(model: Any) -> dict[str, Tensor]:
    """Tensors under the names of the files on the Hub, which every version of transformers maps."""
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    gated = model.blocks[0].mlp.fc1.out_features != model.blocks[0].mlp.fc2.in_features
    width = model.embed_dim
    positions = state["pos_embed"]
    if model.no_embed_class:
        # timm keeps the class position inside the class token; here it has a row of its own.
        positions = torch.cat([torch.zeros_like(positions[:, :1]), positions], 1)
    renamed = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.mask_token": torch.zeros(1, width),
        "embeddings.position_embeddings": positions,
        "embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    if "reg_token" in state:
        renamed["embeddings.register_tokens"] = state["reg_token"]
    for index in range(len(model.blocks)):
        ours, theirs = f"blocks.{index}.", f"encoder.layer.{index}."
        for kind in ("weight", "bias"):
            parts = state[f"{ours}attn.qkv.{kind}"].chunk(3)
            for part, value in zip(("query", "key", "value"), parts, strict=True):
                renamed[f"{theirs}attention.attention.{part}.{kind}"] = value
        for scale in ("layer_scale1.lambda1", "layer_scale2.lambda1"):
            renamed[theirs + scale] = torch.ones(width)  # where timm's model has none
        for name, value in state.items():
            for old, new in (_BLOCK | (_SWIGLU if gated else _MLP)).items():
                if name.startswith(ours + old):
                    renamed[theirs + new + name.removeprefix(ours + old)] = value
    return {name: value.contiguous().clone() for name, value in renamed.items()}


def _preprocessing(model: nn.Module, size: int) -> dict[str, Any]:
    config: dict[str, Any] = dict(vars(model).get("pretrained_cfg") or {})
    return {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.get("mean", IMAGENET[0])),
        "image_std": list(config.get("std", IMAGENET[1])),
        "do_convert_rgb": True,
    }
