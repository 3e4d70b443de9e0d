"""L-BFGS for many problems at once: row p of every tensor belongs to problem p.

`torch.optim.LBFGS` solves one problem; forty-five of them that share their data cost hardly more
than one when each matrix product is done for all.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# (parameters [p, M], numbers of their problems [p]) -> values [p], gradients [p, M]
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_MEMORY = 10
_TRIALS = 40
_ARMIJO, _CURVATURE = 1e-4, 0.9


@torch.no_grad()
def minimise(
    objective: Objective, start: Tensor, *, max_iter: int = 1000, tolerance: float = 1e-12
) -> tuple[Tensor, Tensor]:
    """Minimise smooth convex functions, one for each row.

    A problem is finished when the largest entry of its gradient is at most `tolerance`, when its
    value falls by less than 64 units of rounding, or after `max_iter` steps: SciPy's rules.

    Args:
        objective: Values and gradients for some of the problems.
        start: [P, M].
        max_iter: Steps of each problem.
        tolerance: Of the gradient.

    Returns:
        The minimisers [P, M], and how many steps each took, long [P].

    Examples:
        >>> centre = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
        >>> def bowl(x, rows):
        ...     return (x - centre[rows]).square().sum(1), 2 * (x - centre[rows])
        >>> minimise(bowl, torch.zeros_like(centre))[0].round(decimals=6).tolist()
        [[1.0, 2.0], [3.0, 4.0]]
    """
    result, steps = start.clone(), torch.zeros(len(start), dtype=torch.long, device=start.device)
    rows = torch.arange(len(start), device=start.device)
    x = start.clone()
    value, gradient = objective(x, rows)
    history: list[tuple[Tensor, Tensor, Tensor]] = []  # (s, y, 1 / s·y), newest last
    least = 64 * torch.finfo(start.dtype).eps
    for step in range(max_iter):
        open_ = gradient.abs().amax(1) > tolerance
        if not open_.all():
            result[rows[~open_]] = x[~open_]
            x, value, gradient, rows = x[open_], value[open_], gradient[open_], rows[open_]
            history = [(s[open_], y[open_], r[open_]) for s, y, r in history]
        if not len(rows):
            break
        direction = _direction(gradient, history)
        first = 1.0 if step else (1 / gradient.abs().sum(1)).clamp(max=1.0)
        new, new_value, new_gradient = _search(
            objective, rows, (x, value, gradient), direction, x.new_ones(len(x)) * first
        )
        s, y = new - x, new_gradient - gradient
        product = (s * y).sum(1)
        # A row without a proper pair (it did not move) gets weight 0, which leaves it out.
        inverse = torch.where(product > 0, 1 / product, 0.0)
        history = [*history[-(_MEMORY - 1) :], (s, y, inverse)]
        scale = torch.maximum(value.abs(), new_value.abs()).clamp(min=1.0)
        stalled = (value - new_value) / scale <= least
        x, value, gradient = new, new_value, new_gradient
        steps[rows] = step + 1
        # A stalled row is finished: to the test above it looks like one without a gradient.
        gradient = torch.where(stalled[:, None], 0.0, gradient)
    result[rows] = x
    return result, steps


def _direction(gradient: Tensor, history: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The two-loop recursion, for all rows."""
    q, weights = -gradient, []
    for s, y, inverse in reversed(history):
        weight = inverse * (s * q).sum(1)
        q = q - weight[:, None] * y
        weights.append(weight)
    if history:
        s, y, inverse = history[-1]
        square = y.square().sum(1)
        usable = (inverse > 0) & (square > 0)
        q = q * torch.where(usable, (s * y).sum(1) / square, 1.0)[:, None]
    for (s, y, inverse), weight in zip(history, reversed(weights), strict=True):
        q = q + (weight - inverse * (y * q).sum(1))[:, None] * s
    downhill = (q * gradient).sum(1) < 0
    return torch.where(downhill[:, None], q, -gradient)


def _search(
    objective: Objective,
    rows: Tensor,
    at: tuple[Tensor, Tensor, Tensor],
    direction: Tensor,
    step: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """A step that satisfies the weak Wolfe conditions, by bisection; each row has its own.

    A row for which no step lowers the value stays where it is.
    """
    x, value, gradient = at
    slope = (gradient * direction).sum(1)
    low, high = torch.zeros_like(step), torch.full_like(step, torch.inf)
    best, best_value, best_gradient = x.clone(), value.clone(), gradient.clone()
    todo = torch.arange(len(x), device=x.device)
    for _ in range(_TRIALS):
        t, d = step[todo], direction[todo]
        point = x[todo] + t[:, None] * d
        new, new_gradient = objective(point, rows[todo])
        # Written so that a NaN counts as too far.
        lower = new <= value[todo] + _ARMIJO * t * slope[todo]
        steep = (new_gradient * d).sum(1) < _CURVATURE * slope[todo]
        kept = todo[lower]
        best[kept], best_value[kept], best_gradient[kept] = (
            point[lower],
            new[lower],
            new_gradient[lower],
        )
        high[todo] = torch.where(lower, high[todo], t)
        low[todo] = torch.where(lower & steep, t, low[todo])
        step[todo] = torch.where(high[todo].isinf(), 2 * low[todo], (low[todo] + high[todo]) / 2)
        todo = todo[~lower | steep]
        if not len(todo):
            break
    return best, best_value, best_gradient
