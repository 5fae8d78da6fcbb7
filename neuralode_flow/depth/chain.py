"""Products of a chain of matrices U_L … U_1, and the gradient of a function of the product."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .products import multiply, recorded
from .workspace import Take, Workspace

# Layers that are multiplied one after the other.
BLOCK = 16

_WORKSPACE = Workspace()


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

    The chain is cut into blocks of `BLOCK` layers that are scanned side by side. What lies outside of a block enters by
    one matrix, (U_L … )ᵀ G ( … U_1)ᵀ, and these are the gradients of the chain of the blocks' products: the same
    problem, shorter. That is three products per layer, a sixteenth more for the blocks, and 3 · 16 log₁₆ L steps one
    after the other. Beside U, memory for three times as many matrices is used, the result among it.

    Parameters
    ----------
    U : Tensor (..., L, d, d)
    outer : callable, (..., d, d) → (..., d, d)

    Returns
    -------
    Tensor (..., L, d, d)
    """
    *batch, L, d, _ = U.shape
    if recorded(U):  # slower, and derivatives can be taken through it
        before, after, z = outside(U)
        return after.mT @ outer(z).unsqueeze(-3) @ before.mT

    def outermost(z: Tensor) -> Tensor:
        return outer(z.view(*batch, d, d)).expand(*batch, d, d).reshape(z.shape)

    return _gradient(U.reshape(-1, L, d, d), outermost).view(U.shape)


def _gradient(U: Tensor, outer: Callable[[Tensor], Tensor]) -> Tensor:
    """The same for U of shape `(members, L, d, d)`."""
    L = U.shape[1]
    if L == 1:
        return outer(U[:, 0]).unsqueeze(1)
    with _WORKSPACE.lend() as take:
        layers, before_layer = _blocked(U, min(BLOCK, L), take)
        chain, before_chain = layers.flatten(1, 2), before_layer.flatten(1, 2)
        for j in range(1, len(chain)):
            multiply(chain[j - 1], before_chain[j - 1], out=before_chain[j])
        blocks = multiply(chain[-1], before_chain[-1]).unflatten(0, layers.shape[1:3])
        behind = _gradient(blocks, outer).flatten(0, 1)
        for j in range(len(chain) - 1, -1, -1):
            here, behind = behind, multiply(chain[j].mT, behind)
            chain[j] = multiply(here, before_chain[j].mT)
        return _unblocked(layers, L)


def _blocked(U: Tensor, size: int, take: Take) -> tuple[Tensor, Tensor]:
    """`(members, L, d, d)` cut into blocks, `(size, members, blocks, d, d)`, the last filled up with identities.

    And as much memory for the products of the layers before each in its block, with the first filled in.
    """
    members, L, d, _ = U.shape
    blocks, whole = -(-L // size), L // size
    layers, before = (take(name, (size, members, blocks, d, d), U) for name in ("layers", "before"))
    seen = layers.permute(1, 2, 0, 3, 4)
    seen[:, :whole] = U[:, : whole * size].unflatten(1, (whole, size))
    if whole < blocks:
        seen[:, whole, : L - whole * size] = U[:, whole * size :]
        seen[:, whole, L - whole * size :] = identity_like(U[:, :1])
    before[0] = identity_like(before[0])
    return layers, before


def _unblocked(layers: Tensor, L: int) -> Tensor:
    """The inverse of `_blocked`: `(members, L, d, d)`."""
    size, members, blocks, d, _ = layers.shape
    U = layers.new_empty(members, L, d, d)
    seen, whole = layers.permute(1, 2, 0, 3, 4), L // size
    U[:, : whole * size].unflatten(1, (whole, size)).copy_(seen[:, :whole])
    if whole < blocks:
        U[:, whole * size :] = seen[:, whole, : L - whole * size]
    return U
