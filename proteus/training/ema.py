"""A moving average of the student's weights."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from ..ranges import check_numbers


class Ema:
    """Exponential moving average of everything in a module's state, batch norm's buffers included.

    `torch.optim.swa_utils` and timm average a deep copy of the module, which a module sharded by
    FSDP2 refuses; here it is the tensors alone, so it works on sharded ones as well.

    Args:
        module: The student's backbone.
        decay: Weight of the past, in (0, 1).
        still: Names that training does not change: they stay as they are, to the bit.

    Raises:
        ValueError: If the decay is out of range.

    Examples:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> average = Ema(layer, decay=0.9)
        >>> _ = nn.init.constant_(layer.weight, 1.0), nn.init.zeros_(average.tensors["weight"])
        >>> average.update(layer)
        >>> round(average.tensors["weight"].item(), 4)
        0.1

    Source:
        Proteus `pretrain/main.py` (timm's `ModelEma`, 0.99996).
        *Same:* constant decay, no warm-up, every entry, also after steps that fp16 skipped; the
        rounding, which in float32 moves the average by 1e-5 in a thousand updates.
        *Different:* whole numbers (batch norm's counters) are copied and not averaged.
    """

    def __init__(self, module: nn.Module, decay: float, still: Collection[str] = ()) -> None:
        check_numbers("Ema", {"ema": decay})
        self.decay, self._still = decay, frozenset(still)
        self.tensors = {name: t.detach().clone() for name, t in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move towards the module's present weights."""
        now = module.state_dict()
        moving = self.tensors.keys() - self._still
        floating = [
            name for name, t in self.tensors.items() if name in moving and t.is_floating_point()
        ]
        # Rounded as the authors' `average * decay + (1 - decay) * weights` is.
        averages = [self.tensors[name] for name in floating]
        torch._foreach_mul_(averages, self.decay)
        torch._foreach_add_(
            averages, [now[name].detach() for name in floating], alpha=1 - self.decay
        )
        for name in moving - set(floating):
            self.tensors[name].copy_(now[name])

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over saved averages."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])
