"""ProjectionHead: from the student's width to the teacher's."""

from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor, nn

Design = Literal["ln_linear", "linear_gelu", "gelu_linear", "linear", "mlp", "identity"]

Width = int | tuple[int, int]  # of class token and patches, or (of class token, of patches)


def width_of(cls: int, patches: int) -> Width:
    """Two widths as one where they are equal.

    Examples:
        >>> width_of(8, 8), width_of(8, 16)
        (8, (8, 16))
    """
    return cls if cls == patches else (cls, patches)


def widths_of(width: Width) -> tuple[int, int]:
    """(width of the class token, width of patches), whichever way they are given.

    Raises:
        ValueError: If it is neither a number nor two of them, at least 1.

    Examples:
        >>> widths_of(8), widths_of((8, 16))
        ((8, 8), (8, 16))
    """
    pair = width if isinstance(width, tuple) else (width, width)
    if len(pair) != 2 or not all(isinstance(one, int) and one >= 1 for one in pair):
        raise ValueError(
            f"ProteusLoss: not a width. Got {width!r}; expected a number, or (width of the class "
            f"token, width of patches)."
        )
    return pair


class ProjectionHead(nn.Module):
    """Map student tokens to the teacher's width, [..., Ds] -> [..., Dt].

    Args:
        in_dim: Student width Ds.
        out_dim: Teacher width Dt.
        design: `ln_linear` (the paper's choice: `.norm`, then `.linear`), `linear_gelu` and
            `gelu_linear` (the other two of Table 20), `linear`, `mlp` (LayerNorm, Linear to Dt,
            GELU, Linear) or `identity` (Ds must equal Dt; no parameters).

    Raises:
        ValueError: If the design is unknown, or `identity` is asked to change the width.

    Examples:
        >>> import torch
        >>> head = ProjectionHead(192, 384)
        >>> head(torch.zeros(2, 257, 192)).shape
        torch.Size([2, 257, 384])

    Source:
        Proteus (ICLR 2025), section 2.3 and Table 20; `pretrain/models_proteus_dinov2.py:72-82`.
        *Same:* LayerNorm with eps 1e-5 (the backbone's norms have 1e-6), then a Linear with bias.
        *Different:* the authors' code has `ln_linear` only.
    """

    def __init__(self, in_dim: int, out_dim: int, design: Design = "ln_linear") -> None:
        super().__init__()
        if design not in _LAYERS:
            raise ValueError(
                f"ProjectionHead: unknown design. Got {design!r}; "
                f"expected one of {', '.join(get_args(Design))}."
            )
        if design == "identity" and in_dim != out_dim:
            raise ValueError(
                f"ProjectionHead: design 'identity' cannot change the width. Got {in_dim} -> "
                f"{out_dim}; expected equal widths. Use design='ln_linear'."
            )
        self.in_dim, self.out_dim, self.design = in_dim, out_dim, design
        # One attribute a layer, applied in order: `head.norm` and `head.linear` are public names.
        for name, layer in _LAYERS[design](in_dim, out_dim).items():
            self.add_module(name, layer)

    def forward(self, tokens: Tensor) -> Tensor:
        """Project tokens [..., Ds] to [..., Dt]."""
        for layer in self.children():
            tokens = layer(tokens)
        return tokens

    def extra_repr(self) -> str:
        """Show widths and design in `print(head)`."""
        return f"{self.in_dim} -> {self.out_dim}, design={self.design!r}"


_LAYERS: dict[str, Callable[[int, int], dict[str, nn.Module]]] = {
    "ln_linear": lambda i, o: {"norm": nn.LayerNorm(i), "linear": nn.Linear(i, o)},
    "linear_gelu": lambda i, o: {"linear": nn.Linear(i, o), "act": nn.GELU()},
    "gelu_linear": lambda i, o: {"act": nn.GELU(), "linear": nn.Linear(i, o)},
    "linear": lambda i, o: {"linear": nn.Linear(i, o)},
    "mlp": lambda i, o: {
        "norm": nn.LayerNorm(i),
        "linear": nn.Linear(i, o),
        "act": nn.GELU(),
        "linear2": nn.Linear(o, o),
    },
    "identity": lambda i, o: {},
}
