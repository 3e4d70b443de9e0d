"""The authors' own step, from a checkout of their code, as one of the steps to compare with.

Nothing of theirs is changed. Their code needs two things that are not everywhere: `xformers`, in
whose place their attention gets torch's fused one (as fast, and runs on a CPU), and DINOv2 from
torch.hub, in whose place their own class stands with the same form (positions of 37 x 37, brought
to the image's grid in every step, as there).
"""

import functools
import sys
import types
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Our name of a model -> theirs, and its architecture as the argument of their command line.
_MODELS = {f"vit_{size}_patch14": f"vit_{size}" for size in ("tiny", "small", "base", "large")}


class _Blocks:
    """Sequences laid end to end, all of one length: what two views of a batch give."""

    def __init__(self, lengths: list[int]) -> None:
        if len(set(lengths)) > 1:
            raise ValueError(f"authors: got sequences of {sorted(set(lengths))}; expected one.")
        self.count, self.length = len(lengths), lengths[0]
        self._batch_sizes: list[int] = []

    @classmethod
    def from_seqlens(cls, lengths: list[int]) -> "_Blocks":
        return cls(lengths)

    def split(self, rows: Tensor) -> list[Tensor]:
        whole = rows.reshape(self.count, self.length, rows.shape[-1])
        return list(whole.split(self._batch_sizes))


def _attention(q: Tensor, k: Tensor, v: Tensor, attn_bias: _Blocks | None = None) -> Tensor:
    """[B, N, H, D] each, as xformers takes them."""
    shape = q.shape
    if attn_bias is not None:
        q, k, v = (x.reshape(attn_bias.count, attn_bias.length, *x.shape[2:]) for x in (q, k, v))
    found = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
    return found.transpose(1, 2).reshape(shape)


def _stand_in_for_xformers() -> None:
    ops: Any = types.ModuleType("xformers.ops")
    ops.memory_efficient_attention = _attention
    ops.unbind = torch.unbind
    ops.fmha = types.SimpleNamespace(BlockDiagonalMask=_Blocks)
    ops.scaled_index_add = ops.index_select_cat = None  # of drop path, which their script leaves 0
    ops.SwiGLU = nn.Module
    package: Any = types.ModuleType("xformers")
    package.ops = ops
    sys.modules |= {"xformers": package, "xformers.ops": ops}


class AuthorsStep:
    """Their `MetaArch` and what their loop does around it.

    Args:
        checkout: Folder of their repository.
        teacher: Ours of its names; likewise
        student: the student's.
        batch_size: Images a step.
        device: Where.
    """

    def __init__(
        self, checkout: Path, teacher: str, student: str, batch_size: int, device: str
    ) -> None:
        folder = checkout / "pretrain"
        if not (folder / "models_proteus_dinov2.py").is_file():
            raise ValueError(f"--authors: got {checkout}; expected a checkout of their code.")
        _stand_in_for_xformers()
        sys.path.insert(0, str(folder))
        import models_dinov2
        import models_proteus_dinov2

        def hub(*_: Any) -> Any:
            build = getattr(models_dinov2, _MODELS[teacher])
            backbone = build(
                img_size=518, patch_size=14, init_values=1.0, ffn_layer="mlp", block_chunks=0
            )
            found: Any = nn.Module()
            found.backbone = backbone
            return found

        settings = types.SimpleNamespace(
            target_model=_MODELS[student], teacher_model=_MODELS[teacher], patch_size=14,
            batch_size=batch_size, mask_probability=0.5,
            lambda_token=1.0, lambda_fea=1.0, lambda_patch=1.0,
        )  # fmt: skip
        real, torch.hub.load = torch.hub.load, hub
        try:
            self.model = models_proteus_dinov2.MetaArch(settings).to(device).train()
        finally:
            torch.hub.load = real
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.05)
        self._normalize = functools.partial(normalized, device=device)

    def losses(self, images: Tensor, hidden: Tensor) -> dict[str, Tensor]:
        """Of uint8 images [B, 3, H, W], and masks [B, N] on the CPU, as their loader gives them."""
        indices = hidden.flatten().nonzero().flatten()
        found: dict[str, Tensor] = self.model({
            "collated_global_crops": self._normalize(images),
            "collated_masks": hidden.to(images.device),
            "mask_indices_list": indices.to(images.device),
            "upperbound": len(indices),
        })  # fmt: skip
        return found

    def read(self, losses: dict[str, Tensor]) -> None:
        """Their loop asks the device for all four terms in each step."""
        for term in losses.values():
            term.item()


def normalized(images: Tensor, device: str) -> Tensor:
    mean = torch.tensor([0.485, 0.456, 0.406], device=device).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], device=device).view(1, 3, 1, 1)
    return (images.float() / 255 - mean) / std
