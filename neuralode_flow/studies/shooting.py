"""Completion at infinite depth whose norm shoots up (Razin, Cohen 2020), and starts from which it does not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from .axes import arranged, axis

# An error this many times the entries that are not seen is told as shooting; by zeros in their place it is 1.
SHOOTS = 5.0
SIGNS = (-1, 1)  # of ⟨u, v⟩

LONG_NAMES = {
    "shot_straight": "relative error of the unseen entries of z, of rank 1, from the identity times a number",
    "shot_turned": "the same from the rotation that leads v to u, times that number; NaN where none was needed",
    "shot_overlap": "⟨u, v⟩ of the matrix u vᵀ over its norm",
}


def turned(target: Tensor) -> Tensor:
    """The rotation nearest to I that leads v to u, of a target s u vᵀ of rank 1 with unit vectors and s > 0."""
    U, _, Vh = torch.linalg.svd(target)
    u, v = U[:, 0], Vh[0]
    middle = u + v
    eye = torch.eye(len(target)).to(target)
    return eye - torch.outer(middle, middle) / (1 + u @ v) + 2 * torch.outer(u, v)


def shots(targets: list[Tensor], size: float, complete: Callable[[int, int, Tensor, str], float]) -> xr.Dataset:
    """Errors on the unseen entries of T and −T, from a straight start and, where it shoots up, from the turned one.

    Parameters
    ----------
    targets : list of Tensor (n, n)
        T, of rank 1.
    size : float
        Of z₀.
    complete : callable
        complete(k, sign, z0, name) is the error where training towards sign · targets[k] ends.
    """
    found = np.full((3, len(targets), len(SIGNS)), np.nan)
    for k, target in enumerate(targets):
        for i, overlap in enumerate(SIGNS):
            sign = overlap if target.trace() > 0 else -overlap
            straight, start = torch.eye(len(target)).to(target), turned(sign * target)
            found[0, k, i] = complete(k, sign, size * straight, f"straight-{k}-{i}")
            if not found[0, k, i] <= SHOOTS:
                found[1, k, i] = complete(k, sign, size * start, f"turned-{k}-{i}")
            found[2, k, i] = float(sign * target.trace() / target.norm())
    return arranged(
        {name: (("draw", "sign"), values) for name, values in zip(LONG_NAMES, found, strict=True)},
        [axis("sign", list(SIGNS), "sign of ⟨u, v⟩")],
        LONG_NAMES,
    )
