"""Particles that descend in one function and ascend in the other, their law at the start, and their linear limit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..checks import float_tensor
from ..losses import Loss
from ..matrices import matrix_exp
from .saddle import Saddle


class Start(NamedTuple):
    """A law of the initial parameters (a, b) of φ = c·sin(ax + b): a ~ N(0, 1), b ~ N(shift, 1), c of mean 0 or fixed.

    E φ = 0 at the start. With one c and no shift the law is invariant under (a, b) → −(a, b), which flips φ.
    """

    shift: float
    values: tuple[float, ...]
    chances: tuple[float, ...]

    def kernel(self, grid: Tensor) -> Tensor:
        """E[∇φ(x)·∇φ(x')] in closed form, `(n, n)`."""
        x, y = grid[:, None], grid
        near = torch.exp(-(x - y).square() / 2)
        far = np.cos(2 * self.shift) * torch.exp(-((x + y).square() + 4) / 2)
        second = sum(chance * c**2 for c, chance in zip(self.values, self.chances, strict=True))
        return second * (1 + x * y) * (near + far) / 2

    def quadrature(self, nodes: int) -> Particles:
        """The law by nodes × nodes points of Gauss and Hermite for each c."""
        points, weights = np.polynomial.hermite_e.hermegauss(nodes)
        weights = weights / weights.sum()
        a, b, c = np.meshgrid(points, points + self.shift, self.values, indexing="ij")
        mass = weights[:, None, None] * weights[:, None] * np.array(self.chances)
        theta, factor, mass = (torch.as_tensor(part) for part in (np.stack((a, b), -1), c, mass))
        return Particles(theta.flatten(0, 2).expand(2, -1, 2), factor.flatten(), mass.flatten())


class Particles(NamedTuple):
    """Parameters (a, b) of both functions, `(..., 2, N, 2)`, with their c and weights `(N,)`."""

    theta: Tensor
    factor: Tensor
    weight: Tensor

    def to(self, other: Tensor) -> Particles:
        """The same with the dtype and on the device of another tensor."""
        return Particles(*(part.to(other) for part in self))

    def moved(self, theta: Tensor) -> Tensor:
        """(E‖θ − θ₀‖²)^½ of both functions, `(..., 2)`: no less than the Wasserstein distance of their laws."""
        return ((theta - self.theta).square().sum(-1) @ self.weight).sqrt()


class HalfResidual:
    """½E|E[Φ | Z]|² of z = (f, g): the largest L of all g, without its penalty."""

    dimension: int | None = None

    def __init__(self, saddle: Saddle) -> None:
        self.saddle = saddle
        self.shape = (2, saddle.target.shape[-1])

    def __call__(self, z: Tensor) -> Tensor:
        return self.saddle.residual(z) / 2

    def gradient(self, z: Tensor) -> Tensor:
        """Its gradient; 0 in g."""
        moment = self.saddle.moment(z[..., 0, :]) / self.saddle.dual
        by_f = (self.saddle.operator.mT @ moment[..., None])[..., 0]
        return torch.stack((by_f, torch.zeros_like(by_f)), dim=-2).expand_as(z)


class ParticleFlow:
    """θ' = −∇_θ ∂L/∂f / α, ω' = +∇_ω ∂L/∂g / α for f = α E φ(·; θ), g = α E φ(·; ω), φ = c·sin(ax + b).

    The Wasserstein flow of both laws in α² times its own time; the state has (a, b) of each particle, `(..., 2, N, 2)`.

    Parameters
    ----------
    points : Tensor (n,)
        The grid.
    saddle : Saddle
        Its leading axes, and those of alpha, go with those of a state.
    particles : Particles
        Their c and weights.
    alpha : Tensor (...)
    """

    def __init__(self, points: Tensor, saddle: Saddle, particles: Particles, alpha: Tensor) -> None:
        self.points = points
        self.saddle = saddle
        self.particles = particles
        self.alpha = alpha[..., None, None]
        self.loss: Loss = HalfResidual(saddle)
        self.features = torch.stack((points, torch.ones_like(points)), dim=-1)

    def check(self, state: Tensor) -> None:
        """Raises TypeError or ValueError unless `state` has the parameters of both functions."""
        float_tensor("state", state)
        wanted = (2, len(self.particles.weight), 2)
        if tuple(state.shape[-3:]) != wanted:
            raise ValueError(f"state must end in the axes {wanted}, got shape {tuple(state.shape)}")

    def product(self, state: Tensor) -> Tensor:
        """f and g on the grid, `(..., 2, n)`."""
        return self._averaged(self._phase(state))

    def velocity(self, state: Tensor) -> Tensor:
        """dstate/dt."""
        phase = self._phase(state)
        descent, ascent = self.saddle.slopes(self._averaged(phase)).unbind(-2)
        push = torch.stack((-descent, ascent), dim=-2) / self.alpha
        return self.particles.factor[:, None] * (phase.cos() @ (push[..., None] * self.features))

    def law(self, state: Tensor) -> Tensor:
        """No laws are known, `(..., 0, 1, 1)`."""
        return state.new_empty(*state.shape[:-3], 0, 1, 1)

    def _phase(self, state: Tensor) -> Tensor:
        return state[..., :1] * self.points + state[..., 1:]

    def _averaged(self, phase: Tensor) -> Tensor:
        mass = self.particles.factor * self.particles.weight
        return self.alpha * (mass @ phase.sin())


def linear_limit(saddle: Saddle, kernel: Tensor, times: Tensor) -> Tensor:
    """y of z = y·kernel in the limit α → ∞, `(T, ..., 2, n)`: y' = −(Hz + h) from 0, by matrix exponentials."""
    H, h = saddle.field()
    both = torch.block_diag(kernel, kernel)
    generator = torch.zeros(*h.shape[:-1], h.shape[-1] + 1, h.shape[-1] + 1, dtype=h.dtype, device=h.device)
    generator[..., :-1, :-1], generator[..., :-1, -1] = -H @ both, -h
    moments = times.reshape(-1, *generator.ndim * (1,)) * generator
    return matrix_exp(moments)[..., :-1, -1].unflatten(-1, (2, -1))
