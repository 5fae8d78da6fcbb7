"""Linear convolutional networks with strides: z is the filter of them all."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce
from itertools import accumulate
from operator import mul

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...losses import Quadratic
from ...signatures import Seed
from .base import SYSTEMS, ClosedFlow, Map, System, generator, normal
from .linear_network import sizes


@SYSTEMS.register("convolution")
def convolution(kernels: Sequence[int] = (2, 3), strides: Sequence[int] = (2,), seed: Seed = 0) -> System:
    """z = w_1 ∗ ↑w_2 ∗ … ∗ ↑w_L, with the laws ‖w_{k+1}‖² − ‖w_k‖².

    ↑w_k is w_k dilated by the product of the strides of the layers before it: z is the filter of the composition. Near
    a θ whose dilated filters have no common roots only the rescalings leave z unchanged, so that z and the laws give θ
    back, up to signs (Achour, Kohn, Rauhut 2025). If the first of two filters is no longer than its stride, its copies
    do not overlap: then z in rows of that length is w_2 w_1ᵀ, and ż = −(G zᵀz/‖w_2‖² + z zᵀG/‖w_1‖²), where
    ‖w_2‖² = (s + δ)/2, ‖w_1‖² = (s − δ)/2, s = √(δ² + 4‖z‖²). Otherwise no formula is known, and
    θ is recovered from (z, h), from the last one on: a check that they determine θ near it, and not one with an
    independent formula. The study `lcn` has one, by the roots of z.

    Parameters
    ----------
    kernels : sequence of int
        Lengths of w_1, …, w_L.
    strides : sequence of int
        Strides of the layers 1, …, L − 1; that of the last does not matter to the filter.
    seed : int
        Seed of θ₀ and of the network that makes the target.
    """
    kernels, strides = sizes("system.kernels", kernels, least=2), sizes("system.strides", strides, least=1)
    if len(strides) != len(kernels) - 1:
        raise ValueError(
            f"system.strides must have one entry fewer than system.kernels, {len(kernels) - 1}, got {len(strides)}"
        )
    random, phi = generator(seed), phi_of(kernels, strides)
    theta, teacher = normal(random, sum(kernels)), normal(random, sum(kernels))
    target = phi(teacher)
    # On the side of the target: else a filter of length 1 would pass 0, where z does not know the direction of others.
    side = torch.where(phi(theta) @ target < 0, -1.0, 1.0)
    theta = torch.cat((side * theta[: kernels[0]], theta[kernels[0] :]))
    loss, closed = Quadratic(target), None
    if len(kernels) == 2 and kernels[0] <= strides[0]:
        delta = laws_of(kernels)(theta)
        closed = ClosedFlow(loss, partial(_rank_one, kernels=kernels, stride=strides[0], delta=delta))
    return System(
        name="convolution",
        title=f"Convolutions of lengths {list(kernels)}, strides {list(strides)} (seed {seed})",
        source="Achour, Kohn, Rauhut 2025, arXiv 2507.06367; Kohn et al. 2022, arXiv 2108.01538",
        phi=phi,
        laws=laws_of(kernels),
        theta=theta,
        loss=loss,
        independent=len(kernels) - 1,
        closed=closed,
        recoverable=True,
        metric=True,
    )


def phi_of(kernels: Sequence[int], strides: Sequence[int]) -> Map:
    """θ = (w_1, …, w_L) → the composed filter, of length 1 + Σ_l (k_l − 1) s_1 … s_{l−1}."""
    return partial(composed, kernels=tuple(kernels), dilations=tuple(accumulate((1, *strides), mul)))


def laws_of(kernels: Sequence[int]) -> Map:
    """θ → ‖w_{k+1}‖² − ‖w_k‖²."""
    return partial(laws, kernels=tuple(kernels))


def composed(theta: Tensor, kernels: Sequence[int], dilations: Sequence[int]) -> Tensor:
    """w_1 ∗ ↑w_2 ∗ … ∗ ↑w_L, each filter with the dilation given."""
    filters = zip(theta.split(list(kernels), dim=-1), dilations)
    return reduce(lambda z, item: _dilated(z, *item), filters, torch.ones_like(theta[..., :1]))


def laws(theta: Tensor, kernels: Sequence[int]) -> Tensor:
    """‖w_{k+1}‖² − ‖w_k‖²."""
    squares = [w.square().sum(-1) for w in theta.split(list(kernels), dim=-1)]
    return torch.stack(squares, dim=-1).diff(dim=-1)


def _dilated(z: Tensor, w: Tensor, dilation: int) -> Tensor:
    """Σ_j w[j] · (z moved by j · dilation)."""
    last = w.shape[-1] - 1
    return sum(
        (w[..., j : j + 1] * pad(z, (j * dilation, (last - j) * dilation)) for j in range(1, last + 1)),
        start=w[..., :1] * pad(z, (0, last * dilation)),
    )


def _rank_one(z: Tensor, G: Tensor, kernels: Sequence[int], stride: int, delta: Tensor) -> Tensor:
    gap = stride - kernels[0]
    square = z.square().sum(-1, keepdim=True)
    larger = (torch.sqrt(delta.square() + 4 * square) + delta.abs()) / 2
    smaller = square / larger
    second, first = (torch.where(sign * delta >= 0, larger, smaller).unsqueeze(-1) for sign in (1, -1))
    Z, slope = (pad(part, (0, gap)).unflatten(-1, (kernels[1], stride))[..., : kernels[0]] for part in (z, G))
    moved = -(slope @ Z.mT @ Z / second + Z @ Z.mT @ slope / first)
    return pad(moved, (0, gap)).flatten(-2)[..., : z.shape[-1]]
