"""A single linear neuron: w = a u."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from ...checks import count, real
from ...losses import LeastSquares
from ...signatures import Dimension, Seed
from .base import SYSTEMS, ClosedFlow, System, generator, normal


@SYSTEMS.register("single_neuron")
def single_neuron(dimension: Dimension = 4, samples: int = 12, delta: float = 1.0, seed: Seed = 0) -> System:
    """w = a u with the law δ = a² − ‖u‖²: ẇ = −(a² G + u uᵀG), a² = (δ + s)/2, ‖u‖² = (s − δ)/2, s = √(δ² + 4‖w‖²).

    It is a warped mirror flow (Azulay 2021): with the potential q(‖w‖),
    q(x) = [x² − (δ/2)(δ/2 + S)] √(S − δ/2) / x, S = √(x² + δ²/4), it is ∇²q(‖w‖) ẇ = −(3/2)|a| ∇f(w). Indeed
    q'(x) = (3/2)√(S − δ/2), so that ∇q = (3/2) sign(a) u.

    Parameters
    ----------
    dimension : int
        d, length of w; θ = (a, u) has d + 1 numbers.
    samples : int
        Rows of the regression, at least d.
    delta : float
        δ, of either sign.
    seed : int
        Seed of the regression and w₀; θ₀ follows from w₀ and δ.
    """
    d = count("system.dimension", dimension)
    n, delta = count("system.samples", samples, least=d), real("system.delta", delta)
    random = generator(seed)
    loss = LeastSquares(normal(random, n, d), normal(random, n))
    w = normal(random, d)
    # On the side of descent from 0: else, for δ < 0, w would pass 0, where it does not know the direction of u.
    w = torch.where(w @ loss.gradient(torch.zeros_like(w)) > 0, -w, w)
    a = torch.sqrt(output_square(w, delta))

    return System(
        name="single_neuron",
        title=f"Single neuron w = a u, d = {d}, δ = {delta:g}, regression on {n} samples (seed {seed})",
        source="Azulay et al. 2021, arXiv 2102.09769",
        phi=phi,
        laws=laws,
        theta=torch.cat((a.unsqueeze(-1), w / a)),
        loss=loss,
        independent=1,
        closed=ClosedFlow(loss, partial(_velocity, delta=delta)),
        recoverable=True,
        metric=True,
        checks={"∇²q(‖w‖) ẇ = −(3/2)|a| ∇f, relative": partial(_off_mirror, loss=loss, delta=delta)},
    )


def phi(theta: Tensor) -> Tensor:
    """(a, u) → a u."""
    return theta[..., :1] * theta[..., 1:]


def laws(theta: Tensor) -> Tensor:
    """a² − ‖u‖²."""
    return theta[..., :1].square() - theta[..., 1:].square().sum(-1, keepdim=True)


def output_square(w: Tensor, delta: float) -> Tensor:
    """a² = (δ + s)/2, without cancellation for δ < 0; (..., d) → (...)."""
    square = w.square().sum(-1)
    larger = (torch.sqrt(delta**2 + 4 * square) + abs(delta)) / 2
    return larger if delta >= 0 else square / larger


def potential(w: Tensor, delta: float) -> Tensor:
    """q(‖w‖) of the warped mirror flow; (..., d) → (...)."""
    x = torch.linalg.vector_norm(w, dim=-1)
    S = torch.sqrt(x.square() + delta**2 / 4)
    # The published formula, with x² = (S − δ/2)(S + δ/2) divided out by the factor that does not cancel.
    return (S - delta) * torch.sqrt(S + delta / 2) if delta >= 0 else x * (S - delta) / torch.sqrt(S - delta / 2)


def _velocity(w: Tensor, G: Tensor, delta: float) -> Tensor:
    a_square = output_square(w, delta).unsqueeze(-1)
    # u uᵀ = w wᵀ/a². For δ <= 0 a² is 0 where w is, and u is not known from w.
    along = w * ((w * G).sum(-1, keepdim=True) / a_square.clamp(min=math.ulp(0.0)))
    return -(a_square * G + along)


def _off_mirror(times: Tensor, path: Tensor, loss: LeastSquares, delta: float) -> float:
    def error(theta: Tensor) -> Tensor:
        w, jacobian = phi(theta), torch.func.jacrev(phi)(theta)
        hessian = torch.func.jacrev(torch.func.grad(partial(potential, delta=delta)))(w)
        G = loss.gradient(w)
        rate, wanted = hessian @ jacobian @ jacobian.mT @ G, 1.5 * theta[0].abs() * G
        return torch.linalg.vector_norm(rate - wanted) / torch.linalg.vector_norm(wanted)

    return float(torch.func.vmap(error)(path).max())
