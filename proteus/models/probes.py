"""What a model does, found by trying it: never by its name."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ..features import Features
from .read import ImageInput


def noise(inputs: ImageInput, size: tuple[int, int]) -> Tensor:
    """One random image as the model expects it, always the same: [1, 3, H, W]."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    image = torch.rand(1, 3, *size, generator=generator, device="cpu")
    return (image.to(inputs.mean) - inputs.mean) / inputs.std


def equal(one: Tensor, other: Tensor) -> bool:
    """Whether two outputs are the same up to rounding; on the meta device nothing differs."""
    if one.shape != other.shape or one.is_meta:
        return one.shape == other.shape
    one, other = one.float(), other.float()
    scale = float(other.abs().nan_to_num(posinf=0).amax()) if other.numel() else 0.0
    return torch.allclose(one, other, rtol=0, atol=1e-6 * max(1.0, scale), equal_nan=True)


def hidden_is_unseen(
    forward: Callable[[Tensor, Tensor | None], Features], image: Tensor, grid: tuple[int, int]
) -> bool:
    """Whether hiding patches removes their pixels, and hides something at all.

    Two patches are hidden, one of them in a corner. Their pixels are then changed: the inner one's
    a lot, the corner's to NaN, which also passes through a layer whose scale is still 0.

    Args:
        forward: (normalised image, hidden) -> `Features`.
        image: [1, 3, H, W], normalised.
        grid: (h, w) of the patches.
    """
    (height, width), (rows, columns) = image.shape[-2:], grid
    if height % rows or width % columns:
        return False
    high, wide = height // rows, width // columns
    hidden = torch.zeros(1, rows, columns, dtype=torch.bool, device=image.device)
    other = image.clone()
    for row, column in ((rows // 2, columns // 2), (0, 0)):
        hidden[:, row, column] = True
        patch = other[..., row * high : (row + 1) * high, column * wide : (column + 1) * wide]
        patch.mul_(-30).add_(50) if row or column else patch.fill_(torch.nan)
    seen, first = forward(image, None), forward(image, hidden.flatten(1))
    second = forward(other, hidden.flatten(1))
    unseen = equal(first.cls, second.cls) and equal(first.patches, second.patches)
    works = image.is_meta or not torch.equal(first.patches, seen.patches)
    return unseen and works


def reached(outputs: Iterable[Tensor]) -> set[int]:
    """`id` of the parameters that a gradient of these outputs would reach."""
    found: set[int] = set()
    waiting = [output.grad_fn for output in outputs]
    known = set(waiting)
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        if type(node).__name__ == "AccumulateGrad":
            found.add(id(node.variable))  # type: ignore[attr-defined]
        after = {following for following, _ in node.next_functions} - known
        known |= after
        waiting.extend(after)
    return found


def graph_of(forward: Callable[[], Features]) -> Features:
    """`Features` with their graph, but without what a backward pass would need of it."""
    nothing = torch.empty(0)
    with torch.enable_grad(), saved_tensors_hooks(lambda _: nothing, lambda _: nothing):
        return forward()
