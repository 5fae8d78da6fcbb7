"""Identity matrices, and products of a few factors from both sides."""

from __future__ import annotations

import torch
from torch import Tensor


def identity_like(matrices: Tensor) -> Tensor:
    """Identity matrices in the shape `(..., d, d)` of `matrices`, as a view of one."""
    return torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device).expand_as(matrices)


def add_identity(matrices: Tensor, factor: float = 1.0) -> Tensor:
    """Adds a multiple of I to matrices `(..., d, d)` in place."""
    matrices.diagonal(dim1=-2, dim2=-1).add_(factor)
    return matrices


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
