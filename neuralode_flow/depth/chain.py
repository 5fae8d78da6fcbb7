"""Products of a chain of matrices U_L … U_1, and the gradient of a function of the product."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from ..modes import bare, plain
from . import kernel
from .products import multiply
from .workspace import Take, Workspace

# Layers that are multiplied one after the other. Larger blocks take more calls, which is what counts in short chains.
BLOCK = 4

_WORKSPACE = Workspace()


def identity_like(matrices: Tensor) -> Tensor:
    """Identity matrices in the shape `(..., d, d)` of `matrices`, as a view of one."""
    return torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device).expand_as(matrices)


def add_identity(matrices: Tensor, factor: float = 1.0) -> Tensor:
    """Adds a multiple of I to matrices `(..., d, d)` in place."""
    matrices.diagonal(dim1=-2, dim2=-1).add_(factor)
    return matrices


def product(U: Tensor) -> Tensor:
    """U_L … U_1 by pairwise products: `(..., L, d, d)` → `(..., d, d)`. Differentiable."""
    compiled = kernel.chain(U)
    if compiled is not None:
        return compiled
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
    problem, shorter. Those are 3 (L − 1) products, in 9 log₄ L calls.

    Parameters
    ----------
    U : Tensor (..., L, d, d)
    outer : callable, (..., d, d) → (..., d, d)

    Returns
    -------
    Tensor (..., L, d, d)
    """
    compiled = kernel.chain(U, outer)
    if compiled is not None:
        return compiled
    *batch, L, d, _ = U.shape
    if plain(U):
        with suppress(MoreThanNumbers):
            return _gradient(U.reshape(-1, L, d, d), by_member(outer, torch.Size(batch))).view(U.shape)
    # Slower, and derivatives can be taken through it.
    before, after, z = outside(U)
    return after.mT @ outer(z).unsqueeze(-3) @ before.mT


class MoreThanNumbers(Exception):
    """What lies outside is not `bare`, and code that writes into given memory cannot go on."""


def by_member(outer: Callable[[Tensor], Tensor], batch: torch.Size) -> Callable[[Tensor], Tensor]:
    """`outer` for the members of leading axes `batch` in one axis, `(members, d, d)`; may raise MoreThanNumbers."""

    def flat(z: Tensor) -> Tensor:
        square = z.shape[-2:]
        G = outer(z.view(*batch, *square))
        if not bare(G):
            raise MoreThanNumbers
        return G.expand(*batch, *square).reshape(z.shape)

    return flat


def _gradient(U: Tensor, outer: Callable[[Tensor], Tensor]) -> Tensor:
    """The same for U of shape `(members, L, d, d)`."""
    L = U.shape[1]
    if L <= BLOCK:
        return _one_block(U, outer)
    with _WORKSPACE.lend() as take:
        layers = _blocked(U, take)
        chain = layers.flatten(1, 2)
        before = [chain[0]]
        for j in range(1, len(chain) - 1):
            before.append(multiply(chain[j], before[-1], out=take(f"before {j}", before[-1].shape, U)))
        blocks = multiply(chain[-1], before[-1]).unflatten(0, layers.shape[1:3])
        behind = _gradient(blocks, outer).flatten(0, 1)
        for j in range(len(chain) - 1, 0, -1):
            here, behind = behind, multiply(chain[j].mT, behind)
            multiply(here, before.pop().mT, out=chain[j])
        chain[0] = behind
        return _unblocked(layers, L)


def _one_block(U: Tensor, outer: Callable[[Tensor], Tensor]) -> Tensor:
    """The same for a few layers."""
    layers = U.unbind(1)
    before = [layers[0]]
    for layer in layers[1:]:
        before.append(multiply(layer, before[-1]))
    behind, gradients = outer(before.pop()), []
    for layer in reversed(layers[1:]):
        gradients.append(multiply(behind, before.pop().mT))
        behind = multiply(layer.mT, behind)
    return torch.stack([behind, *reversed(gradients)], dim=1)


def _blocked(U: Tensor, take: Take) -> Tensor:
    """`(members, L, d, d)` cut into blocks, `(size, members, blocks, d, d)`, the last filled up with identities."""
    members, L, d, _ = U.shape
    size, blocks, whole = BLOCK, -(-L // BLOCK), L // BLOCK
    layers = take("layers", (size, members, blocks, d, d), U)
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
