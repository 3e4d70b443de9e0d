"""MaskGenerator: which patches the student does not see.

One word, one meaning: `hidden` is the set, True = the student does not see this patch.
"""

import math
import random
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .features import ShapeError

Strategy = Literal["random", "block"]

_ATTEMPTS = 10  # proposals for a block, after which iBOT gives up on an image
_ROUNDS = 32  # blocks of an image at a ratio of 1; see `_block`
_ASPECT = math.log(1 / 0.3)  # aspect ratio is log-uniform in (0.3, 1 / 0.3)


class Hidden(NamedTuple):
    """One draw of masks.

    Attributes:
        hidden: bool [B, N].
        images: Which images have a mask: a slice (the first ones) or indices [b], on the CPU, where
            it costs nothing to count them.
        hidden_count: Hidden patches of the whole batch for each of its parts, a scalar; None = as
            many as `hidden` holds, which is so where the batch is not shared.
    """

    hidden: Tensor
    images: slice | Tensor
    hidden_count: Tensor | None = None

    def part(self, number: int, of: int) -> "Hidden":
        """The masks of every `of`-th image from `number` on."""
        if of == 1:
            return self
        if isinstance(self.images, slice):
            images: slice | Tensor = slice(0, len(range(number, self.images.stop, of)))
        else:
            images = self.images[self.images % of == number] // of
        whole = self.hidden.sum() if self.hidden_count is None else self.hidden_count
        return Hidden(self.hidden[number::of], images, whole / of)


