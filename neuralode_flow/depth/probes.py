"""Depths that no grid has in common, to look at a profile where its nodes are not.

The multiples of the golden ratio modulo 1 fill [0, 1] more evenly than random depths and are, beside 0 and 1, nodes of
no grid: a feature of W that all nodes miss is found if it is wider than their largest distance.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# At Fibonacci numbers of depths the distances between neighbours differ least; the largest is at most 1.9/n.
_COUNTS = (34, 89, 233, 610, 1597)
_MOST_NUMBERS = 2**21  # that all values together may hold


def probes(numbers: int) -> Tensor:
    """The depths (n,), increasing, at which a function of `numbers` entries is looked at: 1597 of them, 7e-4 apart.

    Fewer for functions of more than 1313 numbers, such as matrices with d > 36; never fewer than 34.
    """
    affordable = [n for n in _COUNTS if n * numbers <= _MOST_NUMBERS]
    steps = np.arange(1, max(affordable, default=_COUNTS[0]) + 1)
    return torch.from_numpy(np.sort(steps * ((np.sqrt(5) - 1) / 2) % 1.0))


def widest_gap(depths: Tensor) -> float:
    """The largest distance of neighbouring depths, with 0 and 1."""
    return float(torch.diff(depths, prepend=depths.new_zeros(1), append=depths.new_ones(1)).max())


def integral(depths: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """∫₀¹ of values `(..., n, d, d)` at increasing depths (n,) by the trapezoidal rule, and how far it may be off.

    The second is half the widest gap times the kinks (Frobenius norm of second differences, halved): what a jump
    between two depths can hide. Shapes `(..., d, d)` and `(...)`.
    """
    gaps = torch.diff(depths)
    weights = torch.zeros_like(depths)
    weights[:-1] += gaps / 2
    weights[1:] += gaps / 2
    weights[0] += depths[0]
    weights[-1] += 1 - depths[-1]
    total = torch.einsum("n,...nab->...ab", weights.to(values), values)
    kinks = torch.linalg.matrix_norm(values[..., 2:, :, :] - 2 * values[..., 1:-1, :, :] + values[..., :-2, :, :])
    return total, widest_gap(depths) / 4 * kinks.sum(-1)
