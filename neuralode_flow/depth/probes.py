"""Depths that no grid has in common, to look at a profile where its nodes are not.

The multiples of the golden ratio modulo 1 fill [0, 1] more evenly than random depths and are, beside 0 and 1, nodes of
no grid: a feature of W that all nodes miss is found if it is wider than their largest distance.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from .products import along

# At Fibonacci numbers of depths the distances between neighbours differ least; the largest is at most 1.9/n.
_COUNTS = (34, 89, 233, 610, 1597)
_MOST_NUMBERS = 2**21  # that all values together may hold


def probes(numbers: int) -> Tensor:
    """The depths (n,), increasing, at which a function of `numbers` entries is looked at: 1597 of them, 7e-4 apart.

    Fewer for functions of more than 1313 numbers, such as matrices with d > 36; never fewer than 34.
    """
    affordable = [n for n in _COUNTS if n * numbers <= _MOST_NUMBERS]
    return torch.from_numpy(_golden(max(affordable, default=_COUNTS[0])))


@cache
def _golden(n: int) -> np.ndarray:
    """The first n multiples of the golden ratio, modulo 1, by size."""
    return np.sort(np.arange(1, n + 1) * ((np.sqrt(5) - 1) / 2) % 1.0)


def widest_gap(depths: Tensor) -> float:
    """The largest distance of neighbouring depths, with 0 and 1."""
    return float(_gaps(depths).max())


def integral(depths: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """∫₀¹ of values `(..., n, d, d)` at increasing depths (n,) by the trapezoidal rule, and how far it may be off.

    The second is half the widest gap times the kinks (Frobenius norm of second differences, halved): what a jump
    between two depths can hide. Shapes `(..., d, d)` and `(...)`.
    """
    gaps = _gaps(depths)
    weights = (gaps[1:] + gaps[:-1]) / 2
    weights[0] += gaps[0] / 2
    weights[-1] += gaps[-1] / 2
    total = along(weights[None], values.flatten(-2)).squeeze(-2).unflatten(-1, values.shape[-2:])
    kinks = torch.linalg.matrix_norm(torch.diff(values, n=2, dim=-3))
    return total, float(gaps.max()) / 4 * kinks.sum(-1)


def _gaps(depths: Tensor) -> Tensor:
    """Distances of neighbouring depths, with 0 and 1."""
    depths = depths.double().cpu()
    return torch.diff(depths, prepend=depths.new_zeros(1), append=depths.new_ones(1))
