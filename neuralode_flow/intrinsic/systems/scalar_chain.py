"""A chain of scalars: z = θ_1 … θ_L."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ...checks import count
from ...losses import Quadratic
from ...signatures import Seed
from .base import SYSTEMS, ClosedFlow, System, generator, normal


@SYSTEMS.register("scalar_chain")
def scalar_chain(depth: int = 4, seed: Seed = 0) -> System:
    """z = Π_k θ_k with the laws c_k = θ_k² − θ_1²: ż = −p'(x) f'(z), where p(x) = Π_k (x + c_k) = z² and x = θ_1².

    x is the only root above −min c. If that minimum belongs to one layer, z can change its sign. It is the case of
    width 1 of the relaxed balanced networks of arXiv 2508.07370.

    Parameters
    ----------
    depth : int
        L >= 2.
    seed : int
        Seed of θ₀ and the target.
    """
    L = count("system.depth", depth, least=2)
    random = generator(seed)
    theta = torch.exp(normal(random, L) / 4)
    loss = Quadratic(torch.exp(normal(random, 1)[0] / 2))
    shifts = theta.square() - theta[0].square()
    return System(
        name="scalar_chain",
        title=f"Chain of {L} scalars (seed {seed})",
        source="arXiv 2508.07370",
        phi=phi,
        laws=laws,
        theta=theta,
        loss=loss,
        independent=L - 1,
        closed=ClosedFlow(loss, partial(velocity, shifts=shifts)),
        recoverable=True,
        metric=True,
    )


def phi(theta: Tensor) -> Tensor:
    """Π_k θ_k."""
    return theta.prod(dim=-1)


def laws(theta: Tensor) -> Tensor:
    """θ_k² − θ_1² for k >= 2."""
    squares = theta.square()
    return squares[..., 1:] - squares[..., :1]


def velocity(z: Tensor, G: Tensor, shifts: Tensor) -> Tensor:
    """−p'(x) G."""
    return -slope(z, shifts) * G


def slope(z: Tensor, shifts: Tensor) -> Tensor:
    """p'(x) at the root x > −min c of Π_k (x + c_k) = z², for every entry of z with its own c.

    In y = log(x + min c) the equation Σ_k log(eʸ + c_k − min c) = 2 log|z| is increasing and convex, and
    (2 log|z|)/L is right of its root: Newton's method comes down to it monotonically.

    Parameters
    ----------
    z : Tensor (...)
    shifts : Tensor (..., L)
        c; its leading axes broadcast with z.

    Returns
    -------
    Tensor (...)
    """
    log_gaps = torch.log(shifts - shifts.amin(-1, keepdim=True))
    goal = 2 * torch.log(z.abs().clamp(min=torch.finfo(z.dtype).tiny))
    y = goal / shifts.shape[-1]
    for _ in range(100):
        logs = torch.logaddexp(y.unsqueeze(-1), log_gaps)
        step = (logs.sum(-1) - goal) / torch.exp(y.unsqueeze(-1) - logs).sum(-1)
        y = y - step
        if bool((step.abs() <= 4 * torch.finfo(z.dtype).eps * (1 + y.abs())).all()):
            break
    logs = torch.logaddexp(y.unsqueeze(-1), log_gaps)
    return torch.exp(logs.sum(-1, keepdim=True) - logs).sum(-1)
