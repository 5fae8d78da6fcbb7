"""What a loss says of itself, measured once near the start of its first run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..promises import Source, denied
from .base import PASSED, Loss, squares_of


def check_derivatives(loss: Any, z: Tensor) -> None:
    """`compare_derivatives` near the z of a start, once for each loss that has a user's part in it.

    A loss without a gradient passes: it is not for training.
    """
    if loss in PASSED or not hasattr(loss, "gradient") or not callable(loss):
        return
    compare_derivatives(loss, z)
    PASSED.add(loss)


@torch.no_grad()
def compare_derivatives(loss: Loss, z: Tensor) -> None:
    """Compares the gradient of a loss, and its Hessian if it has one, with differences near z.

    Raises
    ------
    ValueError
        If a derivative is beyond doubt not that of the function, a shape is wrong, the gradient is not that of
        `squares`, or `boundary` is above the loss of a singular matrix.
    """
    name, source = f"the loss {type(loss).__name__}", Source(z.dtype, z.device)
    value, G = loss(z), loss.gradient(z)
    batch = tuple(value.shape)
    if tuple(z.shape[: len(batch)]) != batch:
        raise ValueError(f"{name} must give one number for each z, shape (...), got {batch} for z {tuple(z.shape)}")
    if G.shape != z.shape:
        raise ValueError(f"{name} must have gradients of the shape of z, {tuple(z.shape)}, got {tuple(G.shape)}")
    if G.dtype != z.dtype:
        raise ValueError(f"{name} must have gradients of the dtype of z, {z.dtype}, got {G.dtype}")

    def inner(one: Tensor, other: Tensor) -> Tensor:
        return (one * other).reshape(*batch, -1).sum(-1)

    lengths = _lengths(z, value, G)
    found = denied(loss, lambda at, along: inner(loss.gradient(at), along), z, lengths, source)
    if found is not None:
        raise ValueError(f"{name} has a gradient that is not its own: {found}; mend it, or use Custom(f)")
    hessian = getattr(loss, "hessian", None)
    if hessian is not None:
        dual = source(*z.shape)
        found = denied(
            lambda at: inner(loss.gradient(at), dual),
            lambda at, along: inner(hessian(at, along), dual),
            z, lengths, source,
        )  # fmt: skip
        if found is not None:
            raise ValueError(
                f"{name} has a hessian that is not that of its gradient: {found}; mend it, or leave it out"
            )
    for length in lengths:
        _check_squares(name, loss, z + length * source(*z.shape), inner)
    _check_boundary(name, loss, z, G)


def _lengths(z: Tensor, value: Tensor, G: Tensor) -> list[float]:
    """Over what size of an entry a loss changes: that of z, and what is left to go, f/‖∇f‖; 1 where there is none."""
    number = max(1, z.numel()) ** 0.5
    own, left = float(z.norm()) / number, float(value.abs().double().norm()) / max(float(G.norm()), 1e-300) / number
    found = [length for length in (own, left) if 1e-150 < length < 1e150] or [1.0]
    return found[:1] if max(found) < 3 * min(found) else found


def _check_squares(name: str, loss: Any, z: Tensor, inner: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Raises where the gradient at z is not that of the square of which a loss says that it is the half."""
    square = squares_of(loss)
    if square is None:
        return
    said = f"{name} says by squares() of what it is half the square"
    try:
        G = loss.gradient(z)
    except (ArithmeticError, RuntimeError, ValueError):  # outside of where the loss is defined
        return
    try:
        found, fixed = square.gradient(z), square.gradient(torch.zeros_like(z))
        gap, moved = G - found, found - fixed
        wrong = inner(gap, gap) > torch.finfo(z.dtype).eps * (inner(fixed, fixed) + inner(moved, moved))
    except (AttributeError, RuntimeError, TypeError) as error:
        raise ValueError(f"{said}, which has no gradient: {error}") from error
    if bool(wrong.any()):
        raise ValueError(f"{said}, and its gradient is another one; mend one of them")


def _check_boundary(name: str, loss: Any, z: Tensor, G: Tensor) -> None:
    """Raises where what is said to be the least loss on singular matrices is not."""
    boundary = loss.boundary() if hasattr(loss, "boundary") and z.ndim >= 2 and z.shape[-1] == z.shape[-2] else None
    if boundary is None or not bool(torch.isfinite(z).all() & torch.isfinite(G).all()):
        return
    for step in (0.0, 0.5, 1.0):
        U, sigma, Vh = torch.linalg.svd(z - step * G)
        sigma[..., -1] = 0
        values = loss(U @ (sigma.unsqueeze(-1) * Vh))
        if bool((boundary > values * (1 + 1e-3) + 1e-300).any()):
            raise ValueError(
                f"{name} says by boundary() that it is at least {float(boundary.max()):.6g} on singular matrices, and "
                f"one has {float(values.min()):.6g}; mend it, or leave it out"
            )
