"""MaskGenerator: which patches the student does not see.

One word, one meaning: `hidden` is the set, True = the student does not see this patch.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Strategy = Literal["random", "block"]

_ATTEMPTS = 10  # consecutive failures after which iBOT gives up on an image
_ROUNDS = 64  # proposals for each image; see `_block`
_ASPECT = math.log(1 / 0.3)  # aspect ratio is log-uniform in (0.3, 1 / 0.3)


class Hidden(NamedTuple):
    """One draw of masks.

    Attributes:
        hidden: bool [B, N].
        images: Which images have a mask: a slice (the first ones) or indices [b] on the device.
        hidden_count: Hidden patches of the whole batch for each of its parts, a scalar; None = as
            many as `hidden` holds, which is so where the batch is not shared.
    """

    hidden: Tensor
    images: slice | Tensor
    hidden_count: Tensor | None = None


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
        distributions are the same. `block` proposes at most 64 rectangles for an image.
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
                are drawn for the larger batch, so that they do not depend on how it is shared. With
                `shuffle`, the device is then asked once which images are of this part.
        """
        if device is None:
            device = generator.device if generator is not None else "cpu"
        device = torch.device(device)
        number, parts = part
        count = int(batch_size * parts * self.probability)
        patches = self.grid[0] * self.grid[1]
        wanted = self._counts(count, generator, device)
        if self.strategy == "random":
            noise = torch.rand(count, patches, generator=generator, device=device)
            chosen = noise.argsort(1).argsort(1) < wanted[:, None]
        else:
            chosen = self._block(wanted, generator)
        hidden = torch.zeros(batch_size, patches, dtype=torch.bool, device=device)
        share = chosen.sum() / parts if parts > 1 else None
        if not self.shuffle:
            mine = chosen[number::parts]
            hidden[: len(mine)] = mine
            return Hidden(hidden, slice(0, len(mine)), share)
        images = torch.randperm(batch_size * parts, generator=generator, device=device)[:count]
        if parts > 1:
            here = images % parts == number
            images, chosen = images[here] // parts, chosen[here]
        hidden[images] = chosen
        return Hidden(hidden, images, share)

    def _counts(
        self, count: int, generator: torch.Generator | None, device: torch.device
    ) -> Tensor:
        """Patches to hide in each of `count` images, long [count]."""
        low, high = self.ratio
        patches = self.grid[0] * self.grid[1]
        if low == high:
            return torch.full((count,), int(patches * low), device=device)
        # One ratio from each of `count` equal slices of the range, as the collate function of
        # DINOv2 and the authors' code does with linspace.
        position = torch.arange(count, device=device)
        position = position + torch.rand(count, generator=generator, device=device)
        return (patches * (low + (high - low) * position / max(count, 1))).long()

    def _block(self, wanted: Tensor, generator: torch.Generator | None) -> Tensor:
        """IBOT's rectangles for all images at once: bool [count, N].

        iBOT proposes a rectangle, takes it if it hides at least one new patch and not too many,
        and stops an image after 10 failures in a row. Here every round proposes one rectangle for
        every image. The number of rounds is fixed so that nothing depends on the device's answer;
        on a 16x16 grid no mask of 4,000 changed after round 48.
        """
        rows, columns = self.grid
        device, count = wanted.device, wanted.shape[0]
        smallest = (min(rows, columns) // 3) ** 2
        uniform = torch.rand(_ROUNDS, 4, count, generator=generator, device=device)
        shape_root = ((uniform[:, 1] * 2 - 1) * _ASPECT).exp().sqrt()  # sqrt of height / width
        row = torch.arange(rows, device=device)[:, None]
        column = torch.arange(columns, device=device)
        hidden = torch.zeros(count, rows, columns, dtype=torch.bool, device=device)
        left_over, failures = wanted.clone(), torch.zeros_like(wanted)
        for draw, root in zip(uniform, shape_root, strict=True):
            # `smallest` may be above what is left: iBOT's uniform(a, b) takes either order.
            side = (smallest + draw[0] * (left_over - smallest)).sqrt()
            height, width = (side * root).round().long(), (side / root).round().long()
            top = (draw[2] * (rows - height + 1)).long()
            left = (draw[3] * (columns - width + 1)).long()
            inside_rows = (row >= top[:, None, None]) & (row < (top + height)[:, None, None])
            inside = inside_rows & (
                (column >= left[:, None, None]) & (column < (left + width)[:, None, None])
            )
            new = inside & ~hidden
            gain = new.flatten(1).sum(1)
            active = (left_over > 0) & (failures < _ATTEMPTS)
            fits = (height < rows) & (width < columns) & (gain > 0) & (gain <= left_over)
            accepted = active & fits
            hidden |= new & accepted[:, None, None]
            left_over = left_over - gain * accepted
            failures = torch.where(accepted, 0, failures + 1)
            # On the CPU the answer is there already; on a GPU asking would stall the queue.
            if device.type == "cpu" and not bool(active.any()):
                break
        return hidden.flatten(1)
