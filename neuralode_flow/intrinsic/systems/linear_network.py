"""Linear networks of any depth and widths: z = W_L … W_1."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ...checks import count
from ...flows.intrinsic import IntrinsicFlow
from ...initial import relaxed_balanced_layers
from ...kernels import DividedDifference
from ...losses import Quadratic
from ...matrices import matrix_exp
from ...signatures import Seed
from .base import SYSTEMS, Map, System, generator, normal

STARTS = ("relaxed_balanced", "random")


@SYSTEMS.register("linear_network")
def linear_network(widths: Sequence[int] = (3, 3, 3, 3), start: str = "relaxed_balanced", seed: Seed = 0) -> System:
    """z = W_L … W_1 with the laws W_{k+1}ᵀW_{k+1} − W_kW_kᵀ of every hidden layer.

    If they are λ_k I, square layers follow ż = −U (K ∘ (UᵀGV)) Vᵀ with K the divided differences of
    p(x) = Π_k (x + λ_1 + … + λ_{k−1}), p(x_a) = σ_a²; from a random start no flow of z alone is known.

    Parameters
    ----------
    widths : sequence of int
        n_0, …, n_L: layer k maps n_{k−1} numbers to n_k.
    start : str
        "relaxed_balanced" (all widths equal; random λ_k, frames, and z₀ with det > 0) or "random".
    seed : int
        Seed of θ₀ and the target.
    """
    widths = sizes("system.widths", widths, least=3)
    if start not in STARTS:
        raise ValueError(f"system.start must be one of {', '.join(STARTS)}, got {start!r}")
    random, layers, d = generator(seed), len(widths) - 1, widths[0]
    closed = None
    if start == "random":
        theta = torch.cat([(normal(random, n, m) / m**0.5).flatten() for m, n in pairwise(widths)])
        loss = Quadratic(normal(random, widths[-1], widths[0]))
    else:
        if set(widths) != {d}:
            raise ValueError(
                f"system.widths must be all equal for a relaxed balanced start, got {widths}; use start='random'"
            )
        z0, target = (matrix_exp(normal(random, d, d) / (2 * d**0.5)) for _ in range(2))
        lam = normal(random, layers - 1) / 2
        shifts = torch.cat((lam.new_zeros(1), lam.cumsum(0)))
        theta = (
            torch.eye(d, dtype=z0.dtype, device=z0.device) + relaxed_balanced_layers(z0, shifts, random) / layers
        ).flatten()
        loss = Quadratic(target)
        closed = IntrinsicFlow(loss, DividedDifference(shifts))
    independent = independent_laws(widths)
    # The rows of ∂φ and ∂h are orthogonal, so A says that their ranks add up to dim θ; no start has higher ranks.
    recoverable = image_dimension(widths) + independent == len(theta)
    return System(
        name="linear_network",
        title=f"Linear network {'-'.join(map(str, widths))}, {start.replace('_', ' ')} start (seed {seed})",
        source="Marcotte, Peyré, Gribonval, arXiv 2508.07370; Arora, Cohen, Hazan 2018, arXiv 1802.06509",
        phi=phi_of(widths),
        laws=laws_of(widths),
        theta=theta,
        loss=loss,
        independent=independent,
        closed=closed,
        recoverable=recoverable,
        metric=True if recoverable or closed is not None else None,
    )


def phi_of(widths: Sequence[int]) -> Map:
    """θ = (W_1, …, W_L), row by row → W_L … W_1."""
    return partial(product, widths=tuple(widths))


def laws_of(widths: Sequence[int]) -> Map:
    """θ → the upper triangles of W_{k+1}ᵀW_{k+1} − W_kW_kᵀ, one after the other."""
    return partial(laws, widths=tuple(widths))


def product(theta: Tensor, widths: Sequence[int]) -> Tensor:
    """W_L … W_1."""
    return reduce(lambda below, layer: layer @ below, split(theta, widths))


def laws(theta: Tensor, widths: Sequence[int]) -> Tensor:
    """The upper triangles of W_{k+1}ᵀW_{k+1} − W_kW_kᵀ of all pairs of layers."""
    layers = split(theta, widths)
    return torch.cat(
        [upper_triangle(after.mT @ after - before @ before.mT) for before, after in pairwise(layers)], dim=-1
    )


def independent_laws(widths: Sequence[int]) -> int:
    """The rank of the Jacobian of the laws at a generic θ: Σ_k r_k(r_k + 1)/2 − e_k(e_k + 1)/2 over hidden layers.

    e_k = max(0, r_k − r_{k−1} − r_{k+1}) is by how much a layer is wider than its neighbours together. A relation
    among the gradients of the laws is a family of symmetric S_k with W_{k+1}S_k = S_{k+1}W_{k+1} and S_0 = S_L = 0;
    for generic layers that leaves S_k on what neither W_{k+1} nor W_kᵀ sees, of dimension e_k, and nothing else. With
    two layers it is the count of Marcotte, Gribonval, Peyré 2023, arXiv 2307.00144.
    """
    triples = zip(widths, widths[1:], widths[2:], strict=False)
    unseen = [(r, max(0, r - before - after)) for before, r, after in triples]
    return sum(r * (r + 1) // 2 - e * (e + 1) // 2 for r, e in unseen)


def image_dimension(widths: Sequence[int]) -> int:
    """The rank of ∂φ at a generic θ: the dimension of the matrices of rank at most the smallest width."""
    rank = min(widths)
    return rank * (widths[0] + widths[-1] - rank)


def split(theta: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """θ (..., n) → the layers W_1, …, W_L."""
    shapes = [(n, m) for m, n in pairwise(widths)]
    parts = theta.split([n * m for n, m in shapes], dim=-1)
    return [part.reshape(*theta.shape[:-1], *shape) for part, shape in zip(parts, shapes)]


def upper_triangle(matrix: Tensor) -> Tensor:
    """The entries on and above the diagonal, (..., r, r) → (..., r(r + 1)/2)."""
    row, column = torch.triu_indices(*matrix.shape[-2:], device=matrix.device)
    return matrix[..., row, column]


def sizes(name: str, value: Any, least: int) -> tuple[int, ...]:
    """`value` as a tuple of at least `least` integers >= 1."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a list of integers, got {value!r}")
    numbers = tuple(count(f"{name}[{i}]", part) for i, part in enumerate(value))
    if len(numbers) < least:
        raise ValueError(f"{name} must have at least {least} entries, got {list(numbers)}")
    return numbers
