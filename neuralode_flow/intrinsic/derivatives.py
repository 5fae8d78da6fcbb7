"""Derivatives of φ beyond the gradient, exact to round-off, by torch.func."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


@contextmanager
def forward_mode() -> Iterator[None]:
    """Without the deprecation warning that torch's own forward mode raises about its use of torch.jit."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\..*")
        yield


def jacobian(function: Map, theta: Tensor) -> Tensor:
    """∂function at θ (n,), as a matrix (m, n) whatever the shape of its value."""
    value, pull = torch.func.vjp(lambda point: function(point).reshape(-1), theta)[:2]
    if not len(value):
        return theta.new_zeros(0, len(theta))
    return each(lambda row: pull(row)[0], torch.eye(len(value), dtype=value.dtype, device=value.device))


def along(function: Map, theta: Tensor, direction: Tensor) -> Tensor:
    """The derivative of a function at θ in a direction."""
    with forward_mode():
        return torch.func.jvp(function, (theta,), (direction,))[1]


def each(function: Map, rows: Tensor) -> Tensor:
    """`function` of every row, at once where φ can be vectorised, else one after the other."""
    try:
        with forward_mode():
            return torch.func.vmap(function)(rows)
    except RuntimeError:
        return torch.stack([function(row) for row in rows])
