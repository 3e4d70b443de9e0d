"""Orthogonal matrices that spread every direction evenly over all others."""

import math

import torch
from torch import Tensor


def even_rotation(width: int) -> Tensor:
    """An orthogonal matrix of one size of entries: a Hadamard matrix over the root of its width.

    Args:
        width: D.

    Returns:
        [D, D], float64, the same on every machine. Where no Hadamard matrix is found, a random
        orthogonal one: its entries are of one size on average only.

    Examples:
        >>> matrix = even_rotation(192)
        >>> bool((matrix.abs() - 192**-0.5).abs().max() < 1e-12)
        True
    """
    matrix = hadamard(width)
    if matrix is not None:
        return matrix / math.sqrt(width)
    generator = torch.Generator().manual_seed(width)
    noise = torch.randn(width, width, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(noise)
    rotation: Tensor = q * r.diagonal().sign()  # or some orthogonal matrices would be likelier
    return rotation


def hadamard(order: int) -> Tensor | None:
    """A Hadamard matrix (entries 1 and -1, rows orthogonal), or None where none is found here.

    There is none beyond 2 unless the order is a multiple of 4. Those of Sylvester and Paley are
    found, over primes and not over their powers: all multiples of 4 up to 48, and the usual widths,
    such as 192, 320, 384, 576, 768, 960, 1024, 1152, 1280, 1408 and 1536.

    Args:
        order: Rows and columns.

    Returns:
        [order, order], float64.

    Examples:
        >>> hadamard(2)
        tensor([[ 1.,  1.],
                [ 1., -1.]], dtype=torch.float64)
        >>> hadamard(6) is None
        True

    Source:
        Paley, "On orthogonal matrices" (1933), both constructions; Sylvester (1867).
    """
    one = torch.ones(1, 1, dtype=torch.float64)
    if order == 1:
        return one
    if order % 2 or (order > 2 and order % 4):
        return None
    if _is_prime(order - 1) and order % 4 == 0:
        skew = _bordered(order - 1, -1)
        return skew + torch.eye(order, dtype=torch.float64)
    if _is_prime(order // 2 - 1) and order // 2 % 4 == 2:
        conference = _bordered(order // 2 - 1, 1)
        eye = torch.eye(order // 2, dtype=torch.float64)
        plus, minus = conference + eye, conference - eye
        return torch.cat([torch.cat([plus, minus], 1), torch.cat([minus, -plus], 1)])
    half = hadamard(order // 2)
    if half is None:
        return None
    return torch.cat([torch.cat([half, half], 1), torch.cat([half, -half], 1)])


def _bordered(prime: int, sign: int) -> Tensor:
    """Paley's matrix of quadratic residues, bordered with ones: [prime + 1, prime + 1]."""
    numbers = torch.arange(prime)
    character = torch.full((prime,), -1.0, dtype=torch.float64)
    character[numbers.square() % prime] = 1.0
    character[0] = 0.0
    matrix = torch.zeros(prime + 1, prime + 1, dtype=torch.float64)
    matrix[0, 1:], matrix[1:, 0] = 1.0, float(sign)
    matrix[1:, 1:] = character[(numbers[:, None] - numbers) % prime]
    return matrix


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % i for i in range(2, int(number**0.5) + 1))
