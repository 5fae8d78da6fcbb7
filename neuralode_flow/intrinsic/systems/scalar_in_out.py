"""A linear network with one input and one output: z = u · v."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ...checks import count
from ...losses import Quadratic
from ...signatures import Seed
from .base import SYSTEMS, ClosedFlow, System, generator, normal
from .linear_network import upper_triangle


@SYSTEMS.register("scalar_in_out")
def scalar_in_out(width: int = 5, seed: Seed = 0) -> System:
    """z = u · v with the laws h = uuᵀ − vvᵀ: ż = −√(4z² + 2 tr h² − (tr h)²) f'(z), from every start.

    The root is ‖u‖² + ‖v‖². Of the laws 2r − 1 are independent (arXiv 2307.00144), which with z are all 2r numbers of
    θ; the closed flow is derived here.

    Parameters
    ----------
    width : int
        r.
    seed : int
        Seed of θ₀ and the target.
    """
    r = count("system.width", width)
    random = generator(seed)
    theta = normal(random, 2 * r) / r**0.5
    loss = Quadratic(2 * normal(random, 1)[0])
    u, v = theta.chunk(2)
    h = torch.outer(u, u) - torch.outer(v, v)
    constant = 2 * h.square().sum() - h.trace().square()
    return System(
        name="scalar_in_out",
        title=f"Linear network 1-{r}-1, random start (seed {seed})",
        source="derived here from the laws of arXiv 2307.00144",
        phi=phi,
        laws=laws,
        theta=theta,
        loss=loss,
        independent=2 * r - 1,
        closed=ClosedFlow(loss, partial(velocity, constant=constant)),
        recoverable=True,
        metric=True,
    )


def phi(theta: Tensor) -> Tensor:
    """(u, v) → u · v."""
    u, v = theta.chunk(2, dim=-1)
    return (u * v).sum(-1)


def laws(theta: Tensor) -> Tensor:
    """The upper triangle of uuᵀ − vvᵀ."""
    u, v = theta.chunk(2, dim=-1)
    return upper_triangle(u.unsqueeze(-1) * u.unsqueeze(-2) - v.unsqueeze(-1) * v.unsqueeze(-2))


def velocity(z: Tensor, G: Tensor, constant: Tensor) -> Tensor:
    """−√(4z² + constant) G, with the constant 2 tr h² − (tr h)²."""
    return -torch.sqrt(4 * z.square() + constant) * G
