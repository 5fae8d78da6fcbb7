"""Diagonal linear networks: b = u² − v², coordinate by coordinate."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ...checks import count
from ...losses import LeastSquares
from ...signatures import Dimension, Seed
from .base import SYSTEMS, ClosedFlow, System, generator, normal


@SYSTEMS.register("diagonal")
def diagonal(dimension: Dimension = 6, samples: int = 4, seed: Seed = 0) -> System:
    """b = u ∘ u − v ∘ v with the laws c = u ∘ v: ḃ = −4√(b² + 4c²) ∘ ∇f(b), a mirror flow (Azulay 2021).

    The loss is an underdetermined regression, f(b) = 1/(2n) ‖x b − y‖². Then ¼ asinh(b/2c) moves in the row space of x:
    that is how the initialisation chooses among the interpolants.

    Parameters
    ----------
    dimension : int
        Length d of b; θ = (u, v) has 2d numbers.
    samples : int
        n, rows of x.
    seed : int
        Seed of x, y and θ₀.
    """
    d, n = count("system.dimension", dimension), count("system.samples", samples)
    random = generator(seed)
    x, y = normal(random, n, d), normal(random, n)
    theta = torch.rand(2 * d, generator=random, dtype=torch.float64, device="cpu").to(x) + 0.5
    c, loss = laws(theta), LeastSquares(x, y)
    return System(
        name="diagonal",
        title=f"Diagonal network b = u² − v², d = {d}, regression on {n} samples (seed {seed})",
        source="Azulay et al. 2021, arXiv 2102.09769",
        phi=phi,
        laws=laws,
        theta=theta,
        loss=loss,
        independent=d,
        closed=ClosedFlow(loss, partial(velocity, c=c)),
        recoverable=True,
        metric=True,
        checks={"¼ asinh(b/2c) stays in the row space": partial(off_rows, c=c, x=x)},
    )


def phi(theta: Tensor) -> Tensor:
    """(u, v) → u² − v²."""
    u, v = theta.chunk(2, dim=-1)
    return u.square() - v.square()


def laws(theta: Tensor) -> Tensor:
    """u ∘ v."""
    u, v = theta.chunk(2, dim=-1)
    return u * v


def velocity(b: Tensor, G: Tensor, c: Tensor) -> Tensor:
    """−4√(b² + 4c²) ∘ G."""
    return -4 * torch.sqrt(b.square() + 4 * c.square()) * G


def off_rows(times: Tensor, path: Tensor, c: Tensor, x: Tensor) -> float:
    """How far ¼ asinh(b/2c) leaves the row space of x."""
    potential = torch.asinh(phi(path) / (2 * c)) / 4
    moved = potential - potential[0]
    rows = torch.linalg.pinv(x) @ x
    return float((moved - moved @ rows).abs().max())
