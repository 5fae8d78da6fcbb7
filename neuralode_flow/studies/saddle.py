"""Saddle problems of two functions on a grid, from equations of conditional expectations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor


class Saddle(NamedTuple):
    """L(f, g) = ⟨g, Mf − β⟩ − ½⟨g, g⟩_Z + ½λ⟨f, f⟩_X for z = (f, g), `(..., 2, n)`; leading axes are members.

    Attributes
    ----------
    operator : Tensor (..., n, n)
        M: E[Φ | Z] times the weights of Z is Mf − β.
    target : Tensor (..., n)
        β.
    primal, dual : Tensor (..., n)
        Weights of X and of Z.
    penalty : Tensor (...)
        λ.
    """

    operator: Tensor
    target: Tensor
    primal: Tensor
    dual: Tensor
    penalty: Tensor

    def slopes(self, z: Tensor) -> Tensor:
        """∂L/∂f and ∂L/∂g, `(..., 2, n)`."""
        f, g = z.unbind(-2)
        by_f = (self.operator.mT @ g[..., None])[..., 0] + self.penalty[..., None] * self.primal * f
        return torch.stack((by_f, self.moment(f) - self.dual * g), dim=-2)

    def value(self, z: Tensor) -> Tensor:
        """L, `(...)`."""
        f, g = z.unbind(-2)
        penalty = self.penalty * (self.primal * f.square()).sum(-1)
        return (g * self.moment(f)).sum(-1) + (penalty - (self.dual * g.square()).sum(-1)) / 2

    def residual(self, z: Tensor) -> Tensor:
        """E|E[Φ | Z]|², `(...)`: twice the largest L of all g, without its penalty."""
        return (self.moment(z[..., 0, :]).square() / self.dual).sum(-1)

    def norm(self, z: Tensor) -> Tensor:
        """(E f(X)² + E g(Z)²)^½, `(...)`."""
        weights = torch.stack((self.primal, self.dual), dim=-2)
        return (weights * z.square()).sum((-2, -1)).sqrt()

    def field(self) -> tuple[Tensor, Tensor]:
        """H, `(..., 2n, 2n)`, and h of (∂L/∂f, −∂L/∂g) = Hz + h."""
        penalised = self.penalty[..., None, None] * self.primal.diag_embed()
        M, penalised = torch.broadcast_tensors(self.operator, penalised)
        upper, lower = torch.cat((penalised, M.mT), -1), torch.cat((-M, self.dual.diag_embed().expand_as(M)), -1)
        target = self.target.expand(M.shape[:-1])
        return torch.cat((upper, lower), -2), torch.cat((torch.zeros_like(target), target), -1)

    def point(self) -> Tensor:
        """The saddle point, `(..., 2, n)`, for λ > 0 or an invertible M."""
        H, h = self.field()
        return torch.linalg.solve(H, -h).unflatten(-1, (2, -1))

    def moment(self, f: Tensor) -> Tensor:
        """E[Φ | Z] times the weights of Z, `(..., n)`."""
        return (self.operator @ f[..., None])[..., 0] - self.target


class Equation(NamedTuple):
    """E[Φ | Z] = 0 for Φ = own·f(Z) + other·f(X) − Y, where Z and X are on one grid.

    Attributes
    ----------
    joint : Tensor (..., n, n)
        Probabilities of Z (rows) and X (columns).
    own, other : Tensor (...)
    outcome : Tensor (..., n, n)
        Y of each pair.
    """

    joint: Tensor
    own: Tensor
    other: Tensor
    outcome: Tensor

    def saddle(self, penalty: Tensor, pairs: Tensor | None = None) -> Saddle:
        """Its saddle problem; with the frequencies of sampled `pairs` in place of the probabilities, that of these."""
        weights = self.joint if pairs is None else pairs
        dual = weights.sum(-1)
        own, other = self.own[..., None, None], self.other[..., None, None]
        operator = own * dual.diag_embed() + other * weights
        return Saddle(operator, (weights * self.outcome).sum(-1), weights.sum(-2), dual, penalty)

    def beside(self, axes: int) -> Self:
        """The same with so many axes of length 1 behind the first, for members."""
        return type(self)(*(part.reshape(len(part), *axes * (1,), *part.shape[1:]) for part in self))

    def sampled(self, draws: int, generator: torch.Generator) -> Tensor:
        """Frequencies of pairs when one is drawn, `(equations, draws, n, n)`."""
        flat = self.joint.flatten(-2).cpu()  # where the generator is
        index = torch.multinomial(flat, draws, replacement=True, generator=generator)
        return torch.nn.functional.one_hot(index, flat.shape[-1]).to(self.joint).unflatten(-1, self.joint.shape[-2:])

    def blind(self) -> Tensor:
        """The f of least E[Φ²], `(..., n)`, which does not condition on Z."""
        n = self.joint.shape[-1]
        unit = torch.eye(n).to(self.joint)
        rows = self.own[..., None, None, None] * unit[:, None] + self.other[..., None, None, None] * unit
        weighted = self.joint.unsqueeze(-1) * rows
        normal = torch.einsum("...ijk,...ijl->...kl", weighted, rows)
        return torch.linalg.solve(normal, torch.einsum("...ij,...ijk->...k", self.outcome, weighted))


def instruments(grid: Tensor, truth: Tensor) -> Equation:
    """Regression with an instrument: E[f(X) − Y | Z] = 0, Y = f*(X) + X − E[X | Z], whose noise goes with X."""
    joint = torch.exp(-((grid - 0.8 * grid[:, None]) / 0.35).square() / 2 - grid[:, None].square() / 2)
    joint = joint / joint.sum()
    expected = (joint @ grid) / joint.sum(-1)
    return Equation(joint, grid.new_zeros(()), grid.new_ones(()), truth + grid - expected[:, None])


def policy(grid: Tensor, truth: Tensor, discount: float) -> Equation:
    """Values of a chain: E[f(S) − r(S) − γf(S') | S] = 0.

    It steps down, stays or steps up with the probabilities 0.18, 0.27, 0.45, and jumps to its first state with 0.1;
    r is the reward of which f* is the value, and S is in equilibrium.
    """
    n = len(grid)
    states = torch.arange(n)
    chain = grid.new_zeros(n, n)
    for step, chance in ((-1, 0.18), (0, 0.27), (1, 0.45)):
        chain[states, (states + step).clamp(0, n - 1)] += chance
    chain[:, 0] += 0.1
    one = torch.eye(n).to(grid)
    balance = one - chain.mT
    balance[-1] = 1.0
    equilibrium = torch.linalg.solve(balance, one[-1])
    reward = (truth - discount * chain @ truth)[:, None].expand(n, n)
    gamma = grid.new_tensor(discount)
    return Equation(equilibrium[:, None] * chain, torch.ones_like(gamma), -gamma, reward)


def stacked(equations: Sequence[Equation]) -> Equation:
    """Equations side by side."""
    return Equation(*map(torch.stack, zip(*equations, strict=True)))
