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


def recorded(matrices: Tensor) -> bool:
    """Whether derivatives are taken through a tensor, which code that writes into given memory cannot give."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(matrices)
    return wrapped or (matrices.requires_grad and torch.is_grad_enabled())


def gradient(U: Tensor, outer: Callable[[Tensor], Tensor]) -> Tensor:
    """∂f/∂U_k = (U_L … U_{k+1})ᵀ G (U_{k−1} … U_1)ᵀ with G = outer(U_L … U_1), for all k.

    The chain is cut into about √L blocks that are scanned side by side; one matrix per block carries what lies
    outside of it. That is three products per layer and 2√L steps one after the other. Beside U, memory for three times
    as many matrices is used, the result among it.

    Parameters
    ----------
    U : Tensor (..., L, d, d)
    outer : callable, (..., d, d) → (..., d, d)

    Returns
    -------
    Tensor (..., L, d, d)
    """
    *batch, L, d, _ = U.shape
    size = math.isqrt(L - 1) + 1
    layers = _blocked(U.reshape(-1, L, d, d), size)
    blocks = layers.shape[2]
    before_layer = _scan(layers.flatten(1, 2))
    ends = (layers[-1].flatten(0, 1) @ before_layer[-1]).unflatten(0, (-1, blocks))
    before, after, z = outside(ends)
    G = outer(z.view(*batch, d, d)).expand(*batch, d, d).reshape(-1, 1, d, d)
    backward = (after.mT @ G @ before.mT).flatten(0, 1)
    results = layers.flatten(1, 2)
    for j in range(size - 1, -1, -1):
        following, backward = backward, results[j].mT @ backward
        results[j] = following @ before_layer[j].mT
    del before_layer
    return _unblocked(layers, L).view(U.shape)


def _blocked(U: Tensor, size: int) -> Tensor:
    """`(members, L, d, d)` cut into blocks, `(size, members, blocks, d, d)`; the last is filled up with identities."""
    members, L, d, _ = U.shape
    blocks, whole = -(-L // size), L // size
    layers = U.new_empty(size, members, blocks, d, d)
    seen = layers.permute(1, 2, 0, 3, 4)
    seen[:, :whole] = U[:, : whole * size].unflatten(1, (whole, size))
    if whole < blocks:
        seen[:, whole, : L - whole * size] = U[:, whole * size :]
        seen[:, whole, L - whole * size :] = identity_like(U[:, :1])
    return layers


def _unblocked(layers: Tensor, L: int) -> Tensor:
    """The inverse of `_blocked`: `(members, L, d, d)`."""
    size, members, blocks, d, _ = layers.shape
    U = layers.new_empty(members, L, d, d)
    seen, whole = layers.permute(1, 2, 0, 3, 4), L // size
    U[:, : whole * size].unflatten(1, (whole, size)).copy_(seen[:, :whole])
    if whole < blocks:
        U[:, whole * size :] = seen[:, whole, : L - whole * size]
    return U


def _scan(layers: Tensor) -> Tensor:
    """The products of the layers before each, `(size, n, d, d)`."""
    before = torch.empty_like(layers)
    before[0] = identity_like(before[0])
    multiply = _multiply_recorded if recorded(layers) else torch.bmm
    for j in range(1, len(layers)):
        multiply(layers[j - 1], before[j - 1], out=before[j])
    return before


def _multiply_recorded(one: Tensor, other: Tensor, out: Tensor) -> None:
    out.copy_(one @ other)
