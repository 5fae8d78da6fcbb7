"""Products of delta blocks I − β k kᵀ: a negative control."""

from __future__ import annotations

from functools import partial, reduce

import torch
from torch import Tensor

from ...checks import count
from ...flows.intrinsic import IntrinsicFlow
from ...kernels import DividedDifference
from ...losses import Quadratic
from ...matrices import matrix_exp
from ...signatures import Dimension, Seed
from .base import SYSTEMS, Map, System, generator, normal


@SYSTEMS.register("delta_block")
def delta_block(dimension: Dimension = 3, depth: int = 3, seed: Seed = 0) -> System:
    """z = B_L … B_1 with B = I − β k kᵀ (Deep Delta Learning); rescaling k → ck, β → β/c² gives the laws ‖k‖² − 2β².

    The layers are tied to this form and not relaxed balanced: z does not follow the intrinsic flow of L balanced
    layers, which is the control. The laws are derived here; for L > d they and the entries of
    z are fewer than those of θ. det B = 1 − β‖k‖² is positive at θ₀; a block with β‖k‖² = 2 is a reflection, out of
    reach of the continuous model, whose det z stays positive.

    Parameters
    ----------
    dimension : int
        d.
    depth : int
        L.
    seed : int
        Seed of θ₀ and the target.
    """
    d, L = count("system.dimension", dimension), count("system.depth", depth)
    random = generator(seed)
    keys = normal(random, L, d) / d**0.5
    beta = torch.tanh(normal(random, L, 1)) / (1 + keys.square().sum(-1, keepdim=True))
    loss = Quadratic(matrix_exp(normal(random, d, d) / (2 * d**0.5)))
    return System(
        name="delta_block",
        title=f"{L} delta blocks I − β k kᵀ, d = {d} (seed {seed})",
        source="Deep Delta Learning, arXiv 2601.00417",
        phi=phi_of(d),
        laws=partial(laws, d=d),
        theta=torch.cat((beta, keys), dim=-1).flatten(),
        loss=loss,
        independent=L,
        recoverable=False if d < L else None,
        control=IntrinsicFlow(loss, DividedDifference(keys.new_zeros(L))),
        observe={"imbalance": partial(imbalance, d=d)},
    )


def phi_of(d: int) -> Map:
    """θ = (β_1, k_1, β_2, …) → B_L … B_1."""
    return partial(product, d=d)


def product(theta: Tensor, d: int) -> Tensor:
    """B_L … B_1."""
    return reduce(lambda below, block: block @ below, blocks_of(theta, d).unbind(-3))


def blocks_of(theta: Tensor, d: int) -> Tensor:
    """θ (..., n) → B_1, …, B_L, (..., L, d, d)."""
    parts = theta.unflatten(-1, (-1, d + 1))
    beta, k = parts[..., :1, None], parts[..., 1:]
    return torch.eye(d, dtype=theta.dtype, device=theta.device) - beta * k.unsqueeze(-1) * k.unsqueeze(-2)


def imbalance(theta: Tensor, d: int) -> Tensor:
    """How far B_{k+1}ᵀB_{k+1} − B_kB_kᵀ is from a multiple of the identity, for every pair of blocks."""
    squares = blocks_of(theta, d) @ blocks_of(theta, d)  # the blocks are symmetric
    law = squares[..., 1:, :, :] - squares[..., :-1, :, :]
    mean = law.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * torch.eye(
        d, dtype=theta.dtype, device=theta.device
    )
    return torch.linalg.matrix_norm(law - mean)


def laws(theta: Tensor, d: int) -> Tensor:
    """‖k‖² − 2β² of every block."""
    squares = theta.unflatten(-1, (-1, d + 1)).square()
    return squares[..., 1:].sum(-1) - 2 * squares[..., 0]
