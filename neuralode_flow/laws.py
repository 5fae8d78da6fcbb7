"""Conserved quantities of the training flows, and their drift."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import floating, same_kind
from .depth.grid import DepthGrid, check_grid
from .depth.products import multiply


def _check(name: str, value: Tensor, axes: str) -> None:
    """Raises unless `value` is a floating-point tensor with these last axes, such as "L, d, d"."""
    floating(name, value)
    if value.ndim < len(axes.split(", ")) or value.shape[-1] != value.shape[-2]:
        raise ValueError(f"{name} must have shape (..., {axes}), got {tuple(value.shape)}")


def commutator(W: Tensor) -> Tensor:
    """[Wᵀ, W] = WᵀW − WWᵀ, shape `(..., d, d)`."""
    _check("W", W, "d, d")
    return multiply(W.mT, W) - multiply(W, W.mT)


def continuous_law(grid: DepthGrid, W: Tensor) -> Tensor:
    """J(s) = S(s) + ∫₀ˢ (WᵀW − WWᵀ) with S = W + Wᵀ, less its mean over depth, in its smooth part on each panel.

    C(s) = S' + WᵀW − WWᵀ is conserved at every s for every loss; J is its primitive, free of differentiation, up to
    the constant that the mean removes (docs/math.md). On the grid the k-th Legendre coefficient of J on a panel is
    conserved to O(h^{2m−k}): the low ones far better than the highest, which only say how well m nodes resolve the
    propagators. So the lowest third of them is kept.

    Parameters
    ----------
    grid : DepthGrid
    W : Tensor (..., N, d, d)

    Returns
    -------
    Tensor (..., N, d, d)
    """
    check_grid("grid", grid)
    bracket = commutator(W)
    J = W + W.mT + grid.antiderivative(bracket)
    degree = min(grid.order - 1, max(1, (grid.order - 1) // 3))
    return grid.project(J - grid.integrate(J).unsqueeze(-3), degree)


def depth_curvature(grid: DepthGrid, W: Tensor) -> Tensor:
    """C(s) = S'(s) + WᵀW − WWᵀ on the nodes: `(..., N, d, d)` → the same shape. Relaxed balance is C(s) = λ(s) I."""
    check_grid("grid", grid)
    own = commutator(W)
    return grid.differentiate(W + W.mT) + own


def relaxed_balance_defect(grid: DepthGrid, W: Tensor) -> Tensor:
    """Distance from relaxed balance: the L² norm over depth of C(s) − tr(C(s))/d · I, shape `(...)`."""
    C = depth_curvature(grid, W)
    identity = torch.eye(W.shape[-1], dtype=W.dtype, device=W.device)
    deviation = C - C.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * identity
    return torch.sqrt((deviation.square().sum((-2, -1)) * grid.weights.to(W)).sum(-1))


def euler_law(W: Tensor) -> Tensor:
    """L²(U_{k+1}ᵀU_{k+1} − U_kU_kᵀ) for Euler layers U_k = I + W_k/L, conserved exactly; `(..., L−1, d, d)`.

    Expanded, so that L² does not amplify round-off: L(S_{k+1} − S_k) + W_{k+1}ᵀW_{k+1} − W_kW_kᵀ.
    """
    _check("W", W, "L, d, d")
    after, before = W[..., 1:, :, :], W[..., :-1, :, :]
    linear = W.shape[-3] * (after + after.mT - before - before.mT)
    return linear + multiply(after.mT, after) - multiply(before, before.mT)


def relaxed_balance(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How near Euler layers U_k = I + W_k/L are to U_{k+1}ᵀU_{k+1} − U_kU_kᵀ = λ_k I.

    Returns
    -------
    lam : Tensor (..., L−1)
        λ_k, the mean of the diagonal.
    off : Tensor (...)
        The largest Frobenius distance of a difference from λ_k I; 0 for one layer.
    scale : Tensor (...)
        The largest ‖U_k‖².
    """
    law = euler_law(W) / W.shape[-3] ** 2
    one = torch.eye(W.shape[-1], dtype=W.dtype, device=W.device)
    lam = law.diagonal(dim1=-2, dim2=-1).mean(-1)
    scale = torch.linalg.matrix_norm(one + W / W.shape[-3]).amax(-1).square()
    return lam, drift(law, lam[..., None, None] * one), scale


def symmetric_law(W: Tensor) -> Tensor:
    """L(S_{k+1} − S_k) + ½([W_kᵀ,W_k] + [W_{k+1}ᵀ,W_{k+1}]), `(..., L−1, d, d)`; drifts O(1/L²) at order 2."""
    _check("W", W, "L, d, d")
    S, C = W + W.mT, commutator(W)
    return W.shape[-3] * (S[..., 1:, :, :] - S[..., :-1, :, :]) + (C[..., 1:, :, :] + C[..., :-1, :, :]) / 2


def drift(law: Tensor, start: Tensor) -> Tensor:
    """How far a law has moved: the largest Frobenius distance over depth, `(..., n, d, d)` → `(...)`; 0 for n = 0."""
    _check("law", law, "n, d, d")
    _check("start", start, "n, d, d")
    same_kind("law", law, "start", start)
    if law.shape[-3:] != start.shape[-3:]:
        raise ValueError(f"law must have the axes (n, d, d) of start, {tuple(start.shape)}, got {tuple(law.shape)}")
    distance = torch.linalg.matrix_norm(law - start)
    return distance.amax(-1) if distance.shape[-1] else distance.sum(-1)
