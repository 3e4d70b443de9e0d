"""The classifiers of a linear probe, trained side by side on the same batches."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
BLOCKS = (1, 4)
_MOMENTUM = 0.9


class Head(NamedTuple):
    """Which classifier: the last n blocks, with or without the mean patch, and the learning rate.

    The tuple itself is the name. DINOv2 prints the rate with five digits, and with small batches
    several heads get one name and are lost.
    """

    blocks: int
    avgpool: bool
    lr: float


def probe_inputs(blocks: Tensor, patches: Tensor, count: int, avgpool: bool) -> Tensor:
    """The input of a head: class tokens of the last blocks in block order, then the mean patch.

    Args:
        blocks: Normed class tokens of the last blocks, [B, L, D].
        patches: Mean patch token of the last block, [B, D].
        count: Blocks to take, at most L.
        avgpool: Append the mean patch.

    Returns:
        [B, count * D], or [B, (count + 1) * D].

    Raises:
        ValueError: If there are fewer blocks.

    Examples:
        >>> probe_inputs(torch.zeros(2, 4, 8), torch.zeros(2, 8), 4, True).shape
        torch.Size([2, 40])

    Source:
        DINOv2 `dinov2/eval/linear.py` (`create_linear_input`). *Same:* to 1e-6.
    """
    if count > blocks.shape[1]:
        raise ValueError(
            f"linear probe: fewer blocks than a head needs. Got {blocks.shape[1]}; expected "
            f"{count}. Pass num_blocks=(1,) for a shallow model or a CNN."
        )
    tokens = blocks[:, -count:].flatten(1)
    return torch.cat([tokens, patches], 1) if avgpool else tokens


class ProbeHeads:
    """Linear classifiers that are trained on the same batches, each with its own learning rate.

    Heads with the same input are rows of one tensor, and one matrix product serves them all; each
    is the same as if it were trained alone.

    Args:
        heads: Which; `lr` is the base rate, multiplied by `scale`.
        width: D of the model.
        num_classes: Classes.
        iterations: Length of the cosine, after which the rate is 0.
        scale: batch * processes / 256.
        seed: Of the weights, N(0, 0.01); biases are 0.
        device: Where they live.

    Examples:
        >>> heads = ProbeHeads([Head(1, False, 0.1)], width=2, num_classes=2, iterations=50)
        >>> x, y = torch.eye(2), torch.tensor([0, 1])
        >>> for _ in range(50):
        ...     losses = heads.step(x[:, None], x, y)
        >>> heads.scores(x[:, None], x)[0].argmax(1).tolist()
        [0, 1]

    Source:
        DINOv2 `dinov2/eval/linear.py` (`LinearClassifier`, `scale_lr`, `do_train`).
        *Same:* SGD with momentum 0.9, no decay, cosine to 0 in every iteration; losses to 1e-5,
        weights to 1e-4.
        *Different:* the gradient is written out and not left to autograd; the random numbers of
        the first weights.
    """

    def __init__(
        self,
        heads: Sequence[Head],
        *,
        width: int,
        num_classes: int,
        iterations: int,
        scale: float = 1.0,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        self.heads, self.iterations, self.done = tuple(heads), iterations, 0
        if len(set(self.heads)) < len(self.heads) or not self.heads:
            raise ValueError(f"linear probe: heads must be different, and some. Got {self.heads}.")
        kinds = {(head.blocks, head.avgpool) for head in self.heads}
        self._groups = {
            kind: [i for i, head in enumerate(self.heads) if head[:2] == kind]
            for kind in sorted(kinds)
        }
        self._rates = torch.tensor([h.lr * scale for h in self.heads], dtype=torch.float64)
        random = torch.Generator().manual_seed(seed)
        self.weights: dict[tuple[int, bool], Tensor] = {}
        self.biases: dict[tuple[int, bool], Tensor] = {}
        for (blocks, avgpool), members in self._groups.items():
            shape = (len(members), num_classes, (blocks + avgpool) * width)
            drawn = torch.empty(shape).normal_(std=0.01, generator=random)
            self.weights[blocks, avgpool] = drawn.to(device)
            self.biases[blocks, avgpool] = torch.zeros(shape[:2], device=device)
        self._momenta = {
            kind: (torch.zeros_like(self.weights[kind]), torch.zeros_like(self.biases[kind]))
            for kind in self._groups
        }

    def rates(self) -> Tensor:
        """Learning rates of the next step, float64 [heads]."""
        return self._rates * (1 + math.cos(math.pi * self.done / self.iterations)) / 2

    @torch.no_grad()
    def step(self, blocks: Tensor, patches: Tensor, labels: Tensor) -> Tensor:
        """One step of SGD of every head.

        Args:
            blocks: [B, L, D], as in `probe_inputs`.
            patches: [B, D].
            labels: long [B].

        Returns:
            Losses before the step, [heads], in the order of `heads`.
        """
        rates, losses = self.rates(), blocks.new_zeros(len(self.heads))
        for kind, members in self._groups.items():
            x = probe_inputs(blocks, patches, *kind)
            logs = self._scores(kind, x).log_softmax(-1)  # [R, B, C]
            index = labels.expand(len(members), -1)[..., None]
            losses[members] = -logs.gather(-1, index).mean((1, 2))
            slope = logs.exp_().scatter_add_(-1, index, logs.new_full(index.shape, -1.0))
            slope /= len(labels)
            gradients = (slope.mT @ x, slope.sum(1))
            rate = rates[members].to(x)
            for value, momentum, gradient in zip(
                (self.weights[kind], self.biases[kind]), self._momenta[kind], gradients, strict=True
            ):
                momentum.mul_(_MOMENTUM).add_(gradient)
                value.sub_(momentum * rate.view(-1, *[1] * (value.ndim - 1)))
        self.done += 1
        return losses

    @torch.no_grad()
    def scores(self, blocks: Tensor, patches: Tensor) -> Tensor:
        """Scores of every head, [heads, B, classes]."""
        found: list[Tensor] = [blocks] * len(self.heads)
        for kind, members in self._groups.items():
            rows = self._scores(kind, probe_inputs(blocks, patches, *kind))
            for row, member in enumerate(members):
                found[member] = rows[row]
        return torch.stack(found)

    def of(self, head: Head) -> tuple[Tensor, Tensor]:
        """Weight [classes, F] and bias [classes] of one head."""
        kind = head[:2]
        row = [self.heads[i] for i in self._groups[kind]].index(head)
        return self.weights[kind][row], self.biases[kind][row]

    def _scores(self, kind: tuple[int, bool], x: Tensor) -> Tensor:
        weight, bias = self.weights[kind], self.biases[kind]
        flat = F.linear(x, weight.flatten(0, 1), bias.flatten())  # [B, R * C]
        return flat.view(len(x), *bias.shape).transpose(0, 1)


def head_grid(
    learning_rates: Sequence[float] = LEARNING_RATES,
    num_blocks: Sequence[int] = BLOCKS,
) -> list[Head]:
    """Every combination; DINOv2's 52 by default.

    Examples:
        >>> len(head_grid())
        52
    """
    return [
        Head(n, pool, lr) for n in num_blocks for pool in (False, True) for lr in learning_rates
    ]


def draw_batches(count: int, batch_size: int, iterations: int, seed: int) -> Iterator[Tensor]:
    """Numbers of the images of each step: all images in random order, again and again."""
    random = torch.Generator().manual_seed(seed)
    waiting = torch.empty(0, dtype=torch.long)
    for _ in range(iterations):
        while len(waiting) < batch_size:
            waiting = torch.cat([waiting, torch.randperm(count, generator=random)])
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]