class MaskGenerator:
    """Draw masks for a batch, on the device, without asking it anything.

    Args:
        grid: (h, w) of the patch grid, or one number for a square.
        ratio: Share of the patches hidden in a masked image, in (0, 1); or a range (low, high),
            stratified over the masked images so that each batch covers it evenly.
        probability: Share of the images that get a mask, in [0, 1]: int(B * probability) of them.
        strategy: `random` hides exactly int(N * ratio) patches drawn uniformly; `block` hides
            rectangles as iBOT does, at most int(N * ratio) patches and often a few less.
        shuffle: False masks the first images of the batch (what the authors' code does), True
            a random subset. The data loader shuffles, so it only matters for batches in order.

    Raises:
        ValueError: If a number is out of range or the strategy is unknown.

    Examples:
        >>> masks = MaskGenerator((4, 4), ratio=0.5, probability=0.5)
        >>> masks.masks(6).sum(dim=1).tolist()
        [8, 8, 8, 0, 0, 0]

    Source:
        Proteus (ICLR 2025), A.1.1 ("strategy in iBOT"); `pretrain/augmentations.py:47-78`,
        `pretrain/main.py:60-86`; iBOT `loader.py` (`ImageFolderMask`).
        *Same:* `random` with the defaults is what the authors' code runs: the first half of the
        batch, exactly half of the patches.
        *Different:* the random numbers are torch's, so single masks differ; all counts and
        distributions are the same. `block` hides at most 32 rectangles, fewer for small ratios.
    """

    def __init__(
        self,
        grid: tuple[int, int] | int,
        *,
        ratio: float | tuple[float, float] = 0.5,
        probability: float = 0.5,
        strategy: Strategy = "random",
        shuffle: bool = False,
    ) -> None:
        low, high = (ratio, ratio) if isinstance(ratio, int | float) else ratio
        if not 0 <= low <= high <= 1 or high == 0:
            raise ValueError(
                f"MaskGenerator: ratio must be in (0, 1]. Got {ratio}; "
                f"expected a fraction such as 0.5 or a range such as (0.1, 0.5)."
            )
        if not 0 <= probability <= 1:
            raise ValueError(
                f"MaskGenerator: probability must be in [0, 1]. Got {probability}; "
                f"expected the share of the images to mask, such as 0.5."
            )
        if strategy not in ("random", "block"):
            raise ValueError(
                f"MaskGenerator: unknown strategy. Got {strategy!r}; expected random or block."
            )
        self.grid = (grid, grid) if isinstance(grid, int) else (int(grid[0]), int(grid[1]))
        if min(self.grid) < 1:
            raise ValueError(f"MaskGenerator: grid must be positive. Got {grid}; expected (h, w).")
        self.ratio, self.probability = (float(low), float(high)), probability
        self.strategy: Strategy = strategy
        self.shuffle = shuffle

    def on(self, grid: tuple[int, int]) -> "MaskGenerator":
        """The same settings on another grid; itself where it is its own."""
        if grid == self.grid:
            return self
        return MaskGenerator(
            grid, ratio=self.ratio, probability=self.probability,
            strategy=self.strategy, shuffle=self.shuffle,
        )  # fmt: skip

    def masks(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Masks for a batch: bool [B, N], True = hidden.

        Args:
            batch_size: B.
            generator: Source of randomness, on the same device; None = torch's global one.
            device: Where to make them; None = the generator's device, else the CPU.
        """
        return self.draw(batch_size, generator, device).hidden

    def draw(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> Hidden:
        """The same masks, and which images have one (known without looking at the masks).

        Args:
            batch_size: Images of this part.
            generator: As in `masks`. Processes that share a batch must seed it alike.
            device: As in `masks`.
            part: (n, of): these are every `of`-th image of a larger batch from the n-th on. Masks
                are drawn for the larger batch, so that they do not depend on how it is shared.
        """
        if device is None:
            device = generator.device if generator is not None else "cpu"
        device = torch.device(device)
        number, parts = part
        images = batch_size * parts
        count = int(images * self.probability)
        wanted = self._counts(count, generator, device)
        if self.strategy == "random":
            noise = torch.rand(count, math.prod(self.grid), generator=generator, device=device)
            chosen = noise.argsort(1).argsort(1) < wanted[:, None]
        else:
            chosen = self._block(wanted, generator)
        hidden = chosen.new_zeros(images, math.prod(self.grid))
        masked: slice | Tensor = slice(0, count)
        if self.shuffle:
            masked = _order(images, generator)[:count]
            hidden[masked.to(device, non_blocking=True)] = chosen
        else:
            hidden[:count] = chosen
        return Hidden(hidden, masked).part(number, parts)

    def _counts(
        self, count: int, generator: torch.Generator | None, device: torch.device
    ) -> Tensor:
        """Patches to hide in each of `count` images, long [count]."""
        low, high = self.ratio
        patches = math.prod(self.grid)
        if low == high:
            return torch.full((count,), int(patches * low), device=device)
        # One ratio from each of `count` equal slices of the range, as the collate function of
        # DINOv2 and the authors' code does with linspace.
        position = torch.arange(count, device=device)
        position = position + torch.rand(count, generator=generator, device=device)
        return (patches * (low + (high - low) * position / max(count, 1))).long()

    def _block(self, wanted: Tensor, generator: torch.Generator | None) -> Tensor:
        """IBOT's rectangles for all images at once: bool [count, N].

        For each block iBOT proposes up to 10 rectangles, takes the first that hides at least one
        new patch and not too many, and is done with an image when none does. Here a round is one
        block of every image, its 10 proposals looked at together. The number of rounds is fixed, so
        that nothing depends on the device's answer: for half of a 16x16 grid it is 16, and of 4,000
        masks none has more than 13 blocks.
        """
        rows, columns = self.grid
        device, count = wanted.device, wanted.shape[0]
        rounds = math.ceil(_ROUNDS * self.ratio[1])
        uniform = torch.rand(rounds, 4, count, _ATTEMPTS, generator=generator, device=device)
        root = ((uniform[:, 1] * 2 - 1) * (_ASPECT / 2)).exp()  # of height / width
        shape = torch.stack([root, 1 / root], dim=1)  # [rounds, height and width, count, proposals]
        left_over = wanted.float()
        smallest = left_over.new_full((), (min(self.grid) // 3) ** 2)
        sides = torch.stack([left_over.new_full((1, 1), side) for side in self.grid])
        place = torch.arange(max(self.grid), device=device)
        seen = torch.ones(count, rows, columns, dtype=torch.bool, device=device)
        for draw, proportions in zip(uniform, shape, strict=True):
            # `smallest` may be above what is left: iBOT's uniform(a, b) takes either order.
            area = torch.lerp(smallest, left_over[:, None], draw[0])
            size = (area.sqrt() * proportions).round()
            start = ((sides + 1 - size) * draw[2:]).floor()
            inside = (place >= start[..., None]) & (place < (start + size)[..., None])
            new = inside[0, :, :, :rows, None] & inside[1, :, :, None, :columns] & seen[:, None]
            gain = new.sum((2, 3))
            fits = (size < sides).all(0) & (gain > 0) & (gain <= left_over[:, None])
            first = fits.byte().argmax(1)[:, None, None, None]
            block = new.take_along_dim(first, 1).squeeze(1) & fits.any(1)[:, None, None]
            seen &= ~block
            hides = block.sum((1, 2))
            left_over = (left_over - hides) * (hides > 0)
            # On the CPU the answer is there already; on a GPU asking would stall the queue.
            if device.type == "cpu" and not bool(left_over.any()):
                break
        return ~seen.flatten(1)


def _order(count: int, generator: torch.Generator | None) -> Tensor:
    """The images in random order, on the CPU: the host must know which of them have a mask."""
    if generator is not None and generator.device.type != "cpu":
        # Where a device's generator is in its sequence is known to the host.
        state = generator.get_state().numpy().tobytes()
        generator = torch.Generator().manual_seed(random.Random(state).getrandbits(32))
    return torch.randperm(count, generator=generator)


def check_hidden(subject: str, hidden: Tensor, images: int, grid: tuple[int, int]) -> None:
    """Raise `ShapeError` unless `hidden` is bool [B, N]."""
    expected = (images, math.prod(grid))
    if hidden.shape != expected or hidden.dtype != torch.bool:
        raise ShapeError(
            f"{subject}: `hidden` has the wrong shape. Got {hidden.dtype} {tuple(hidden.shape)}; "
            f"expected torch.bool [images, patches] = {expected}."
        )
