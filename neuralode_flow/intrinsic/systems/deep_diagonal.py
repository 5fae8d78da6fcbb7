"""Deep diagonal networks in an orthonormal basis: z = Q (θ_1 ∘ … ∘ θ_L)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ...checks import count
from ...losses import LeastSquares
from ...matrices import random_orthogonal
from ...signatures import Dimension, Seed
from .base import SYSTEMS, ClosedFlow, System, generator, normal
from .scalar_chain import laws as chain_laws
from .scalar_chain import phi as chain
from .scalar_chain import slope


@SYSTEMS.register("deep_diagonal")
def deep_diagonal(dimension: Dimension = 4, depth: int = 3, samples: int = 3, seed: Seed = 0) -> System:
    """z = Q (θ_1 ∘ … ∘ θ_L), Q orthogonal: a network whose data tensor is orthogonally decomposable (Yun 2021).

    In the basis Q every coordinate is a scalar chain: ż = −Q (p'(x) ∘ QᵀG), with p of its own laws θ_k² − θ_1². The
    loss is an underdetermined regression, 1/(2n) ‖x z − y‖², which couples the coordinates.

    Parameters
    ----------
    dimension : int
        d, length of z; θ has dL numbers, coordinate by coordinate.
    depth : int
        L >= 2.
    samples : int
        n, rows of x.
    seed : int
        Seed of Q, x, y and θ₀.
    """
    d, L = count("system.dimension", dimension), count("system.depth", depth, least=2)
    n, random = count("system.samples", samples), generator(seed)
    x, y = normal(random, n, d), normal(random, n)
    theta = torch.exp(normal(random, d * L) / 4)
    Q = random_orthogonal((d, d), random).to(x)
    loss = LeastSquares(x, y)
    squares = theta.unflatten(-1, (d, L)).square()
    shifts = squares - squares[:, :1]
    return System(
        name="deep_diagonal",
        title=f"Diagonal network of {L} layers in a random basis, d = {d}, regression on {n} samples (seed {seed})",
        source="Yun, Krishnan, Mobahi 2021, arXiv 2010.02501",
        phi=partial(phi, Q=Q),
        laws=partial(laws, dimension=d),
        theta=theta,
        loss=loss,
        independent=d * (L - 1),
        closed=ClosedFlow(loss, partial(velocity, Q=Q, shifts=shifts)),
        recoverable=True,
        metric=True,
    )


def phi(theta: Tensor, Q: Tensor) -> Tensor:
    """Q (θ_1 ∘ … ∘ θ_L)."""
    return chain(theta.unflatten(-1, (len(Q), -1))) @ Q.mT


def laws(theta: Tensor, dimension: int) -> Tensor:
    """Those of the chain of every coordinate."""
    return chain_laws(theta.unflatten(-1, (dimension, -1))).flatten(-2)


def velocity(z: Tensor, G: Tensor, Q: Tensor, shifts: Tensor) -> Tensor:
    """−Q (p'(x) ∘ QᵀG)."""
    return -(slope(z @ Q, shifts) * (G @ Q)) @ Q.mT
