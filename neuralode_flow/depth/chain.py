"""Products of a chain of matrices U_L … U_1, and the gradient of a function of the product."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def identity_like(matrices: Tensor) -> Tensor:
    """Identity matrices in the shape `(..., d, d)` of `matrices`, as a view of one."""
    return torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device).expand_as(matrices)


def product(U: Tensor) -> Tensor:
    """U_L … U_1 by pairwise products: `(..., L, d, d)` → `(..., d, d)`. Differentiable."""
    while U.shape[-3] > 1:
        even = U.shape[-3] // 2 * 2
        pairs = U[..., 1:even:2, :, :] @ U[..., 0:even:2, :, :]
        U = torch.cat((pairs, U[..., even:, :, :]), dim=-3)
    return U[..., 0, :, :]


def outside(factors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each factor of a chain `(..., p, d, d)`: the product of those before it, of those after it; and of all.

    Returns
    -------
    before, after : Tensor (..., p, d, d)
        U_{k−1} … U_1 and U_p … U_{k+1}.
    whole : Tensor (..., d, d)
    """
    links = factors.unbind(-3)
    identity = identity_like(links[0])
    before, after = [links[0]], [links[-1]]
    for link in links[1:]:
        before.append(link @ before[-1])
    for link in reversed(links[1:-1]):
        after.append(after[-1] @ link)
    if len(links) == 1:
        return identity.unsqueeze(-3), identity.unsqueeze(-3), before[0]
    return torch.stack([identity, *before[:-1]], dim=-3), torch.stack([*after[::-1], identity], dim=-3), before[-1]


def gradient(U: Tensor, outer: Callable[[Tensor], Tensor]) -> Tensor:
    """∂f/∂U_k = (U_L … U_{k+1})ᵀ G (U_{k−1} … U_1)ᵀ with G = outer(U_L … U_1), for all k.

    The chain is cut into about √L blocks that are scanned side by side; one matrix per block carries what lies
    outside of it. That is three products per layer and 2√L steps one after the other.

    Parameters
    ----------
    U : Tensor (..., L, d, d)
    outer : callable, (..., d, d) → (..., d, d)

    Returns
    -------
    Tensor (..., L, d, d)
    """
    L = U.shape[-3]
    size = math.isqrt(L - 1) + 1
    blocks = -(-L // size)
    padding = identity_like(U[..., :1, :, :]).expand(*U.shape[:-3], blocks * size - L, *U.shape[-2:])
    blocked = torch.cat((U, padding), dim=-3).unflatten(-3, (blocks, size))
    forward = torch.empty_like(blocked)
    forward[..., 0, :, :] = identity_like(blocked[..., 0, :, :])
    for j in range(1, size):
        forward[..., j, :, :] = blocked[..., j - 1, :, :] @ forward[..., j - 1, :, :]
    before, after, z = outside(blocked[..., -1, :, :] @ forward[..., -1, :, :])
    backward = torch.empty_like(blocked)
    backward[..., -1, :, :] = after.mT @ outer(z).unsqueeze(-3) @ before.mT
    for j in range(size - 1, 0, -1):
        backward[..., j - 1, :, :] = blocked[..., j, :, :].mT @ backward[..., j, :, :]
    return (backward @ forward.mT).flatten(-4, -3)[..., :L, :, :]
