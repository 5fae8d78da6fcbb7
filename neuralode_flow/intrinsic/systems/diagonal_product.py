"""Diagonal linear networks of two layers: z = u v, coordinate by coordinate."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ...checks import count
from ...losses import LeastSquares
from ...signatures import Dimension, Seed
from .base import SYSTEMS, ClosedFlow, System, generator, normal


@SYSTEMS.register("diagonal_product")
def diagonal_product(dimension: Dimension = 6, samples: int = 4, seed: Seed = 0) -> System:
    """z = u ∘ v with the laws δ = u ∘ u − v ∘ v: ż = −√(δ² + 4z²) ∘ ∇f(z), a mirror flow (Woodworth 2020).

    It is the network u² − v² in other coordinates, turned by 45°. The loss is an underdetermined regression,
    f(z) = 1/(2n) ‖x z − y‖², and ½ asinh(2z/|δ|) moves in the row space of x.

    Parameters
    ----------
    dimension : int
        Length d of z; θ = (u, v) has 2d numbers.
    samples : int
        n, rows of x.
    seed : int
        Seed of x, y and θ₀.
    """
    d, n = count("system.dimension", dimension), count("system.samples", samples)
    random = generator(seed)
    x, y = normal(random, n, d), normal(random, n)
    theta = normal(random, 2 * d)
    delta, loss = laws(theta), LeastSquares(x, y)
    return System(
        name="diagonal_product",
        title=f"Diagonal network z = u v, d = {d}, regression on {n} samples (seed {seed})",
        source="Woodworth et al. 2020, arXiv 2002.09277; Azulay et al. 2021, arXiv 2102.09769",
        phi=phi,
        laws=laws,
        theta=theta,
        loss=loss,
        independent=d,
        closed=ClosedFlow(loss, partial(velocity, delta=delta)),
        recoverable=True,
        metric=True,
        checks={"½ asinh(2z/|δ|) stays in the row space": partial(off_rows, delta=delta, x=x)},
    )


def phi(theta: Tensor) -> Tensor:
    """(u, v) → u ∘ v."""
    u, v = theta.chunk(2, dim=-1)
    return u * v


def laws(theta: Tensor) -> Tensor:
    """u² − v²."""
    u, v = theta.chunk(2, dim=-1)
    return u.square() - v.square()


def velocity(z: Tensor, G: Tensor, delta: Tensor) -> Tensor:
    """−√(δ² + 4z²) ∘ G."""
    return -torch.sqrt(delta.square() + 4 * z.square()) * G


def off_rows(times: Tensor, path: Tensor, delta: Tensor, x: Tensor) -> float:
    """How far ½ asinh(2z/|δ|) leaves the row space of x."""
    potential = torch.asinh(2 * phi(path) / delta.abs()) / 2
    moved = potential - potential[0]
    rows = torch.linalg.pinv(x) @ x
    return float((moved - moved @ rows).abs().max())
